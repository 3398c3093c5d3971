"""Action spaces: what a keep ratio means."""
