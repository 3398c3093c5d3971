"""Conformance of an action space: the laws that every space must keep, run on small networks of
several kinds.

For plug-in authors: ``check_space(MySpace)`` in a test, or ``amc check my_module:MySpace``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from amc.cost.budget import Budget
from amc.cost.cost import METRICS, cost_of
from amc.device.reach import structure_of
from amc.envs.compression import CompressionEnv
from amc.evaluate.outcome import Outcome
from amc.evaluate.rewards import Score
from amc.network.builtin import CifarResNet
from amc.network.layers import LayerSpec, LayerTable, evaluating, example_input
from amc.network.trace import Network, trace
from amc.randomness import own_randomness
from amc.spaces.base import CompressionSpace, Strategy

_EPISODES = 10


def sample_networks() -> list[Network]:
    """A residual network, a grouped and depthwise one, and a perceptron: small, random, with uneven
    BatchNorms.
    """
    generator = torch.Generator().manual_seed(0)
    shapes: list[tuple[nn.Module, tuple[int, ...]]] = [
        (CifarResNet(1, 10, 3), (3, 16, 16)),
        (_grouped(), (3, 16, 16)),
        (_perceptron(), (3, 4, 4)),
    ]
    for model, _ in shapes:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
                    module.running_var.uniform_(0.5, 2.0, generator=generator)
    return [
        Network.of(model, shape, f"sample {index + 1}")
        for index, (model, shape) in enumerate(shapes)
    ]


def _grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, 1, 1, groups=16),
        nn.BatchNorm2d(16),
        nn.ReLU6(),
        nn.Conv2d(16, 24, 1),
        nn.Hardswish(),
        nn.Conv2d(24, 24, 3, 1, 2, dilation=2, groups=6),
        nn.ReLU(),
        nn.Conv2d(24, 12, 1),
        nn.PReLU(12),
        nn.Flatten(),
        nn.Linear(12 * 64, 40),
        nn.ReLU(),
        nn.Linear(40, 10),
    )


def _perceptron() -> nn.Module:
    first, second, last = nn.Linear(48, 64), nn.Linear(64, 64), nn.Linear(64, 10)
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU(), last)


@own_randomness()
def check_space(
    space_class: type[CompressionSpace], options: Mapping[str, Any] | None = None
) -> list[str]:
    """Check a space class on every sample network.

    Returns:
        What was checked, a line each.

    Raises:
        AssertionError: the first law that does not hold, in a sentence.
    """
    done: list[str] = []
    decided = 0
    for network in sample_networks():
        calibration = example_input(network.model, network.input_shape, batch=32)
        space = space_class(network, options, calibration)
        done += check_bound_space(space)
        decided += len(space.decisions)
    assert decided, "the space finds nothing to decide in any of the sample networks"
    return done


@own_randomness()
def check_bound_space(space: CompressionSpace) -> list[str]:
    """Check a space on the network that it is bound to; see `check_space`."""
    name, count = space.network.name, len(space.decisions)
    if not count:
        return [f"{name}: nothing to decide"]
    checks: list[tuple[str, Callable[[CompressionSpace], None]]] = [
        ("decisions name layers, choices ascend", _check_decisions),
        ("keep ratio 1 leaves the function unchanged", _check_identity),
        ("paper = metal: resize equals a fresh trace after apply", _check_paper),
        ("monotone: cost never falls as a keep ratio rises", _check_monotone),
        ("every episode ends within budget", _check_budget),
        ("rebuild gives the same structure and weights fit", _check_rebuild),
        ("a decision changes no layer but those that `reshapes` names", _check_reshapes),
        ("the network is not modified, apply is deterministic", _check_pure),
    ]
    for title, check in checks:
        try:
            check(space)
        except AssertionError as error:
            raise AssertionError(f"{name}: {title}: {error}") from error
    return [f"{name} ({count} decisions): {title}" for title, _ in checks]


def random_strategy(space: CompressionSpace, seed: int) -> dict[str, int]:
    """A legal choice for every decision, drawn uniformly."""
    generator = np.random.default_rng(seed)
    return {d.name: int(generator.choice(d.choices)) for d in space.decisions}


def same_table(paper: LayerTable, metal: LayerTable) -> str | None:
    """The first difference between two layer tables; None where there is none."""
    a, b = [_facts(layer) for layer in paper], [_facts(layer) for layer in metal]
    if len(a) != len(b):
        return f"{len(a)} layers on paper, {len(b)} in the network"
    different = next(
        (f"{x} on paper, {y} in the network" for x, y in zip(a, b, strict=True) if x != y), None
    )
    peaks = cost_of(paper).memory_bytes, cost_of(metal).memory_bytes
    return different or (
        None
        if peaks[0] == peaks[1]
        else f"memory_bytes {peaks[0]} on paper, {peaks[1]} in the network"
    )


def _facts(layer: LayerSpec) -> tuple[Any, ...]:
    """What must be the same on paper and in the network: costs, channels, and what the time of a
    layer depends on.
    """
    costs = (layer.name, layer.macs, layer.params, layer.in_channels, layer.out_channels)
    sizes = (layer.kernel, layer.stride, layer.groups, layer.input_size, layer.output_size)
    return (*costs, *sizes, layer.followed_by)


def _check_decisions(space: CompressionSpace) -> None:
    names = [decision.name for decision in space.decisions]
    assert len(set(names)) == len(names), "two decisions have the same name"
    for decision in space.decisions:
        for layer in decision.layers:
            assert layer in space.network.table.by_name, (
                f"{decision.name!r} names the layer {layer!r}, which does not exist"
            )
        for choice in decision.choices:
            ratio = space.encode(decision, choice)
            assert space.decode(decision, ratio) == choice, (
                f"choice {choice} of {decision.name!r} does not decode from {ratio}"
            )


def _check_identity(space: CompressionSpace) -> None:
    image = example_input(space.network.model, space.network.input_shape, batch=4)
    new, old = space.apply({}), space.network.model
    with evaluating(new), evaluating(old):
        assert torch.allclose(new(image), old(image), atol=1e-5), "the outputs differ"
    assert same_table(space.resize({}), space.network.table) is None, "the table differs"


def _check_paper(space: CompressionSpace) -> None:
    for strategy in (space.smallest, random_strategy(space, 0), random_strategy(space, 1)):
        metal = trace(space.apply(strategy), space.network.input_shape)
        difference = same_table(space.resize(strategy), metal)
        assert difference is None, difference


def _check_monotone(space: CompressionSpace) -> None:
    for seed, decision in enumerate(space.decisions):
        base = random_strategy(space, seed)
        costs = [space.cost({**base, decision.name: choice}) for choice in decision.choices]
        for metric in METRICS[:3]:
            values = [cost[metric] for cost in costs]
            assert values == sorted(values), f"{metric} falls as {decision.name!r} keeps more"


def _check_budget(space: CompressionSpace) -> None:
    original, smallest = space.cost({}), space.cost(space.smallest)
    generator = np.random.default_rng(0)
    for metric in METRICS[:3]:
        budget = Budget(metric, 0.5 * (original[metric] + smallest[metric]))
        acts = [lambda: 1.0, *[lambda: float(generator.random())] * _EPISODES]
        for act in acts:
            strategy = walk(space, budget, act)
            assert budget.allows(space.cost(strategy)), (
                f"an episode ends over its budget of {metric}"
            )


def walk(space: CompressionSpace, budget: Budget, act: Callable[[], float]) -> dict[str, int]:
    """One episode of the environment without measuring anything: the strategy that it ends with."""

    def unmeasured(strategy: Strategy, budget: Budget) -> Outcome:
        return Outcome(
            dict(strategy), (), Score(0.0, 0.0, 0.0), space.cost(strategy), 0.0, True, 0.0
        )

    env = CompressionEnv(space, budget, unmeasured)
    env.reset()
    while True:
        *_, terminated, _, info = env.step(np.array([act()], np.float32))
        if terminated:
            strategy: dict[str, int] = info["outcome"].strategy
            return strategy


def _check_rebuild(space: CompressionSpace) -> None:
    strategy = random_strategy(space, 2)
    applied = space.apply(strategy)
    description = json.loads(json.dumps(space.describe(strategy)))
    rebuilt = type(space).rebuild(space.network.model, description)
    shapes = [
        {key: tuple(value.shape) for key, value in model.state_dict().items()}
        for model in (applied, rebuilt)
    ]
    assert shapes[0] == shapes[1], "the parameters have other names or shapes"
    rebuilt.load_state_dict(applied.state_dict())
    image = example_input(applied, space.network.input_shape, batch=4)
    with evaluating(applied), evaluating(rebuilt):
        assert torch.allclose(applied(image), rebuilt(image), atol=1e-5), "the outputs differ"


def _check_reshapes(space: CompressionSpace) -> None:
    """What keeps the promise of ``space.keep``."""

    def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
        return {key: tuple(value.shape) for key, value in model.state_dict().items()}

    whole, layers = shapes(space.network.model), space.network.table.by_name
    for decision in space.decisions:
        # at 0 others go, too: decisions, whose layers nothing keeps
        least = next(choice for choice in decision.choices if choice)
        smaller = shapes(structure_of(space, {decision.name: least}))
        changed = {
            key.rpartition(".")[0] for key, shape in whole.items() if smaller.get(key) != shape
        }
        for layer in sorted(changed & set(layers) - set(space.reshapes(decision))):
            raise AssertionError(
                f"{decision.name!r} changes {layer!r}: space.keep could not keep it"
            )


def _check_pure(space: CompressionSpace) -> None:
    before = {key: value.clone() for key, value in space.network.model.state_dict().items()}
    strategy = random_strategy(space, 3)
    first, second = (space.apply(strategy).state_dict() for _ in range(2))
    for key, value in space.network.model.state_dict().items():
        assert torch.equal(before[key], value), f"apply modified {key!r} of the original"
    for key, value in first.items():
        assert torch.equal(value, second[key]), f"apply gives another {key!r} the second time"
