"""The run directory: its files, its journal, where it came from."""
