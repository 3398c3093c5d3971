"""Commands in processes of their own, which can be killed; and which processes live."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from doors import FORKS, Call, judged


@dataclass
class Running:
    """A call in a process of its own."""

    process: Any
    pipe: Any

    @classmethod
    def start(cls, call: Call, folder: Path, times: int = 1, seconds: float = 0.0) -> Running:
        """Make a call, ``times`` or as often as it goes in some seconds."""
        ours, theirs = FORKS.Pipe(duplex=False)
        process = FORKS.Process(target=_run, args=(theirs, str(folder), call, times, seconds))
        process.start()
        theirs.close()
        return cls(process, ours)

    def kill(self) -> None:
        """As the power goes: no handler runs."""
        self.process.kill()
        self.process.join()

    def end(self) -> tuple[str, str]:
        """Verdict and detail of the worst of its calls."""
        try:
            verdict, detail = self.pipe.recv()
        except EOFError:
            verdict, detail = "died", "without a word"
        self.process.join()
        return verdict, detail


def _run(pipe: Any, folder: str, call: Call, times: int, seconds: float) -> None:
    os.chdir(folder)
    sys.path.insert(0, folder)
    end, worst = time.monotonic() + seconds, ("accepted", "")
    count = 0
    while count < times or time.monotonic() < end:
        verdict, detail, _ = judged(call)
        count += 1
        if verdict != "accepted":
            worst = verdict, detail
            break
    pipe.send(worst)


def once(call: Call, folder: Path) -> tuple[str, str]:
    """Verdict and detail of a call, when it has ended."""
    return Running.start(call, folder).end()


def children(pid: int) -> Iterator[int]:
    """A process's children, theirs, and so on."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (found := parent_of(int(entry.name))) is not None:
            parents.setdefault(found, []).append(int(entry.name))
    waiting = list(parents.get(pid, []))
    while waiting:
        one = waiting.pop()
        yield one
        waiting += parents.get(one, [])


def parent_of(pid: int) -> int | None:
    """None of a process that is dead, or not reaped yet."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state == "Z" else int(parent)


def until(what: Callable[[], bool], process: Any, seconds: float = 60.0) -> bool:
    """Wait for something that a process does; whether it has come."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return True
        if not process.is_alive():
            return what()
        time.sleep(0.002)
    return False
