"""Whether held-out images were trained on is told from losses, whatever the accuracy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from zoo import config_of

from amc.data.datasets import Dataset
from amc.evaluate.memory import BETTER, WORSE, memorised
from amc.problem import Problem
from amc.search import search
from amc.training.settings import TrainConfig
from amc.training.trainer import train


@pytest.fixture(scope="module")
def hard() -> Dataset:
    """8 x 8 images of three classes that no network can tell apart for certain: a third of the
    labels says nothing.
    """
    generator = np.random.default_rng(0)

    def part(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = generator.integers(0, 3, count)
        pixels = generator.integers(0, 80, (count, 8, 8, 1))
        for row, label in enumerate(labels):
            pixels[row, 2 * label : 2 * label + 3] += 60
        wrong = generator.random(count) < 1 / 3
        return pixels.astype(np.uint8), np.where(wrong, generator.integers(0, 3, count), labels)

    return Dataset.from_arrays("hard", *part(600), *part(300))


def network(wide: bool) -> nn.Module:
    """One that can learn its images by heart, or one that cannot."""
    torch.manual_seed(0)
    if wide:
        head: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(32 * 64, 3))
        return nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), head)
    head = nn.Sequential(nn.AdaptiveAvgPool2d((8, 1)), nn.Flatten(), nn.Linear(2 * 8, 3))
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), head)


CONFIG = ["evaluate.images=200", "evaluate.calibration_images=150", "agent.episodes=1"]


def warned(dataset: Dataset, out: Path, wide: bool, on_heldout: bool) -> tuple[str | None, float]:
    """The warning of a search, and the base network's accuracy there."""
    config, model = config_of(*CONFIG), network(wide)
    problem = Problem.build(config, model, dataset)
    every = np.arange(len(dataset.train.labels))
    chosen = every if on_heldout else problem.splits.train
    settings = TrainConfig(epochs=15, batch_size=32, lr=0.03, augment="none", precision="fp32")
    train(model, dataset, chosen, settings)
    run = search(config, model=model, dataset=dataset, out=out).run
    return run.provenance["warning"], run.best["baseline"]["search_accuracy"]


def test_a_network_trained_on_the_held_out_images_is_noticed(hard: Dataset, tmp_path: Path) -> None:
    warning, accuracy = warned(hard, tmp_path, wide=True, on_heldout=True)
    assert accuracy < 0.98
    assert warning is not None and "it looks trained on them" in warning
    assert "better than on test images" in warning


def test_one_that_was_not_is_not(hard: Dataset, tmp_path: Path) -> None:
    warning, accuracy = warned(hard, tmp_path, wide=True, on_heldout=False)
    assert accuracy < 0.98 and warning is None


@pytest.mark.parametrize("on_heldout", [False, True])
def test_one_without_a_gap_is_not_accused(hard: Dataset, tmp_path: Path, on_heldout: bool) -> None:
    """It does as well on images that it has not seen: where it was trained on the held-out ones,
    that has not changed it.
    """
    assert warned(hard, tmp_path, wide=False, on_heldout=on_heldout)[0] is None


def test_the_levels_hold() -> None:
    """Of losses with long tails: how often the warning is false, and how often it is missing."""
    generator = torch.Generator().manual_seed(0)

    def losses(mean: float, count: int = 100) -> torch.Tensor:
        return mean * torch.randn(count, generator=generator, dtype=torch.float64).exp() ** 2

    rounds = 300
    false = sum(
        memorised(losses(1.0), losses(1.0), lambda: losses(1.0)) is not None for _ in range(rounds)
    )
    false += sum(
        memorised(losses(0.5), losses(1.0), lambda: losses(1.0)) is not None for _ in range(rounds)
    )
    assert false <= 1 + 4 * 2 * rounds * BETTER
    missing = sum(
        memorised(losses(0.1), losses(0.1), lambda: losses(2.0)) is None for _ in range(rounds)
    )
    assert missing <= 3 * rounds * WORSE


def test_test_images_are_asked_only_where_there_is_no_gap() -> None:
    def never() -> torch.Tensor:
        raise AssertionError

    seen, unseen = torch.full((50,), 0.1), torch.linspace(0.5, 1, 50)
    assert memorised(seen, unseen, never) is None
    nothing = memorised(unseen, unseen, lambda: torch.full((50,), torch.nan))
    assert nothing is None
