"""The device a network will run on: profiles, runtimes, measuring."""
