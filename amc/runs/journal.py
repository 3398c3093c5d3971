"""The journal of a run: append-only, one line an episode, the only source of truth."""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amc.errors import UserError
from amc.evaluate.outcome import Outcome
from amc.files import on_disk, write_bytes
from amc.runs.records import Episode


@dataclass(frozen=True)
class _Read:
    """What stands in a journal."""

    lines: list[dict[str, Any]]  # whole, from the first one on
    end: int  # of them, in bytes
    size: int  # of the file
    torn: bool  # whether what comes after them is only the begin of a line

    @property
    def damaged(self) -> bool:
        """Whether something comes after them that no killed process leaves."""
        return self.end < self.size and not self.torn


class Journal:
    """A file of episodes, numbered from 0. It may not be there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> list[dict[str, Any]]:
        """All whole lines; a torn last one (a run killed while writing, or one that writes just
        now) is left out.

        Raises:
            UserError: a line is damaged.
        """
        return self._sound().lines

    def cut_torn_line(self) -> None:
        """Cut a torn last line off. For the process that goes on with the run only."""
        found = self._sound()
        if found.end < found.size:
            self._cut(found.end)

    @property
    def is_damaged(self) -> bool:
        """Whether there is something in it that no killed process leaves."""
        return self._read().damaged

    def repair(self) -> str:
        """Cut it off where the damage begins: what is kept is whole episodes from the first one on,
        what is cut off lies in a file beside it. For the process that goes on with the run only.

        Returns:
            what was done; empty where nothing is damaged.
        """
        found = self._read()
        if not found.damaged:
            return ""
        paths = (self.path.with_name(f"{self.path.name}.damaged-{n}") for n in itertools.count(1))
        kept = next(path for path in paths if not path.exists())
        write_bytes(kept, self.path.read_bytes()[found.end :])
        self._cut(found.end)
        return (
            f"{str(self.path)!r} was damaged in line {len(found.lines) + 1}: the "
            f"{len(found.lines)} lines before it are whole, and the rest is kept in {kept.name!r}"
        )

    def append(self, episode: int, phase: str, outcome: Outcome) -> None:
        """One line, on the disk when this returns.

        Raises:
            UserError: the disk is full; the journal is as it was before.
        """
        path = self.path
        line = json.dumps({"episode": episode, "phase": phase, **outcome.as_line()}) + "\n"
        left = line.encode()
        with (
            on_disk(path),
            path.open("ab", buffering=0) as file,
        ):  # a buffer would try again at close
            before = file.tell()
            try:
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            except OSError:
                os.truncate(path, before)
                raise

    def _cut(self, end: int) -> None:
        with on_disk(self.path), self.path.open("r+b") as file:
            file.truncate(end)
            os.fsync(file.fileno())

    def _sound(self) -> _Read:
        found = self._read()
        if found.damaged:
            raise UserError(
                f"{str(self.path)!r} is damaged in line {len(found.lines) + 1}: the lines before "
                f"it are whole, and `amc resume {self.path.parent} --repair` goes on from them"
            )
        return found

    def _read(self) -> _Read:
        lines: list[dict[str, Any]] = []
        end = 0
        raw = self.path.read_bytes() if self.path.is_file() else b""
        while end < len(raw):
            line = raw[end : raw.find(b"\n", end) + 1]  # empty: a torn one
            entry = _episode(line, len(lines))
            if entry is None:
                return _Read(lines, end, len(raw), torn=not line)
            lines.append(entry)
            end += len(line)
        return _Read(lines, end, len(raw), torn=False)


def _episode(line: bytes, number: int) -> dict[str, Any] | None:
    """The episode of that number, if a line is it."""
    try:
        entry = Episode.model_validate_json(line)
    except ValueError:
        return None
    return entry.as_dict() if entry.episode == number else None
