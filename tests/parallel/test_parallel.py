"""Candidates side by side: the journal does not depend on it."""

from __future__ import annotations

import copy
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from zoo import Mine, config_of

from amc.config import Config
from amc.data.datasets import Dataset
from amc.evaluate.evaluator import Evaluator
from amc.evaluate.outcome import Candidate, Measured
from amc.parallel.measurers import LocalMeasurers, RayMeasurers
from amc.search import resume, search

OPTIONS = {
    "random": ["batch=5"],
    "genetic": ["children=5", "population=4"],
    "ddpnas": ["subrounds=1"],
    "tpe": ["startup=6"],
    "ddpg": ["envs=4", "warmup_episodes=4"],
}


def raced(agent: str) -> Config:
    """Sixteen episodes, in batches that the last one need not fill, with races."""
    options = [f"agent.{option}" for option in OPTIONS[agent]]
    own = [f"agent={agent}", "agent.episodes=16", *options]
    return config_of(*own, "reward=kl", "evaluate.images=300", "evaluate.racing=0.6")


def model() -> Mine:
    torch.manual_seed(0)
    return Mine()


def journal(run: Any) -> list[dict[str, Any]]:
    """Without the times."""
    lines: list[dict[str, Any]] = run.lines()
    return [{k: v for k, v in line.items() if k not in ("seconds", "profile")} for line in lines]


class Backwards:
    """Measures a batch with another evaluator, the last one first."""

    def __init__(self, evaluator: Evaluator, jobs: int) -> None:
        self.evaluator = copy.copy(evaluator)
        self.batches: list[int] = []

    def measure(self, candidates: Sequence[Candidate]) -> Iterator[Measured]:
        self.batches.append(len(candidates))
        yield from reversed([self.evaluator.measure(one) for one in reversed(candidates)])

    def close(self) -> None:
        pass


@pytest.mark.parametrize("agent", OPTIONS)
def test_the_journal_is_the_same_however_many_are_measured_side_by_side(
    agent: str, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[Backwards] = []

    def make(evaluator: Evaluator, jobs: int) -> Backwards:
        used.append(Backwards(evaluator, jobs))
        return used[-1]

    monkeypatch.setattr(sys.modules["amc.search"], "LocalMeasurers", make)
    runs = [
        search(raced(agent), model=model(), dataset=digits, out=tmp_path / str(jobs), jobs=jobs)
        for jobs in (1, 3)
    ]
    one_by_one, together = (journal(result.run) for result in runs)
    assert together == one_by_one
    assert len(together) == 17
    assert any(line["stopped_after"] is not None for line in together)
    assert max(used[0].batches) > 1


@pytest.mark.parametrize("agent", ["random", "ddpg"])
def test_a_search_that_is_stopped_within_a_batch_goes_on_the_same(
    agent: str, digits: Dataset, tmp_path: Path
) -> None:
    straight = search(raced(agent), model=model(), dataset=digits, out=tmp_path / "straight")
    for stop in (3, 7, 13):
        result = search(raced(agent), model=model(), dataset=digits, out=tmp_path / str(stop))
        path = result.run.path
        whole = (path / "episodes.jsonl").read_text().splitlines(keepends=True)
        (path / "episodes.jsonl").write_text("".join(whole[:stop]))
        (path / "checkpoint" / "agent.pt").unlink()
        resume(path, model=model(), dataset=digits)
        assert journal(result.run) == journal(straight.run)


def killing(
    monkeypatch: pytest.MonkeyPatch, measurers: type[Any], kill: Callable[[Any], None]
) -> list[Any]:
    """Once, after the first result of a batch; what was killed is in the list."""
    killed: list[Any] = []
    measure = measurers.measure

    def deadly(self: Any, candidates: Sequence[Candidate]) -> Iterator[Measured]:
        results = measure(self, candidates)
        yield next(results)
        if not killed:
            kill(self)
            killed.append(self)
        yield from results

    monkeypatch.setattr(measurers, "measure", deadly)
    return killed


def test_processes_measure_the_same_and_one_that_is_killed_is_replaced(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = search(raced("random"), model=model(), dataset=digits, out=tmp_path / "1")

    def kill(measurers: LocalMeasurers) -> None:
        assert measurers._pool is not None
        os.kill(next(iter(measurers._pool._processes)), signal.SIGKILL)

    killed = killing(monkeypatch, LocalMeasurers, kill)
    two = search(raced("random"), model=model(), dataset=digits, out=tmp_path / "2", jobs=2)
    assert killed
    assert journal(two.run) == journal(alone.run)


def test_actors_of_ray_measure_the_same_and_one_that_is_killed_is_replaced(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    alone = search(raced("random"), model=model(), dataset=digits, out=tmp_path / "1")

    def kill(measurers: RayMeasurers) -> None:
        ray.kill(measurers._actors[0], no_restart=False)

    killed = killing(monkeypatch, RayMeasurers, kill)
    options: dict[str, Any] = {"jobs": 2, "ray": "local", "out": tmp_path / "2"}
    two = search(raced("random"), model=model(), dataset=digits, **options)
    assert killed
    assert journal(two.run) == journal(alone.run)
