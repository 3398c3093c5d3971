"""Runs are credited with their own strategies, and put beside each other only where they can be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from amc.agents.proposing import OneShotAgent
from scipy import stats
from zoo import Mine, command, config_of

from amc.analysis.compare import Comparison, Curve, compare
from amc.analysis.own import counted
from amc.analysis.pareto import pareto
from amc.analysis.statistics import rank_sum_p, welch
from amc.data.datasets import Dataset
from amc.errors import UserError
from amc.files import write_json
from amc.registry import HANDCRAFTED, KNOWN, ONE_SHOT, lookup
from amc.runs.directory import Run
from amc.search import search
from amc.views.pictures import plot_comparison, plot_search


@pytest.fixture(scope="module")
def runs(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each agent that searches nothing, of random search with two seeds, and of a user's
    own agent that searches nothing.
    """
    torch.manual_seed(0)
    model, out = Mine(), tmp_path_factory.mktemp("runs")
    (out / "ones_own.py").write_text(
        "import numpy as np\n"
        "from amc.agents.proposing import OneShotAgent\n"
        "class Low(OneShotAgent):\n"
        "    def proposals(self):\n"
        "        return {'low': np.full(self.steps, 0.1)}\n"
    )
    found = {}
    agents = [*HANDCRAFTED, "ones_own:Low", "random 0", "random 1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(out)
        for agent in agents:
            name, _, seed = agent.partition(" ")
            own = ["agent.episodes=3", f"seed={seed}"] if seed else []
            config = config_of(f"agent={{name: '{name}'}}", "reward=kl", *own)
            found[agent] = search(config, model=model, dataset=digits, out=out / agent).run.path
    return found


def copied(path: Path, to: Path, **facts: Any) -> Path:
    """A run with other facts in its provenance."""
    shutil.copytree(path, to)
    run = Run.open(to)
    run.update_provenance(**facts)
    return to


def rewritten(run: Path, *changes: dict[str, Any]) -> None:
    """Change the first lines of a journal."""
    journal = run / "episodes.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    for line, change in zip(lines, changes, strict=False):
        line.update(change)
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_agents_that_search_nothing_are_known_by_name() -> None:
    found = {name for name in KNOWN["agent"] if issubclass(lookup("agent", name), OneShotAgent)}
    assert found == set(ONE_SHOT)


def test_an_agent_that_searches_nothing_is_not_credited_with_uniform(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    for agent in ("shallow", "deep", "ones_own:Low"):
        path = tmp_path / agent.replace(":", "_")
        shutil.copytree(runs[agent], path)
        rewritten(path, {"reward": 0.0, "search_accuracy": 1.0})  # uniform would be the best
        run = Run.open(path)
        own = run.lines()[1:]
        assert counted(run) == own and len(own) == 1
        (curve,) = compare([path]).curves
        assert curve.best.tolist() == [own[0]["search_accuracy"]]
        assert [point.episode for point in pareto([path]).points] == [1]
    for agent in ("uniform", "random 0"):
        run = Run.open(runs[agent])
        assert len(compare([run.path]).curves[0].best) == len(run.lines())
        assert 0 in [point.episode for point in pareto([run.path]).points]


def test_vbmf_is_not_credited_with_uniform_either(digits: Dataset, tmp_path: Path) -> None:
    space, agent = "space={name: lowrank, min_ratio: 0}", "agent={name: vbmf}"
    config = config_of(space, agent, "budget.ratio=0.6")
    path = search(config, model=Mine(), dataset=digits, out=tmp_path).run.path
    own = len(Run.open(path).lines()) - 1
    assert len(compare([path]).curves[0].best) == own
    assert 0 not in [point.episode for point in pareto([path]).points]


def test_a_run_whose_own_strategy_does_not_count_is_refused(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    path = copied(runs["deep"], tmp_path / "deep")
    rewritten(path, {}, {"stopped_after": 50})
    with pytest.raises(UserError, match="no episode of its agent's own"):
        compare([path])


def test_there_is_no_best_before_the_first_strategy_that_counts(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    path = copied(runs["random 0"], tmp_path / "run")
    rewritten(path, {"feasible": False}, {"feasible": False})
    (curve,) = compare([path]).curves
    assert np.isnan(curve.best[:2]).all() and not np.isnan(curve.best[2:]).any()
    plot_comparison(compare([path, runs["random 1"]]), tmp_path / "compare.png")
    rows = [point.episode for point in pareto([path]).points]
    assert 0 not in rows and 1 not in rows
    run = Run.open(path)
    plot_search(run.lines(), run.write_best(), tmp_path / "search.png")


def curves(label: str, ends: dict[int, float]) -> list[Curve]:
    return [Curve(label, seed, np.array([end]), np.array([1.0])) for seed, end in ends.items()]


def test_a_difference_and_its_interval_are_of_the_same_runs() -> None:
    ours, theirs = {0: 0.9, 1: 0.8, 2: 0.1}, {0: 0.7, 1: 0.5, 3: 0.2}
    (pair,) = Comparison("reward", (*curves("a", ours), *curves("b", theirs))).pairs()
    assert pair.paired and pair.seeds == 2
    assert pair.difference == pytest.approx(0.25)
    half = stats.t.ppf(0.975, 1) * np.std([0.2, 0.3], ddof=1) / np.sqrt(2)
    assert (pair.low, pair.high) == pytest.approx((0.25 - half, 0.25 + half))


def test_without_common_seeds_the_interval_is_welchs() -> None:
    ours, theirs = {0: 0.9, 1: 0.8, 2: 0.6}, {0: 0.7, 3: 0.2, 4: 0.3, 5: 0.5}
    (pair,) = Comparison("reward", (*curves("a", ours), *curves("b", theirs))).pairs()
    a, b = np.array(list(ours.values())), np.array(list(theirs.values()))
    known = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert not pair.paired and pair.seeds == 0
    assert pair.difference == pytest.approx(a.mean() - b.mean())
    assert (pair.low, pair.high) == pytest.approx((known.low, known.high))
    assert welch(np.ones(2), np.zeros(3)) == (1.0, 1.0, 1.0)
    (single,) = Comparison("reward", (*curves("a", {0: 1.0}), *curves("b", theirs))).pairs()
    assert single.difference == pytest.approx(1 - b.mean()) and np.isnan(single.low)


def test_the_p_value_is_exact_with_ties_too() -> None:
    generator = np.random.default_rng(0)
    for sizes in ((3, 3), (2, 5), (4, 4), (5, 3)):
        a, b = (generator.integers(0, 4, size).astype(float) for size in sizes)
        ranks = stats.rankdata(np.concatenate([a, b]))
        known = stats.permutation_test(
            (ranks[: len(a)], ranks[len(a) :]), lambda x, y: np.sum(x), n_resamples=np.inf
        )
        assert rank_sum_p(a, b) == pytest.approx(known.pvalue)
        assert rank_sum_p(a, b) == pytest.approx(rank_sum_p(b, a))
        apart = generator.normal(size=sizes[0]), generator.normal(0.5, size=sizes[1])
        exact = stats.mannwhitneyu(*apart, method="exact").pvalue
        assert rank_sum_p(*apart) == pytest.approx(exact)
    assert rank_sum_p(np.ones(3), np.ones(4)) == 1
    ties = dict.fromkeys(range(3), 1.0), dict.fromkeys(range(3), 0.0)
    (pair,) = Comparison("reward", (*curves("a", ties[0]), *curves("b", ties[1]))).pairs()
    assert pair.p == pytest.approx(2 / 20)
    many = generator.integers(0, 50, (2, 120)).astype(float)
    about = stats.mannwhitneyu(*many, method="asymptotic").pvalue
    assert rank_sum_p(*many) == pytest.approx(about, rel=0.02)


def test_other_weights_images_and_data_are_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    first, other = runs["random 0"], runs["deep"]
    sums = Run.open(other).provenance["checksums"]
    changes: dict[str, dict[str, Any]] = {
        "weights": {"base_sha256": "another"},
        "the data": {"checksums": {**sums, "data": "another"}},
        "the pixels of the held-out images": {"checksums": {**sums, "heldout_sample": "another"}},
        "the held-out images": {"checksums": {**sums, "heldout_indices": "another"}},
    }
    for name, facts in changes.items():
        path = copied(other, tmp_path / name, **facts)
        with pytest.raises(UserError, match=rf"differ in .*{name} "):
            compare([first, path])
        if "heldout_indices" not in name and name != "the held-out images":
            with pytest.raises(UserError, match=rf"differ in .*{name} "):
                pareto([first, path])
    assert compare([first, runs["random 1"]]).curves  # seeds draw held-out images of their own
    assert pareto([first, tmp_path / "the held-out images"]).points
    old = copied(other, tmp_path / "old", base_sha256=None)
    write_json(
        old / "provenance.json",
        {
            key: value
            for key, value in Run.open(old).provenance.items()
            if key not in ("checksums", "classes", "precision", "one_shot")
        },
    )
    assert compare([first, old]).curves and pareto([first, old], reference=(1, 0)).points


def test_weights_that_a_run_has_trained_follow_from_its_seed(tmp_path: Path) -> None:
    preset = "digits_resnet8_channel_macs50"
    out, paths = tmp_path, []
    for seed in (0, 1):
        overrides = [f"seed={seed}", "agent.name=deep", "train.epochs=1", "allow_untrained=true"]
        small = ["evaluate.images=50", "evaluate.calibration_images=50"]
        done = command("search", preset, *overrides, *small, "--out", str(out / str(seed)))
        assert done.returncode == 0, done.stderr
        paths += list((out / str(seed)).glob("*/s*"))
    sums = {Run.open(path).provenance["base_sha256"] for path in paths}
    assert len(sums) == 2 and len(compare(paths).curves) == 2 and pareto(paths).points


def test_another_precision_or_processor_is_said(runs: dict[str, Path], tmp_path: Path) -> None:
    first = runs["random 0"]
    machine = {**Run.open(first).provenance["machine"], "processor": "another"}
    other = copied(runs["random 1"], tmp_path / "other", precision="bf16", machine=machine)
    assert not compare([first, runs["random 1"]]).warnings
    for found in (compare([first, other]), pareto([first, other])):
        assert len(found.warnings) == 2
        assert "fp32, bf16" in found.warnings[0] and "another" in found.warnings[1]
    for name in ("compare", "pareto"):
        done = command(name, str(first), str(other), "--out", str(tmp_path / name), "--json")
        assert done.returncode == 0, done.stderr
        (warning,) = [line for line in done.stderr.splitlines() if "different precisions" in line]
        assert "different processors" in warning
        assert len(json.loads(done.stdout.splitlines()[-1])["warnings"]) == 2


def test_runs_of_other_observations_are_compared(digits: Dataset, tmp_path: Path) -> None:
    """What an agent sees is a part of the way, not of the problem."""
    model, paths = Mine(), []
    for observation in ("amc", "graph"):
        config = config_of("agent={name: td3, episodes: 3}", f"observation={observation}")
        paths.append(
            search(config, model=model, dataset=digits, out=tmp_path / observation).run.path
        )
    labels = {curve.label for curve in compare(paths).curves}
    assert labels == {"td3 observation=amc", "td3 observation=graph"}
