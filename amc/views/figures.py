"""Figures in which text stands as it is: names of layers, runs and files are no mathematics."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.figure import Figure

_LOCK = threading.Lock()  # matplotlib's settings are global
_LITERAL = {"text.parse_math": False, "text.usetex": False}


@contextmanager
def figure_of(
    size: tuple[float, float], settings: Mapping[str, Any] | None = None
) -> Iterator[Any]:
    """An empty figure, to be drawn and saved inside.

    Args:
        size: in inches.
        settings: more of matplotlib's, while it is drawn.
    """
    chosen: Any = {**(settings or {}), **_LITERAL}
    with _LOCK, matplotlib.rc_context(chosen):
        yield Figure(figsize=size, layout="constrained")
