"""Many runs at a time: planned, run, killed, taken up again; on this machine and on Ray."""

from __future__ import annotations

import json
import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest
from zoo import command, journal

from amc.errors import UserError
from amc.parallel.workers import LocalWorkers, RayWorkers
from amc.runs.directory import Run, runs_in
from amc.sweep import Sweep, plan, sweep, values_of

PRESET = "digits_resnet8_channel_macs50"
TINY = [
    "train.epochs=2",
    "allow_untrained=true",
    "evaluate.images=100",
    "evaluate.calibration_images=60",
    "agent.episodes=6",
]


def test_values_are_split_at_outer_commas() -> None:
    assert values_of("0.3,0.5") == ["0.3", "0.5"]
    assert values_of("[a,b],[c],'d,e'") == ["[a,b]", "[c]", "'d,e'"]
    assert values_of("{name: td3, episodes: 3}") == ["{name: td3, episodes: 3}"]


def test_all_combinations_are_planned() -> None:
    overrides = ["budget.ratio=0.3,0.5", "seed=0,1", "agent=random,uniform", "reward=kl"]
    name, planned = plan(PRESET, overrides)
    assert name == PRESET and len(planned) == 8
    found = {(one.name, one.config.seed) for one in planned}
    assert ("ratio=0.3+agent=uniform", 1) in found and len(found) == 8
    uniform = next(one.config for one in planned if one.config.agent["name"] == "uniform")
    assert uniform.agent == {"name": "uniform"} and uniform.reward == "kl"
    assert plan(PRESET, ["seed=0,1"])[1][1].name == PRESET
    with pytest.raises(UserError, match="two runs of the sweep are the same"):
        plan(PRESET, ["budget.ratio=0.3,0.3"])
    with pytest.raises(UserError, match=r"did you mean .budget\.ratio."):
        plan(PRESET, ["budget.ration=0.3,0.5"])
    with pytest.raises(UserError, match="not of the form"):
        plan(PRESET, ["budget.ratio"])


def test_what_is_done_is_skipped_and_a_killed_run_goes_on(tmp_path: Path) -> None:
    overrides = [*TINY, "agent=random", "budget.ratio=0.4,0.6"]
    killed: list[int] = []

    class Fragile(LocalWorkers):
        """One worker is killed in the middle of its run."""

        def ended(self) -> dict:  # type: ignore[type-arg]
            journals = list(tmp_path.rglob("episodes.jsonl"))
            if not killed and any(len(path.read_text().splitlines()) > 2 for path in journals):
                process = next(iter(self._running.values()))[0]
                os.kill(process.pid, signal.SIGKILL)
                process.join()
                killed.append(process.pid)
            return super().ended()

    seen: list[int] = []

    def show(found: Sweep) -> None:
        seen.append(sum(one.episodes for one in found.planned))

    found = sweep(PRESET, overrides, out=tmp_path, jobs=1, workers=Fragile, show=show)
    assert killed and [one.state for one in found.planned] == ["done", "done"]
    assert [one.attempts for one in found.planned] == [2, 1]
    assert seen == sorted(seen) and seen[-1] == 14
    before = {path: (path / "episodes.jsonl").read_bytes() for path in found.ended}
    assert all(len(Run.open(path).lines()) == 7 for path in found.ended)
    again = sweep(PRESET, overrides, out=tmp_path, workers=None)  # type: ignore[arg-type]
    assert again.ended == found.ended  # nobody was needed
    assert all((path / "episodes.jsonl").read_bytes() == text for path, text in before.items())


def test_a_run_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    overrides = [*TINY, "agent=uniform", "budget.ratio=0.001,0.6"]
    done = command("sweep", PRESET, *overrides, "--out", str(tmp_path), "--jobs", "2")
    assert done.returncode == 1
    assert "1 of 2 runs done" in done.stdout and "ratio=0.001" in done.stderr
    assert "smallest" in done.stderr or "cannot be" in done.stderr, done.stderr


def test_on_a_ray_cluster_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    overrides = [*TINY, "agent.episodes=12", "agent=random", "budget.ratio=0.4,0.6"]
    killed: list[int] = []

    class Fragile(RayWorkers):
        """A worker process of the cluster is killed in the middle of its run."""

        def ended(self) -> dict:  # type: ignore[type-arg]
            journals = list(tmp_path.rglob("episodes.jsonl"))
            if not killed and any(len(path.read_text().splitlines()) > 2 for path in journals):
                workers = _processes("ray::_on_ray")
                assert len(workers) == 2
                os.kill(workers[0], signal.SIGKILL)
                killed.append(workers[0])
            return super().ended()

    workers = partial(Fragile)
    started = time.monotonic()
    found = sweep(PRESET, overrides, out=tmp_path / "ray", jobs=2, workers=workers)
    assert killed, time.monotonic() - started
    assert [one.state for one in found.planned] == ["done", "done"], [
        one.error for one in found.planned
    ]
    assert sorted(one.attempts for one in found.planned) == [1, 2]
    local = sweep(PRESET, overrides, out=tmp_path / "local", jobs=2)
    for ours, theirs in zip(found.ended, local.ended, strict=True):
        assert journal(ours) == journal(theirs)
        assert json.loads((ours / "best.json").read_text())["strategy"]
    assert len(runs_in(tmp_path / "ray")) == 2  # no second beginning


def _processes(name: str) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                title = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if title.startswith(name.encode()):
                found.append(int(folder.name))
    return sorted(found)
