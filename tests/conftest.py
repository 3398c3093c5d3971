"""Data that many tests use."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from twin import is_installed, twin

from amc import plugins
from amc.compute import Compute
from amc.data.datasets import Dataset


@pytest.fixture(scope="session", autouse=True)
def _own_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What amc remembers of the plug-ins that a user has named is not this user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("settings")))
        yield


@pytest.fixture(autouse=True)
def _named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plug-ins that a test names are not named in those that come after it in this process."""
    monkeypatch.setattr(plugins, "_named", set(plugins._named))


@pytest.fixture(autouse=True)
def _ctrl_c() -> Iterator[None]:
    """A command that ran in this process has taken it over for good."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(params=["twin", pytest.param("cuda", marks=pytest.mark.cuda)])
def elsewhere(request: pytest.FixtureRequest) -> Iterator[Compute]:
    """Another compute than the processor: its twin, and a GPU where there is one."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("needs a GPU")
        if is_installed():
            pytest.skip("the processor's twin was here: pytest -m cuda, in a process of its own")
        yield Compute.of("cuda")
    else:
        with twin():
            yield Compute.of("twin")


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
def cifar10_dir() -> Path:
    """The data folder; the test is skipped where it lacks CIFAR-10."""
    folder = Path(os.environ.get("AMC_DATA_DIR", ""))
    if not (folder / "cifar10.npz").is_file():
        pytest.skip("needs CIFAR-10: set AMC_DATA_DIR")
    return folder
