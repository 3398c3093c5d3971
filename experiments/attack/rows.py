"""What an attack gives: typed rows, and the goals that they are judged by."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

LIMIT_SECONDS = 10.0  # of the processor
LIMIT_MB = 1024.0  # beyond what the process had before

GOOD = ("accepted", "refused", "equal", "within")
"""Verdicts that are right unless an attack says otherwise."""


@dataclass(frozen=True)
class Row:
    """One attempt."""

    attack: str
    number: int  # with the seed it makes the attempt again: run.py ATTACK --seed S --case N
    what: str  # the file, the command, the network
    how: str  # what was done to it
    verdict: str  # accepted, refused, traceback, bug report, ran code, slow, memory, ...
    right: bool
    seconds: float = 0.0
    memory_mb: float = 0.0
    detail: str = ""  # the exception and its last frame, or the sentence


@dataclass(frozen=True)
class Total:
    """One line of the table."""

    attack: str
    tried: int
    right: int
    refused: int
    accepted: int
    bug_reports: int  # tracebacks that end with the sentence that it is amc's bug
    wrong: int
    worst_seconds: float
    peak_mb: float
    seconds: float  # of the whole attack, by the clock

    @classmethod
    def of(cls, attack: str, rows: Sequence[Row], seconds: float) -> Total:
        def count(verdict: str) -> int:
            return sum(row.verdict == verdict for row in rows)

        return cls(
            attack=attack,
            tried=len(rows),
            right=sum(row.right for row in rows),
            refused=count("refused"),
            accepted=count("accepted"),
            bug_reports=count("bug report"),
            wrong=sum(not row.right for row in rows),
            worst_seconds=round(max((row.seconds for row in rows), default=0.0), 2),
            peak_mb=round(max((row.memory_mb for row in rows), default=0.0)),
            seconds=round(seconds),
        )


def table(totals: Sequence[Total]) -> str:
    """As it stands in the README."""
    names = [field.name for field in fields(Total)]
    lines = [f"| {' | '.join(name.replace('_', ' ') for name in names)} |"]
    lines.append("|" + "---|" * len(names))
    lines += [f"| {' | '.join(str(value) for value in asdict(row).values())} |" for row in totals]
    return "\n".join(lines)


def write(path: Path, rows: Sequence[Row] | Sequence[Total], kind: type) -> None:
    """A csv, in whose place the old one was."""
    fresh = path.with_suffix(".new")
    with fresh.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        made = csv.DictWriter(file, [f.name for f in fields(kind)], lineterminator="\n")
        made.writeheader()
        made.writerows(shortened(asdict(row)) for row in rows)
    fresh.replace(path)


def shortened(row: dict[str, object]) -> dict[str, object]:
    """With two decimals, and no cell longer than a few lines."""
    return {
        key: round(value, 2)
        if isinstance(value, float)
        else str(value).encode("unicode_escape").decode()[:300]
        if isinstance(value, str)
        else value
        for key, value in row.items()
    }


def kinds(rows: Sequence[Row]) -> str:
    """What went wrong, alike failures in one line, the most frequent first."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if not row.right:
            groups.setdefault((row.verdict, row.detail.rpartition(" at ")[2][:120]), []).append(row)
    lines = []
    for (verdict, _), found in sorted(groups.items(), key=lambda item: -len(item[1])):
        first = found[0]
        numbers = ",".join(str(row.number) for row in found[:5])
        what = ", ".join(sorted({row.what for row in found})[:4])
        text = f"- {len(found)} x {verdict}: {first.detail[:260]}\n    {what}; {first.how[:120]}"
        lines.append(f"{text} [{first.attack} {numbers}]".encode("unicode_escape").decode())
    return "\n".join(line.replace("\\n", "\n") for line in lines)
