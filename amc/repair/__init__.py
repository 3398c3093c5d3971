"""Least-squares repair of a network that was cut or factorised."""
