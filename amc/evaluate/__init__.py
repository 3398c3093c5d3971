"""Data, the way from a strategy to its accuracy, and rewards."""
