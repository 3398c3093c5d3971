"""The networks and the configuration that many tests use."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from amc.envs import ENV_ID
from torch import Tensor, nn

from amc.config import Config, parse_config
from amc.cost.budget import Budget
from amc.data.datasets import Dataset
from amc.evaluate.outcome import Outcome
from amc.evaluate.rewards import Score
from amc.network.builtin import CifarResNet, CifarVGG16, MobileNetV1
from amc.network.layers import LayerSpec
from amc.network.torchvision_compat import torchvision
from amc.network.trace import Network, trace
from amc.progress import silent
from amc.spaces.base import CompressionSpace, Strategy
from amc.spaces.channel import ChannelSpace
from amc.training.settings import TrainConfig
from amc.training.trainer import train

torch.set_num_threads(1)  # tests run side by side, a process a core
tv = torchvision.models

ZOO: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet20": (lambda: CifarResNet(3), 32),
    "resnet56": (lambda: CifarResNet(9), 32),
    "plain20": (lambda: CifarResNet(3, plain=True), 32),
    "vgg16_bn": (CifarVGG16, 32),
    "mobilenet_v1": (MobileNetV1, 64),
    "tv_mobilenet_v2": (lambda: tv.mobilenet_v2(num_classes=10), 64),
    "tv_resnet18": (lambda: tv.resnet18(num_classes=10), 64),
    "tv_resnet50": (lambda: tv.resnet50(num_classes=10), 64),
    # as densenet121, whose 120 layers take minutes, with fewer of them
    "tv_densenet": (lambda: tv.DenseNet(16, (4, 6, 6, 4), 32, num_classes=10), 32),
    "tv_googlenet": (lambda: tv.googlenet(num_classes=10, init_weights=False), 64),
    "tv_regnet_x_400mf": (lambda: tv.regnet_x_400mf(num_classes=10), 64),
    "tv_resnext50": (lambda: tv.resnext50_32x4d(num_classes=10), 64),
    "tv_shufflenet_v2": (lambda: tv.shufflenet_v2_x1_0(num_classes=10), 64),
    "tv_efficientnet_b0": (lambda: tv.efficientnet_b0(num_classes=10), 64),
}


def uneven(model: nn.Module) -> nn.Module:
    """Give every BatchNorm its own statistics and affine parameters, so that no two channels are
    alike.
    """
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 2.0),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.3, 0.3),
            ):
                tensor.uniform_(low, high, generator=generator)
    return model.eval()


@cache
def zoo_network(name: str) -> Network:
    torch.manual_seed(0)
    build, size = ZOO[name]
    return Network.of(uneven(build()), (3, size, size), name)


@cache
def zoo_space(name: str) -> ChannelSpace:
    """The channel space of a zoo network, without repair."""
    return ChannelSpace(zoo_network(name), {"repair": "none", "min_ratio": 0.3})


def zoo_env(
    name: str = "resnet20", ratio: float = 0.5, fill: bool = False, metric: str = "macs"
) -> gymnasium.Env:
    return env_around(zoo_space(name), ratio, fill, metric)


def env_around(
    space: CompressionSpace, ratio: float = 0.5, fill: bool = False, metric: str = "macs"
) -> gymnasium.Env:
    """An environment in which every strategy is as good as any other."""

    def measure(strategy: Strategy, budget: Budget) -> Outcome:
        cost = space.cost(strategy)
        return Outcome(dict(strategy), (), Score(0.5, 1.0, 0.0), cost, -0.5, True, 0.0)

    budget = Budget.of(metric, space.cost({}), ratio=ratio, fill=fill)  # type: ignore[arg-type]
    return gymnasium.make(ENV_ID, space=space, budget=budget, evaluate=measure)


OVERHEAD_MS = 0.05


def layer_ms(layer: LayerSpec, slower: float = 1.5) -> float:
    if layer.kind not in ("conv", "linear"):
        return 0.0
    blocks = 16 * math.ceil(layer.out_channels / 16) / layer.out_channels
    odd = slower if layer.out_channels % 4 else 1.0
    return 1e-6 * layer.macs * blocks * odd


class Pretended:
    """A runtime without noise, whose times follow from the layers: a block of 16 channels takes the
    same time however many of them are used; a width that is no multiple of 4 half as long again.
    """

    name, version = "pretended", "1.0"

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        self.prepared = 0

    def prepare(self, model: nn.Module, example: Tensor) -> Callable[[], float]:
        self.prepared += 1
        layers = trace(model, tuple(example.shape[1:]))
        ms = OVERHEAD_MS + sum(map(layer_ms, layers))
        return lambda: ms


class Mine(nn.Module):
    """A user's own network, which nobody has registered."""

    def __init__(self, classes: int = 3, width: int = 12) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.b = nn.Conv2d(width, 16, 3, padding=1)
        self.head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.b(torch.relu(self.norm(self.a(x))))).mean((2, 3)))


def taught(model: nn.Module, dataset: Dataset) -> nn.Module:
    """A network that knows a small dataset better than guessing does, trained in place."""
    every = np.arange(len(dataset.train.labels))
    settings = TrainConfig(epochs=3, batch_size=32, augment="none", precision="fp32")
    train(model, dataset, every, settings, 0, silent)
    return model


def config_of(*overrides: str) -> Config:
    base = {
        "budget": {"ratio": 0.5},
        "evaluate": {"images": 100, "calibration_images": 60, "precision": "fp32"},
        "agent": {"name": "ddpg", "episodes": 10, "warmup_episodes": 4},
        "allow_untrained": True,
    }
    return parse_config(base, overrides)


def command(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """``amc ...`` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "amc.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        **options,
    )


def journal(path: Path) -> list[dict[str, Any]]:
    """All lines without what a clock says."""
    lines = [json.loads(line) for line in (path / "episodes.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key not in ("seconds", "profile")}
        for line in lines
    ]
