"""Attacks on amc itself: README.md beside this file.

    python experiments/attack/run.py                     all of them, two at a time
    python experiments/attack/run.py fuzz inputs         some
    python experiments/attack/run.py fuzz --case 123     one attempt of one again, and what it said

Ctrl-C keeps what is done. The exit status is 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
# the processes that are attacked find what lies beside this file, and amc
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
os.environ["PYTHONSAFEPATH"] = "1"  # and no amc of the current folder
os.environ.setdefault("OMP_NUM_THREADS", "1")

from rows import Row, Total, kinds, table, write  # noqa: E402

SIZES = {"kills": 12, "disk": 60, "actions": 10_400, "fuzz": 1000, "inputs": 500, "writers": 8}
"""How many attempts each makes, the longest attack first."""
Attack = Callable[[Path, int, range], Iterator[Row]]


def tried(
    name: str, folder: Path, seed: int, numbers: range, show: bool
) -> tuple[list[Row], float, bool]:
    """The rows of one attack in a folder, its seconds, and whether it was stopped."""
    attack: Attack = import_module(name).attack
    rows: list[Row] = []
    start, stopped = time.monotonic(), False
    try:
        for row in attack(folder, seed, numbers):
            rows.append(row)
            if show or not row.right:
                text = f"{name} {row.number} {row.what}: {row.how[:100]}: {row.verdict}"
                shown = f"{text} ({row.seconds:.1f} s, {row.memory_mb:.0f} MB) {row.detail}"
                print(shown.encode("unicode_escape").decode()[:600], flush=True)
    except KeyboardInterrupt:
        stopped = True
    return rows, time.monotonic() - start, stopped


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SIZES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of attempts")
    parser.add_argument("--count", type=int, help="so many attempts of each instead")
    parser.add_argument("--case", type=int, help="this attempt only")
    parser.add_argument("--jobs", type=int, default=2, help="attacks at a time")
    parser.add_argument("--out", type=Path, default=HERE, help="the folder of the csv files")
    chosen = parser.parse_args()
    if strange := set(chosen.names) - set(SIZES):
        parser.error(f"there is no attack {', '.join(sorted(strange))}: {', '.join(SIZES)}")
    chosen.names = chosen.names or list(SIZES)
    if chosen.jobs > 1 and len(chosen.names) > 1:
        return side_by_side(chosen)
    with tempfile.TemporaryDirectory(prefix="amc-attack-") as scratch:
        os.environ["XDG_CONFIG_HOME"] = (
            scratch  # what one attack names is no other's, nor the user's
        )
        return all_of(chosen.names, chosen, Path(scratch))


def side_by_side(chosen: argparse.Namespace) -> int:
    """Each attack in a process of its own, so many at a time."""
    options = ["--seed", str(chosen.seed), "--scale", str(chosen.scale), "--jobs", "1"]
    for name in ("count", "case"):
        if getattr(chosen, name) is not None:
            options += [f"--{name}", str(getattr(chosen, name))]
    with tempfile.TemporaryDirectory(prefix="amc-attacks-") as folder:

        def start(name: str) -> int:
            place = ["--out", str(Path(folder) / name)]
            return subprocess.call([sys.executable, __file__, name, *options, *place])

        with ThreadPoolExecutor(chosen.jobs) as pool:
            ends = list(pool.map(start, chosen.names))
        chosen.out.mkdir(parents=True, exist_ok=True)
        for file in ("results.csv", "failures.csv"):
            parts = [Path(folder) / name / file for name in chosen.names]
            texts = [part.read_text() for part in parts if part.is_file()]
            lines = [text.splitlines(keepends=True) for text in texts]
            rows = [row for one in lines for row in one[1:]]
            (chosen.out / file).write_text("".join([*lines[0][:1], *rows]))
        print((chosen.out / "results.csv").read_text())
    return max(ends)


def all_of(names: list[str], chosen: argparse.Namespace, scratch: Path) -> int:
    """Make attacks one after the other, and write what is known after each."""
    rows: list[Row] = []
    totals: list[Total] = []
    for name in names:
        numbers = range(chosen.count or max(1, round(chosen.scale * SIZES[name])))
        if chosen.case is not None:
            numbers = range(chosen.case, chosen.case + 1)
        found, seconds, stopped = tried(
            name, scratch, chosen.seed, numbers, chosen.case is not None
        )
        rows += found
        totals.append(Total.of(name, found, seconds))
        if chosen.case is None:
            chosen.out.mkdir(parents=True, exist_ok=True)
            write(chosen.out / "results.csv", totals, Total)
            write(chosen.out / "failures.csv", [row for row in rows if not row.right], Row)
        if stopped:
            break
    print(kinds(rows))
    print(table(totals))
    return int(any(not row.right for row in rows))


if __name__ == "__main__":
    sys.exit(main())
