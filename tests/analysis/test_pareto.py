"""Fronts over many runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from zoo import Mine, command, config_of

from amc.analysis.pareto import Point, hypervolume, non_dominated, pareto, standings
from amc.data.datasets import Dataset
from amc.errors import UserError
from amc.search import search

POINT = Point("a", 0, "run", 0, 0.5, 0.5, {}, {}, ())


def points(*pairs: tuple[float, float]) -> list[Point]:
    return [replace(POINT, ratio=ratio, search_accuracy=accuracy) for ratio, accuracy in pairs]


def pairs(found: list[Point]) -> list[tuple[float, float]]:
    return [(point.ratio, point.search_accuracy) for point in found]


def test_the_front_has_what_nothing_is_better_than() -> None:
    some = points((0.5, 0.8), (0.3, 0.6), (0.4, 0.6), (0.5, 0.7), (0.2, 0.1), (0.45, 0.85))
    assert pairs(non_dominated(some)) == [(0.2, 0.1), (0.3, 0.6), (0.45, 0.85)]
    assert non_dominated([]) == []


def test_the_hypervolume_by_hand() -> None:
    """0.2 to 0.5 at 0.4 above the reference, 0.5 to 1 at 0.7."""
    front = non_dominated(points((0.2, 0.5), (0.5, 0.8)))
    assert hypervolume(front, (1.0, 0.1)) == pytest.approx(0.3 * 0.4 + 0.5 * 0.7)
    assert hypervolume(front, (0.4, 0.6)) == 0  # nothing is left of it and above it
    more = non_dominated([*front, *points((0.3, 0.7))])
    assert hypervolume(more, (1.0, 0.1)) > hypervolume(front, (1.0, 0.1))


@pytest.fixture(scope="module")
def runs(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    model = Mine()
    for agent in ("random", "deep"):
        for ratio in (0.4, 0.6):
            for seed in (0, 1) if agent == "random" else (0,):
                options = [] if agent == "deep" else ["agent.episodes=4"]
                overrides = [f"budget.ratio={ratio}", f"seed={seed}", *options]
                config = config_of(f"agent={{name: {agent}}}", *overrides)
                search(config, model=model, dataset=digits, out=out, name=f"{agent}_{ratio}")
    return out


def test_one_network_only(runs: Path, tmp_path: Path, digits: Dataset) -> None:
    other = search(config_of("agent.episodes=1"), model=Mine(3, 8), dataset=digits, out=tmp_path)
    with pytest.raises(UserError, match=r"differ in macs.*one network"):
        pareto([runs, other.run.path])
    with pytest.raises(UserError, match="holds no run"):
        pareto([tmp_path / "nothing"])
    with pytest.raises(UserError, match="unknown cost axis 'mac': did you mean 'macs'"):
        pareto([runs / "deep_0.4"], "mac")
    with pytest.raises(UserError, match="searched without a device"):
        pareto([runs / "deep_0.4"], "latency_ms")


def test_what_the_runs_delivered(runs: Path) -> None:
    seeds = [next((runs / f"random_{ratio}").glob("s0*")) for ratio in (0.4, 0.6)]
    both = {curve.agent: curve for curve in pareto([runs]).curves()}
    assert [part.seeds for part in both["random"].delivered] == [2, 2]
    assert len(both["random"].hypervolume) == 2 and len(both["deep"].hypervolume) == 1
    found = pareto([*seeds, runs / "deep_0.4", runs / "deep_0.6"])
    assert len(found.points) == 2 * 5 + 2
    curves = {curve.agent: curve for curve in found.curves()}
    assert set(curves) == {"random", "deep"}
    for agent, curve in curves.items():
        assert [part.seeds for part in curve.delivered] == [1, 1]
        low, high = (part.ratio for part in curve.delivered)
        assert low <= 0.4 < high <= 0.6, agent
    best = json.loads((seeds[0] / "best.json").read_text())
    assert curves["random"].delivered[0].mean == best["search_accuracy"]
    assert all(p.ratio == p.costs["macs"] / found.original for p in found.points)  # type: ignore[operator]
    rows = standings(found.curves())
    assert rows[0].relative == 1 and {row.agent for row in rows} == {"random", "deep"}
    on_params = pareto(seeds, "params")
    assert on_params.original == best["baseline"]["params"]


def test_the_command(runs: Path, tmp_path: Path) -> None:
    paths = [str(runs / "deep_0.4"), str(runs / "deep_0.6")]
    done = command("pareto", *paths, "--out", str(tmp_path), "--json", "--reference", "1,0.2")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    front = pd.read_csv(tmp_path / "pareto.csv")
    assert len(front) == len(summary["front"]) and summary["reference"] == [1, 0.2]
    assert front["macs_ratio"].is_monotonic_increasing
    assert (tmp_path / "pareto.png").stat().st_size > 10_000
    assert {"curves.csv", "hypervolume.csv"} <= {path.name for path in tmp_path.iterdir()}
    wrong = command("pareto", *paths, "--reference", "none")
    assert wrong.returncode == 2 and "as 1,0.1, are expected" in wrong.stderr
