"""Sequences of actions: whatever an agent does, an episode ends within the budget."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import amc.envs
import gymnasium
import numpy as np
import torch
from rows import Row
from torch import Tensor, nn

from amc.cost.budget import Budget
from amc.device.survey import measure_profile
from amc.errors import UserError
from amc.evaluate.outcome import Outcome
from amc.evaluate.rewards import Score
from amc.network.builtin import CifarResNet
from amc.network.trace import Network, trace
from amc.registry import lookup
from amc.spaces.base import CompressionSpace, Strategy
from amc.spaces.bounding import Bounds

SPACES = ("channel", "lowrank", "mixed")
METRICS = ("macs", "params", "memory_bytes", "latency_ms")
EPISODES = 50  # in one environment


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Module:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


def pooled(channels: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


class Around(nn.Module):
    """A branch, and what is done with it and its input."""

    def __init__(self, branch: nn.Module, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.branch, self.join = branch, join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(x, self.branch(x))


def added(x: Tensor, y: Tensor) -> Tensor:
    return torch.relu(x + y)


def together(x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([x, y], 1)


def gated(x: Tensor, y: Tensor) -> Tensor:
    return x * y


def gate(channels: int) -> nn.Module:
    reduce, expand = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), reduce, nn.ReLU(), expand, nn.Sigmoid())


def bottleneck(inputs: int, outputs: int, stride: int) -> nn.Module:
    inner = nn.Sequential(
        conv(inputs, 3 * inputs, 1), conv(3 * inputs, 3 * inputs, 3, stride, 3 * inputs)
    )
    last = nn.Sequential(nn.Conv2d(3 * inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
    return nn.Sequential(inner, last)


def residual() -> nn.Module:
    first, second = Around(conv(16, 16), added), Around(conv(24, 24), added)
    return nn.Sequential(conv(3, 16), first, conv(16, 24, 3, 2), second, pooled(24))


def depthwise() -> nn.Module:
    first = nn.Sequential(conv(16, 16, 3, 1, 16), conv(16, 32, 1))
    second = nn.Sequential(conv(32, 32, 3, 2, 32), conv(32, 48, 1))
    return nn.Sequential(conv(3, 16), first, second, pooled(48))


def concatenated() -> nn.Module:
    first, second = Around(conv(12, 12), together), Around(conv(24, 12), together)
    return nn.Sequential(conv(3, 12), first, second, pooled(36))


def grouped() -> nn.Module:
    return nn.Sequential(conv(3, 16), conv(16, 32, 3, 1, 4), conv(32, 32, 3, 2, 8), pooled(32))


def perceptron() -> nn.Module:
    first, second, last = nn.Linear(768, 64), nn.Linear(64, 32), nn.Linear(32, 10)
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU(), last)


def with_gate() -> nn.Module:
    middle = Around(gate(32), gated)
    return nn.Sequential(conv(3, 16), conv(16, 32), middle, conv(32, 32), pooled(32))


def vgg() -> nn.Module:
    first = nn.Sequential(conv(3, 16), conv(16, 16), nn.MaxPool2d(2))
    second = nn.Sequential(conv(16, 32), conv(32, 32), nn.MaxPool2d(2))
    last = nn.Sequential(nn.Flatten(), nn.Linear(512, 48), nn.ReLU(), nn.Linear(48, 10))
    return nn.Sequential(first, second, last)


def mobilenet() -> nn.Module:
    first, second = bottleneck(8, 12, 2), Around(bottleneck(12, 12, 1), added)
    return nn.Sequential(conv(3, 8), first, second, conv(12, 32, 1), pooled(32))


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Sequential(conv(3, 16), conv(16, 24, 3, 2), conv(24, 32), pooled(32)),
    "residual": residual,
    "depthwise": depthwise,
    "concatenated": concatenated,
    "grouped": grouped,
    "linear": perceptron,
    "gate": with_gate,
    "vgg": vgg,
    "mobilenet": mobilenet,
    "resnet20": lambda: CifarResNet(3),
}


class Pretended:
    """A runtime without a clock: what a layer takes has steps, as on a device."""

    name, version = "pretended", "1.0"

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads

    def prepare(self, model: nn.Module, example: Tensor) -> Callable[[], float]:
        layers = trace(model, tuple(example.shape[1:]))
        ms = 0.05 + sum(map(self.layer_ms, layers))
        return lambda: ms

    @staticmethod
    def layer_ms(layer: Any) -> float:
        if layer.kind not in ("conv", "linear"):
            return 0.0
        full = 8 * math.ceil(layer.out_channels / 8) / layer.out_channels
        return 1e-6 * layer.macs * full * (1.4 if layer.out_channels % 4 else 1.0)


@cache
def bound(name: str, kind: str, metric: str, folder: Path) -> CompressionSpace:
    """A space on a network; with a profile of its layers where time is asked for."""
    torch.manual_seed(0)
    network = Network.of(NETWORKS[name]().eval(), (3, 16, 16), name)
    options = {"repair": "none", "round_to": 2, "min_ratio": 0.2}
    space: CompressionSpace = lookup("space", kind)(network, options)
    if metric == "latency_ms":
        path = folder / f"{name}_{kind}.yaml"
        space.latency = measure_profile(space, Pretended(), path).latency_model(name)
    return space


def reachable(space: CompressionSpace, metric: Any, random: Random) -> Budget:
    """A budget between the smallest network and the whole one; often at an end."""
    whole = space.cost({})
    loose = Budget.of(metric, whole, 1.0)
    least = space.cost(Bounds.of(space, loose).floor)[metric]
    place = random.choice((0.0, 0.01, random.random(), random.random(), 1.0))
    limit = least + place * (whole[metric] - least)
    budget = Budget(metric, max(limit, least), fill=random.random() < 0.5)
    if random.random() < 0.2 and place > 0:
        budget = Budget(metric, budget.limit, budget.fill, least)
    return budget


def actions(random: Random, steps: int) -> list[np.ndarray]:
    """What an agent may do, in its right mind or not."""
    kind = random.choice(("uniform", "ends", "same", "wild"))
    same = random.random()
    ends = (math.nan, math.inf, -math.inf, -1.0, 2.0, 1e30, -1e30, 1e-30, -0.0, 0.5)
    values: Mapping[str, Callable[[], float]] = {
        "uniform": random.random,
        "ends": lambda: random.choice((0.0, 1.0)),
        "same": lambda: same,
        "wild": lambda: random.choice(ends),
    }
    return [np.array([values[kind]()], np.float32) for _ in range(steps)]


def environment(space: CompressionSpace, budget: Budget) -> Any:
    def pretend(strategy: Strategy, within: Budget) -> Outcome:
        cost = space.cost(strategy)
        feasible = within.allows(cost)
        return Outcome(dict(strategy), (), Score(0.5, 1.0, 0.0), cost, 0.5, feasible, 0.0)

    return gymnasium.make(amc.envs.ENV_ID, space=space, budget=budget, evaluate=pretend)


def walked(env: Any, random: Random, budget: Budget) -> tuple[str, str]:
    """The verdict on one episode."""
    env.reset()
    done, steps = False, len(env.unwrapped.space.decisions)
    planned = actions(random, steps)
    for action in planned:
        seen, _, done, _, info = env.step(action)
        if not env.observation_space.contains(seen):
            return "strange", f"the observation is {seen.tolist()}"
    outcome = info.get("outcome")
    if not done or outcome is None:
        return "strange", "the episode does not end"
    cost = outcome.cost[budget.metric]
    if not outcome.feasible or cost > budget.limit:
        shown = [float(action[0]) for action in planned]
        return "over budget", f"{cost} of {budget.limit} {budget.metric}: {shown}"
    return "within", ""


def attack(folder: Path, seed: int, numbers: range) -> Iterator[Row]:
    torch.set_num_threads(1)
    for start in range(numbers.start, numbers.stop, EPISODES):
        random = Random(f"{seed}/{start // EPISODES}")
        group = start // EPISODES
        name = list(NETWORKS)[group % len(NETWORKS)]
        kind, metric = random.choice(SPACES), random.choice(METRICS)
        yield from episodes(
            folder, random, (name, kind, metric), range(start, min(numbers.stop, start + EPISODES))
        )


def episodes(
    folder: Path, random: Random, problem: tuple[str, str, str], numbers: range
) -> Iterator[Row]:
    """Episodes in one environment."""
    what = " ".join(problem)
    try:
        space = bound(*problem, folder)
        budget = reachable(space, problem[2], random)
        env = environment(space, budget)
    except UserError as error:
        yield Row("actions", numbers.start, what, "binding", "refused", True, detail=str(error))
        return
    how = f"{budget.metric} of {budget.least or ''}..{budget.limit:.6g}, fill {budget.fill}"
    for number in numbers:
        clock = time.process_time()
        try:
            verdict, detail = walked(env, random, budget)
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            verdict = "traceback"
            detail = f"{type(error).__name__}: {error} at {frame.filename}:{frame.lineno}"
        seconds = time.process_time() - clock
        yield Row("actions", number, what, how, verdict, verdict == "within", seconds, 0.0, detail)
