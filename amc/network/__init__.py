"""Networks: their layer table, their coupled channels, and where they come from."""
