"""Ctrl-C in a search names the run that can be gone on with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from amc.runs.directory import Run


class Stopped(KeyboardInterrupt):
    """Ctrl-C in a search.

    Attributes:
        path: of the run, which `amc.resume` goes on with.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(f"stopped; amc.resume({str(path)!r}) goes on")
        self.path = path


@contextmanager
def stoppable(path: Path) -> Iterator[None]:
    """Ctrl-C names the run, once it has been made.

    Raises:
        Stopped: then.
    """
    try:
        yield
    except KeyboardInterrupt:
        if Run.is_at(path):
            raise Stopped(path) from None
        raise
