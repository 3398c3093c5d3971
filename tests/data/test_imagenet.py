"""The preset for ImageNet, on generated images in ImageNet's layout; and what is held at once of a
dataset of any size.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from amc.base import base_network
from amc.config import load_config, parse_config
from amc.data.datasets import Dataset, load_dataset
from amc.errors import UserError
from amc.network.layers import IntArray
from amc.network.models import build_model
from amc.problem import Problem
from amc.sections import Config
from amc.training.settings import TrainConfig
from amc.training.trainer import train

PRESET = "imagenet_mobilenet_v2_channel_macs50"
MANY = 1_300_000


def lay_out(folder: Path, classes: int) -> None:
    """ImageNet's layout: two images of each class to train on, one to validate."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(7):
        pixels = generator.integers(0, 255, (40, 50, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.JPEG", "JPEG")
    for number in range(classes):
        for part, count in (("train", 2), ("val", 1)):
            place = folder / part / f"n{number:08}"
            place.mkdir(parents=True)
            for image in range(count):
                os.link(folder / f"{(number + image) % 7}.JPEG", place / f"{image}.JPEG")


def preset(folder: Path, *overrides: str) -> Config:
    """With data and weights in a folder."""
    return load_config(PRESET, [f"data_dir={folder}", f"weights_dir={folder}", *overrides])[1]


def some_weights(folder: Path) -> str:
    """A file as torchvision gives it out."""
    path = folder / "mobilenet_v2-7ebf99e0.pth"
    torch.save(build_model("torchvision:mobilenet_v2", 1000, 3).state_dict(), path)
    return f"weights={path.name}"


def test_the_preset_says_how_to_lay_imagenet_out(tmp_path: Path) -> None:
    missing = r"imagenet' must have a folder train and a folder test or val, with a folder of image"
    with pytest.raises(UserError, match=missing) as caught:
        Problem.build(preset(tmp_path))
    assert str(tmp_path / "imagenet") in str(caught.value)
    lay_out(tmp_path / "imagenet", 3)
    with pytest.raises(UserError, match="are more than 'imagefolder:imagenet' has"):
        Problem.build(preset(tmp_path))
    few = "image_size=32", "evaluate.images=2", "evaluate.calibration_images=2"
    with pytest.raises(UserError, match="tell ImageNet's 1000 classes apart, not 3: give images"):
        Problem.build(preset(tmp_path, *few))  # before anything is downloaded
    with pytest.raises(UserError, match="are of a network with 1000 classes, not 3"):
        Problem.build(preset(tmp_path, *few, some_weights(tmp_path)))


def test_the_preset_s_network_is_read_from_a_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lay_out(tmp_path / "imagenet", 1000)
    config = preset(tmp_path, some_weights(tmp_path), "image_size=32")
    data = load_dataset(str(config.dataset), tmp_path, config.image_size)
    assert (data.classes, len(data.train.labels), len(data.test.labels)) == (1000, 2000, 1000)
    assert caplog.text.count("are checked once, and kept decoded in") == 2
    network, untrained = base_network(config, data, None, None)
    assert not untrained
    state = torch.load(tmp_path / str(config.weights), weights_only=True)
    for key, value in network.model.state_dict().items():
        assert torch.equal(value, state[key])


class Endless:
    """Images made when they are asked for; never many at once."""

    def __init__(self, count: int, most: int) -> None:
        self.labels = np.arange(count) % 3
        self.most, self.fetched = most, 0

    def fetch(self, indices: IntArray) -> Tensor:
        assert len(indices) <= self.most
        self.fetched += len(indices)
        images = torch.from_numpy(indices % 251)[:, None, None, None].expand(-1, 1, 8, 8).clone()
        images[:, :, : 1 + 2] += torch.from_numpy(self.labels[indices])[:, None, None, None]
        return images.to(torch.uint8)


def network() -> nn.Module:
    """A small one."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def test_of_a_large_dataset_only_a_search_s_own_images_are_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, test = Endless(MANY, most=300), Endless(7000, most=2000)
    data = Dataset("large", images, test, 3, (1, 8, 8), (0.5,), (0.25,))
    config = parse_config(
        {
            "budget": {"ratio": 0.5},
            "evaluate": {"images": 300, "calibration_images": 100},
            "allow_untrained": True,
        }
    )
    problem = Problem.build(config, network(), data)
    evaluator = problem.evaluator()
    problem.memorised(evaluator)
    problem.data_sha256()
    assert images.fetched < 1000  # held-out and calibration images, and a few
    assert test.fetched <= 3000
    monkeypatch.setattr("amc.problem.PIXEL_BYTES", 2000 * 64)
    test.fetched = 0
    assert 0 <= problem.accuracy(problem.network.model, test=True) <= 1
    assert test.fetched == 7000


def test_training_holds_two_batches() -> None:
    images, test = Endless(1000, most=16), Endless(32, most=16)
    data = Dataset("large", images, test, 3, (1, 8, 8), (0.5,), (0.25,))
    settings = TrainConfig(epochs=1, batch_size=16, lr=0.01)
    train(network(), data, np.arange(500), settings)
    assert 496 <= images.fetched <= 600
