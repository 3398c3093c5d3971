"""Comparing runs: curves, tests, fronts."""
