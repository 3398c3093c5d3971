"""Comparing runs of several agents and seeds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from test_search import command
from zoo import Mine, config_of

from amc.analysis.compare import Curve, compare, tables
from amc.analysis.statistics import interval
from amc.data.datasets import Dataset
from amc.errors import UserError
from amc.runs.directory import Run
from amc.search import search


@pytest.fixture(scope="module")
def runs(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    torch.manual_seed(0)
    model, out = Mine(), tmp_path_factory.mktemp("runs")
    found = []
    for agent in ("random", "genetic"):
        for seed in range(3):
            overrides = [f"agent={{name: {agent}, episodes: 8}}", f"seed={seed}"]
            config = config_of(*overrides)
            found.append(search(config, model=model, dataset=digits, out=out / agent).run.path)
    return found


def test_curves_are_the_journals(runs: list[Path]) -> None:
    comparison = compare(runs)
    for path, curve in zip(runs, comparison.curves, strict=True):
        lines, run = Run.open(path).lines(), Run.open(path)
        assert len(curve.best) == len(lines) == 9
        for index in range(9):
            best = max(lines[: index + 1], key=lambda line: line["reward"])
            assert curve.best[index] == best["search_accuracy"]
        assert curve.best[-1] == run.best["search_accuracy"]
        assert (np.diff(curve.seconds) >= 0).all() and curve.seed == run.config.seed
        assert curve.evaluations_to(curve.best[0]) == 1
        assert curve.evaluations_to(2.0) is None


def test_by_reward_the_curve_only_rises(runs: list[Path]) -> None:
    for curve in compare(runs, "reward").curves:
        assert (np.diff(curve.best) >= 0).all()


def test_raced_strategies_are_never_the_best(runs: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    for name in ("config.yaml", "provenance.json"):
        (path / name).write_bytes((runs[0] / name).read_bytes())
    lines = [json.loads(line) for line in (runs[0] / "episodes.jsonl").read_text().splitlines()]
    lines[-1].update(reward=99.0, search_accuracy=1.0, stopped_after=50)
    (path / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert Curve.of(Run.open(path), "x", "search_accuracy").best[-1] < 1


def test_intervals_and_tests_are_what_they_say(runs: list[Path]) -> None:
    mean, low, high = interval(np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]]))
    half = stats.t.ppf(0.975, 2) / np.sqrt(3)
    assert mean == pytest.approx([2, 5])
    assert low == pytest.approx([2 - half, 5]) and high == pytest.approx([2 + half, 5])
    assert np.isnan(interval(np.array([[1.0]]))[1]).all()
    comparison = compare(runs)
    (pair,) = comparison.pairs()
    ends = {
        label: [curve.best[-1] for curve in curves] for label, curves in comparison.by_label.items()
    }
    first, second = ends[pair.first], ends[pair.second]
    assert (
        pair.difference == pytest.approx(np.mean(first) - np.mean(second)) and pair.difference >= 0
    )
    better = sum(int(a > b) - int(a < b) for a in first for b in second)
    assert pair.effect == pytest.approx(better / 9)
    paired = np.subtract(first, second)  # seed by seed
    half = stats.t.ppf(0.975, 2) * paired.std(ddof=1) / np.sqrt(3)
    assert (pair.low, pair.high) == pytest.approx((paired.mean() - half, paired.mean() + half))
    standings = comparison.standings()
    assert [row.mean for row in standings] == sorted((row.mean for row in standings), reverse=True)
    assert all(row.seeds == 3 and row.evaluations == 9 for row in standings)
    assert len(tables(comparison)["curves"]) == 6 * 9


def test_agents_of_one_name_are_told_apart(digits: Dataset, tmp_path: Path) -> None:
    paths, model = [], Mine()
    for extra in ("agent.screened=1", "agent.screened=3", "budget.fill=false"):
        config = config_of("agent={name: genetic, episodes: 2}", extra)
        paths.append(search(config, model=model, dataset=digits, out=tmp_path / extra).run.path)
    labels = [curve.label for curve in compare(paths).curves]
    assert labels == ["genetic screened=1", "genetic screened=3", "genetic screened=2"]
    two = [curve.label for curve in compare([paths[0], paths[1], paths[1]]).curves]
    assert two == ["genetic screened=1", "genetic screened=3", "genetic screened=3"]


def test_other_problems_are_refused(digits: Dataset, tmp_path: Path, runs: list[Path]) -> None:
    config = config_of("agent={name: random, episodes: 2}", "budget.ratio=0.4")
    other = search(config, model=Mine(), dataset=digits, out=tmp_path).run.path
    with pytest.raises(UserError, match="differ in budget"):
        compare([runs[0], other])
    with pytest.raises(UserError, match="not a run directory"):
        compare([tmp_path])


def test_from_the_command_line(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "found"
    done = command("compare", *map(str, runs), "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    standings = json.loads(done.stdout.splitlines()[-1])["standings"]
    assert {row["label"] for row in standings} == {"random", "genetic"}
    assert {path.name for path in out.iterdir()} == {
        "compare.png",
        "curves.csv",
        "standings.csv",
        "pairs.csv",
    }
    wrong = command("compare", str(runs[0]), "--by", "rewards", "--out", str(out))
    assert wrong.returncode == 2 and "did you mean 'reward'" in wrong.stderr


def test_bands_over_seconds_are_what_was_known_by_then(runs: list[Path]) -> None:
    comparison = compare(runs, "reward")
    for band in comparison.bands("seconds"):
        curves = comparison.by_label[band.label]
        for x, mean in zip(band.x[::50], band.mean[::50], strict=True):
            known = [curve.best[curve.seconds <= x][-1] for curve in curves]
            assert mean == pytest.approx(np.mean(known))
    for band in comparison.bands("evaluations"):
        assert band.x.tolist() == list(range(1, 10)) and (np.diff(band.mean) >= 0).all()
