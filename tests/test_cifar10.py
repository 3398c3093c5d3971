"""On real CIFAR-10 and trained ResNets."""

from __future__ import annotations

from pathlib import Path

import pytest

from amc.config import load_config
from amc.problem import Problem
from amc.spaces.bounding import Bounds

pytestmark = pytest.mark.cifar10


@pytest.fixture(scope="module")
def resnet20(cifar10_dir: Path) -> Problem:
    overrides = [
        "evaluate.images=1000",
        "evaluate.calibration_images=300",
        f"data_dir={cifar10_dir}",
    ]
    return Problem.build(
        load_config("cifar10_resnet20_channel_macs50", [*overrides, "evaluate.precision=fp32"])[1]
    )


def test_the_base_network_is_as_good_as_it_should_be(resnet20: Problem) -> None:
    assert resnet20.evaluator().baseline.accuracy == pytest.approx(0.919, abs=0.02)


def test_repair_on_real_images(resnet20: Problem) -> None:
    accuracies = {}
    for repair in ("none", "independent", "sequential"):
        options = {**resnet20.space.options.model_dump(), "repair": repair}
        space = type(resnet20.space)(resnet20.network, options, resnet20.space.calibration)
        problem = Problem(
            resnet20.config,
            resnet20.dataset,
            resnet20.splits,
            resnet20.network,
            space,
            resnet20.budget,
        )
        outcome = problem.evaluator()(Bounds.of(space, resnet20.budget).uniform())
        assert outcome.feasible
        accuracies[repair] = outcome.score.accuracy
    assert accuracies["sequential"] > 0.7 > accuracies["none"] + 0.3
    assert accuracies["sequential"] > accuracies["independent"] + 0.02 > accuracies["none"] + 0.1
