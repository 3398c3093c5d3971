"""Presets, read with `importlib.resources` as `amc.configs`."""
