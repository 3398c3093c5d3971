"""Ranks by variational Bayesian matrix factorisation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from amc.agents.vbmf import estimated_rank, noise_variance
from zoo import Mine, config_of

from amc.data.datasets import Dataset
from amc.errors import UserError
from amc.search import resume, search


@pytest.mark.parametrize("shape", [(16, 144), (64, 576), (100, 100), (400, 30)])
@pytest.mark.parametrize("rank", [0, 1, 5, 10])
@pytest.mark.parametrize("noise", [0.01, 0.3])
def test_the_rank_of_a_matrix_with_noise(shape: tuple[int, int], rank: int, noise: float) -> None:
    rng = np.random.default_rng(rank)
    signal = rng.normal(size=(shape[0], rank)) @ rng.normal(size=(rank, shape[1]))
    assert estimated_rank(signal + noise * rng.normal(size=shape)) == rank


def test_the_noise_variance() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(60, 5)) @ rng.normal(size=(5, 400)) + 0.7 * rng.normal(size=(60, 400))
    squares = np.linalg.svd(matrix, compute_uv=False) ** 2
    assert noise_variance(squares, 60, 400) == pytest.approx(0.49, rel=0.05)


def test_matrices_at_the_edge() -> None:
    assert estimated_rank(np.zeros((4, 6))) == 0
    assert estimated_rank(np.ones((1, 9))) in (0, 1)
    assert estimated_rank(np.outer(np.arange(1.0, 5), np.arange(1.0, 9))) == 1


OPTIONS = ["space={name: lowrank, min_ratio: 0}", "agent={name: vbmf}", "budget.ratio=0.6"]


def test_a_run_is_journaled_like_any_other(digits: Dataset, tmp_path: Path) -> None:
    config = config_of(*OPTIONS)
    result = search(config, model=Mine(10), dataset=digits, out=tmp_path)
    lines = result.run.lines()
    phases = [line["phase"] for line in lines]
    assert phases in (["uniform", "vbmf_scaled"], ["uniform", "vbmf", "vbmf_scaled"])
    space = result.problem.space
    for line in lines:
        assert line["feasible"] and line["macs"] == space.cost(line["strategy"]).macs
    scaled = lines[-1]["macs"] / space.cost({}).macs
    assert 0.5 < scaled <= 0.6, "as large as the budget allows"
    again = resume(result.run.path, model=Mine(10), dataset=digits)
    assert again.run.lines() == lines


def test_separate_ranks_are_the_estimates(digits: Dataset, tmp_path: Path) -> None:
    config = config_of(*OPTIONS, "space.tucker_ranks=separate", "budget.ratio=1.0")
    result = search(config, model=Mine(10), dataset=digits, out=tmp_path)
    own = next(line for line in result.run.lines() if line["phase"] == "vbmf")["strategy"]
    space = result.problem.space
    for decision in space.decisions:
        (matrix,) = space.unfoldings(decision.name)
        estimate = estimated_rank(matrix.numpy())
        assert own[decision.name] == min(decision.choices, key=lambda c: abs(c - estimate))


@pytest.mark.parametrize("space", ["{name: channel}", "{name: lowrank, convolution: cp}"])
def test_spaces_without_ranks_of_matrices(digits: Dataset, tmp_path: Path, space: str) -> None:
    config = config_of(f"space={space}", "agent={name: vbmf}")
    with pytest.raises(UserError, match="rank"):
        search(config, model=Mine(10), dataset=digits, out=tmp_path)
