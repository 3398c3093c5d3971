"""What touches weights: cutting, verifying a cut, repairing."""
