"""How anything long reports its progress: one callable ``report(what, done, total)``, shown as a
bar with the time left.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
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


def silent(what: str, done: int, total: int) -> None:
    """Report nothing."""


class ConsoleReport:
    """A bar a task on a terminal; elsewhere (a log file) a line every ten seconds."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._what = ""
        self._task: TaskID | None = None
        self._bar: Progress | None = None
        self._start = self._logged = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        key = what.split(" |", maxsplit=1)[0]
        if key != self._what:
            self.close()
            self._what, self._start = key, time.monotonic()
            self._logged = self._start
        if self.console.is_terminal:
            self._draw(what, done, total)
        elif done == total or time.monotonic() - self._logged > _LOG_SECONDS:
            self._logged = time.monotonic()
            spent = self._logged - self._start
            left = spent / max(done, 1) * (total - done)
            if spent > 2:
                self.console.print(
                    f"{what}: {done}/{total}, {spent:.0f} s, {left:.0f} s left", highlight=False
                )
        if done >= total:
            self.close()

    def _draw(self, what: str, done: int, total: int) -> None:
        if self._bar is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self.console)
            self._bar.start()
            self._task = self._bar.add_task(what, total=total)
        assert self._task is not None
        self._bar.update(self._task, description=what, completed=done, total=total)

    def close(self) -> None:
        """Stop the bar that is shown, if any."""
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._task, self._what = None, None, ""
