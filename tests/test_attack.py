"""The attacks in experiments/attack run, and tell right from wrong."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

ATTACK = Path(__file__).parents[1] / "experiments" / "attack"


@pytest.fixture(autouse=True)
def _its_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """They can be imported inside a test, and are forgotten after it."""
    monkeypatch.syspath_prepend(str(ATTACK))
    yield
    for name in {path.stem for path in ATTACK.glob("*.py")}:
        sys.modules.pop(name, None)


def test_attacks_run(tmp_path: Path) -> None:
    """One attempt of those that are short; what they find does not matter here."""
    names = ["fuzz", "inputs", "actions"]
    command = [sys.executable, str(ATTACK / "run.py"), *names, "--count", "1", "--jobs", "1"]
    command += ["--out", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    with (tmp_path / "results.csv").open() as file:
        rows = {row["attack"]: row for row in csv.DictReader(file)}
    assert set(rows) == set(names)
    assert all(int(row["tried"]) >= 1 for row in rows.values())
    with (tmp_path / "failures.csv").open() as file:
        failures = list(csv.DictReader(file))
    assert len(failures) == sum(int(row["wrong"]) for row in rows.values())
    assert done.returncode == bool(failures)


def test_an_attempt_is_the_same_again() -> None:
    import mutate

    value = {"model": "a", "space": {"name": "channel"}, "seed": [1, 2]}
    first, again = (mutate.changed(value, Random("0/7")) for _ in range(2))
    assert repr(first) == repr(again) and first[0] != value


@pytest.mark.parametrize(
    ("code", "text", "verdict"),
    [
        (0, "", "accepted"),
        (2, "warning: x\namc: 'x' does not exist\n", "refused"),
        (2, "amc: 'x'\ndoes not exist\n", "several lines"),
        (1, "Traceback (most recent call last):\nKeyError: 'x'\n", "traceback"),
        (
            1,
            "Traceback (most recent call last):\nKeyError: 'x'\nthis is a bug of amc's\n",
            "bug report",
        ),
        (None, "", "ran code"),
    ],
)
def test_how_a_command_ended(code: int | None, text: str, verdict: str) -> None:
    import doors

    assert doors.exit_status(code, text, doors.Call("cli", ("report",)))[0] == verdict


def test_the_code_of_strangers_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import doors
    import ground

    ground.plant(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert not Path(doors.CANARY).exists()
    exec((tmp_path / "canary.py").read_text(), {})
    assert doors.answer(doors.Call("cli", ("ls",))).verdict == "ran code"
