"""How anything long reports its progress, and where its time goes.

- `Report`  one callable ``report(what, done, total)``, shown as a bar with the time left
- `Board`   a table of how things stand
- `Clock`   seconds by part
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Report = Callable[[str, int, int], None]
"""Called with what is done, how much of it, and the total. Ends where both are equal."""

_LOG_SECONDS = 10.0
_BOARD_SECONDS = 30.0
T = TypeVar("T")


class Clock:
    """How many seconds go into which part. Inside ``with clock("repair"):`` time counts for that
    part only, not for the part around it.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._parts: list[str] = []
        self._since = time.perf_counter()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        self._count()
        self._parts.append(part)
        try:
            yield
        finally:
            self._count()
            self._parts.pop()

    def take(self) -> dict[str, float]:
        """part -> seconds since the last call."""
        self._count()
        taken, self._seconds = self._seconds, {}
        return taken

    def _count(self) -> None:
        now = time.perf_counter()
        if self._parts:
            part = self._parts[-1]
            self._seconds[part] = self._seconds.get(part, 0.0) + now - self._since
        self._since = now


def silent(what: str, done: int, total: int) -> None:
    """Report nothing."""


class ConsoleReport:
    """A bar a task on a terminal; elsewhere (a log file) a line every ten seconds."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._what = ""
        self._task: TaskID | None = None
        self._bar: Progress | None = None
        self._first, self._start, self._logged = 0, 0.0, 0.0
        self._interrupted = False

    def listen(self) -> ConsoleReport:
        """Heed Ctrl-C (SIGINT) even where it comes while Python runs a finaliser, in which
        exceptions are lost: then the next report raises it.
        """
        signal.signal(signal.SIGINT, self._interrupt)
        return self

    def _interrupt(self, number: int, frame: object) -> None:
        self._interrupted = True
        raise KeyboardInterrupt

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        key = what.split(" |", maxsplit=1)[0]
        if key != self._what:
            self.close()
            self._what, self._first = key, done  # what was resumed took no time here
            self._start = self._logged = time.monotonic()
        if self.console.is_terminal:
            self._draw(what, done, total)
        elif done == total or time.monotonic() - self._logged > _LOG_SECONDS:
            self._logged = time.monotonic()
            spent = self._logged - self._start
            left = spent / max(done - self._first, 1) * (total - done)
            if spent > 2:
                self.console.print(
                    f"{what}: {done}/{total}, {spent:.0f} s, {left:.0f} s left",
                    highlight=False,
                    markup=False,
                )
        if done >= total:
            self.close()

    def _draw(self, what: str, done: int, total: int) -> None:
        if self._bar is None:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self.console)
            self._bar.start()
            self._task = self._bar.add_task(what, total=total, completed=done)
        assert self._task is not None
        self._bar.update(self._task, description=what, completed=done, total=total)

    def close(self) -> None:
        """Stop the bar that is shown, if any."""
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._task, self._what = None, None, ""


class Board(Generic[T]):
    """One table of how things stand: drawn anew on a terminal; elsewhere, where it has changed, at
    most every half minute.
    """

    def __init__(self, console: Console, draw: Callable[[T], RenderableType]) -> None:
        self.console, self.draw = console, draw
        self._live: Live | None = None
        self._logged = time.monotonic()

    def show(self, state: T) -> None:
        if not self.console.is_terminal:
            if time.monotonic() - self._logged > _BOARD_SECONDS:
                self._logged = time.monotonic()
                self.console.print(self.draw(state))
            return
        if self._live is None:
            self._live = Live(console=self.console, transient=True, auto_refresh=False)
            self._live.start()
        self._live.update(self.draw(state), refresh=True)

    def close(self) -> None:
        """Take the table away."""
        if self._live is not None:
            self._live.stop()
            self._live = None
