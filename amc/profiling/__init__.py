"""Measuring device profiles."""
