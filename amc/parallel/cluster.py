"""A Ray cluster: an optional dependency."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from amc.errors import UserError

LOCAL = "local"  # instead of an address: a cluster of one's own, on this machine


def connect(address: str, cpus: int) -> Any:
    """Ray, connected.

    Args:
        address: of a cluster, or `LOCAL`.
        cpus: of a cluster on this machine.

    Raises:
        UserError: Ray is not installed, or no cluster answers.
    """
    try:
        import ray
    except ImportError:
        raise UserError("Ray is not installed: pip install 'amc-compression[ray]'") from None
    own = {"num_cpus": cpus, "include_dashboard": False}
    options: dict[str, Any] = own if address == LOCAL else {"address": address}
    try:
        ray.init(log_to_driver=False, logging_level="error", **options)
    except ConnectionError as error:
        raise UserError(f"no Ray cluster answers at {address!r}") from error
    return ray


def find_modules(paths: Sequence[str]) -> None:
    """On a worker: look for modules, a user's own too, where the driver does (its ``sys.path``)."""
    sys.path += [path for path in paths if path not in sys.path]
