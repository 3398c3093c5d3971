"""Data that many tests use."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from amc.evaluate.data import Dataset


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """A small generated dataset: 8 x 8 images of three easy classes."""
    generator = np.random.default_rng(0)

    def part(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = generator.integers(0, 3, count)
        pixels = generator.integers(0, 80, (count, 8, 8, 1))
        for row, label in enumerate(labels):
            pixels[row, 2 * label : 2 * label + 3] += 150
        return pixels.astype(np.uint8), labels

    return Dataset.from_arrays("generated", *part(400), *part(100))


@pytest.fixture(scope="session")
def cifar10_dirs() -> tuple[Path, Path]:
    """The data and weights folders; the test is skipped where they lack CIFAR-10."""
    data, weights = (Path(os.environ.get(name, "")) for name in ("AMC_DATA_DIR", "AMC_WEIGHTS_DIR"))
    if (
        not (data / "cifar10.npz").is_file()
        or not (weights / "cifar10_resnet20_45k.safetensors").is_file()
    ):
        pytest.skip("needs CIFAR-10: set AMC_DATA_DIR and AMC_WEIGHTS_DIR")
    return data, weights
