"""Law 2 where the cost is a measured latency: with steps, noise, and widths that are slower than
larger ones.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from torch import nn
from zoo import layer_ms, zoo_network

from amc.cost.budget import Budget
from amc.cost.cost import METRICS, Cost, Metric
from amc.errors import UserError
from amc.network.layers import LayerSpec, LayerTable
from amc.network.trace import Network
from amc.spaces.base import Decision, LayerwiseSpace
from amc.spaces.bounding import Bounds
from amc.spaces.channel import ChannelSpace
from amc.testing import walk


class Stairs:
    """Blocks of 16 output channels; a width that is no multiple of 4 takes half as long again;
    noise that is always the same for the same layer.
    """

    def __init__(self, noise: float = 0.0, odd: float = 1.5) -> None:
        self.noise, self.odd = noise, odd

    def latency_ms(self, table: LayerTable) -> float:
        total = 0.0
        for layer in table:
            shake = math.sin(7.3 * layer.in_channels + 3.1 * layer.out_channels)
            total += layer_ms(layer, self.odd) * (1 + self.noise * shake)
        return total


def space_on(device: Stairs, name: str = "resnet20", round_to: int = 2) -> ChannelSpace:
    options = {"repair": "none", "round_to": round_to, "min_ratio": 0.2}
    space = ChannelSpace(zoo_network(name), options)
    space.latency = device  # type: ignore[assignment]
    return space


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("ratio", [0.7, 0.45])
def test_no_episode_ends_over_a_latency_budget(noise: float, ratio: float) -> None:
    space = space_on(Stairs(noise))
    budget = Budget.of("latency_ms", space.cost({}), ratio=ratio)
    generator = np.random.default_rng(0)
    for act in (lambda: 1.0, lambda: 0.0, lambda: float(generator.random())):
        for _ in range(4):
            assert budget.allows(space.cost(walk(space, budget, act)))
    assert budget.allows(space.cost(Bounds.of(space, budget).uniform()))


def test_all_ones_use_the_budget_up() -> None:
    space = space_on(Stairs())
    budget = Budget.of("latency_ms", space.cost({}), ratio=0.6)
    largest = space.cost(walk(space, budget, lambda: 1.0))
    assert largest["latency_ms"] > 0.9 * budget.limit


def test_choices_that_a_larger_one_beats_are_struck_out() -> None:
    space = space_on(Stairs())
    bounds = Bounds.of(space, Budget.of("latency_ms", space.cost({}), ratio=0.9))
    for decision in space.decisions:
        kept = bounds.choices[decision.name]
        assert kept[-1] == decision.choices[-1] and bounds.floor[decision.name] in kept
        assert not [choice for choice in kept if choice % 4], "an odd width is never worth it"
        times = [
            space.cost({**bounds.floor, decision.name: choice})["latency_ms"] for choice in kept
        ]
        assert all(a < 1.01 * b for a, b in itertools.pairwise(times))


def test_other_metrics_keep_every_choice_and_the_smallest_floor() -> None:
    space = space_on(Stairs())
    bounds = Bounds.of(space, Budget.of("macs", space.cost({}), ratio=0.5))
    assert bounds.floor == space.smallest
    assert bounds.choices == {d.name: d.choices for d in space.decisions}


def test_an_action_means_the_nearest_choice_that_is_left() -> None:
    space = space_on(Stairs(), "plain20")
    bounds = Bounds.of(space, Budget.of("latency_ms", space.cost({}), ratio=1.0))
    decision = next(d for d in space.decisions if d.choices[-1] == 64)
    for choice in bounds.choices[decision.name]:
        ratio = space.encode(decision, choice) + 0.01
        assert bounds.choose({}, decision, ratio) == choice


def test_an_unreachable_latency_is_refused_with_the_smallest() -> None:
    space = space_on(Stairs())
    least = space.cost(Bounds.of(space, Budget("latency_ms", 1e9)).floor)["latency_ms"]
    with pytest.raises(UserError, match="latency_ms cannot be reached") as caught:
        Bounds.of(space, Budget("latency_ms", 0.99 * least))
    assert least <= float(named(caught.value)[0]) < least * (1 + 2e-5)
    assert Bounds.of(space, Budget("latency_ms", least)).uniform()


def named(error: UserError) -> tuple[str, str]:
    """The limit and the ratio that are said to be the smallest possible."""
    found = re.search(r"smallest possible is (\S+) \(ratio (\S+)\)", str(error))
    assert found is not None
    return found[1], found[2]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("network", ["resnet20", "plain20"])
def test_law_2_the_smallest_value_that_is_named_can_be_typed_back(
    metric: Metric, network: str
) -> None:
    space = space_on(Stairs(0.05), network, 3)
    original = space.cost({})
    with pytest.raises(UserError) as caught:
        Bounds.of(space, Budget.of(metric, original, ratio=1e-4))
    limit, ratio = named(caught.value)
    for budget in (
        Budget.of(metric, original, limit=float(limit)),
        Budget.of(metric, original, ratio=float(ratio)),
        Budget.of(metric, original, ratio=(float(ratio), 1.0)),
    ):
        assert space.cost(Bounds.of(space, budget).floor)[metric] <= (budget.least or budget.limit)


@pytest.mark.parametrize("limit", [math.nan, math.inf, -math.inf, 0, -1])
def test_a_limit_is_a_number_above_0(limit: float) -> None:
    cost = Cost(100, 10, 1000)
    for given in ({"limit": limit}, {"ratio": limit}):
        with pytest.raises(UserError, match=f"budget.{next(iter(given))} is {limit}: it must be"):
            Budget.of("macs", cost, **given)


@pytest.mark.parametrize("metric", ["macs", "latency_ms"])
def test_rounding_up_never_falls_below(metric: Metric) -> None:
    def cost(value: float) -> Cost:
        return Cost(int(value), 1, 1, value)

    generator = np.random.default_rng(0)
    for whole in 10 ** generator.uniform(-3 if metric == "latency_ms" else 3, 13, 2000):
        least, original = cost(whole * generator.uniform(0.01, 1)), cost(whole)
        with pytest.raises(UserError) as caught:
            Budget(metric, 0.0).check_reachable(least, original)
        limit, ratio = named(caught.value)
        Budget.of(metric, original, limit=float(limit)).check_reachable(least, original)
        Budget.of(metric, original, ratio=float(ratio)).check_reachable(least, original)


class Widths(LayerwiseSpace):
    """Decides one layer of three; why the others are left alone takes two lines."""

    def find_decisions(self) -> list[Decision]:
        reason = "it is not\nwanted"
        self.left_alone = dict.fromkeys(("0", "2", "3", "4"), reason)
        return [Decision("1", ("1",), (1, 40))]

    def resize_layer(self, layer: LayerSpec, rank: int) -> tuple[LayerSpec, ...]:
        first = replace(layer, name=f"{layer.name}.0", out_channels=rank, per_channel_params=0)
        return first, replace(layer, name=f"{layer.name}.1", in_channels=rank)

    def replace_layer(self, module: nn.Module, rank: int) -> nn.Module:
        raise NotImplementedError


@pytest.mark.parametrize("metric", ["macs", "params", "memory_bytes"])
def test_an_unreachable_budget_says_what_is_left_alone(metric: Metric) -> None:
    sizes = ((30, 40), (40, 40), (40, 50), (50, 10), (10, 90))
    model = nn.Sequential(*(nn.Linear(n, m) for n, m in sizes))
    space = Widths(Network.of(model, (30,)))
    with pytest.raises(UserError) as caught:
        Bounds.of(space, Budget(metric, 1))
    text = str(caught.value)
    assert re.search(
        r"possible is [0-9]+ \(ratio 0\.[0-9]{4}\); 4 layers are left alone: 2 \(it is "
        r"not wanted\), 0 \(it is not wanted\), 4 \(it is not wanted\) and 1 more$",
        text,
    ), text
    space.left_alone = {"2": "its channels are mixed"}
    with pytest.raises(UserError, match=r"; 1 layer is left alone: 2 \(its channels are mixed\)$"):
        Bounds.of(space, Budget(metric, 1))
    space.left_alone = {}
    with pytest.raises(UserError, match=r"\(ratio 0\.[0-9]{4}\)$"):
        Bounds.of(space, Budget(metric, 1))


def test_a_latency_too() -> None:
    space = space_on(Stairs())
    _ = space.decisions
    space.left_alone = {"linear": "of no use", "layer3.0.conv1": "kept"}
    with pytest.raises(
        UserError, match=r"2 layers are left alone: layer3\.0\.conv1 \(kept\), linear"
    ):
        Bounds.of(space, Budget("latency_ms", 1e-9))


def test_the_smallest_choice_may_be_slow() -> None:
    """A floor of the smallest widths would make a budget look out of reach that is not."""
    space = space_on(Stairs(odd=5.0), round_to=1)
    smallest = space.cost(space.smallest)["latency_ms"]
    floor = Bounds.of(space, Budget("latency_ms", 1e9)).floor
    assert space.cost(floor)["latency_ms"] < 0.7 * smallest
    budget = Budget("latency_ms", 0.8 * smallest)
    assert budget.allows(space.cost(walk(space, budget, lambda: 0.0)))
