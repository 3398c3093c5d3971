"""The laws of the project, on every network of the zoo."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from zoo import ZOO, zoo_space

from amc.cost.budget import Budget
from amc.cost.cost import METRICS
from amc.errors import UserError
from amc.network.layers import evaluating, example_input
from amc.network.trace import trace
from amc.surgery.cut import cut, masking
from amc.testing import random_strategy, same_table, walk


def strategies(name: str) -> list[dict[str, int]]:
    space = zoo_space(name)
    return [random_strategy(space, 0), space.smallest]


@pytest.mark.parametrize("name", ZOO)
def test_law_1_paper_is_metal(name: str) -> None:
    space = zoo_space(name)
    assert space.decisions
    for strategy in strategies(name):
        metal = trace(space.apply(strategy), space.network.input_shape)
        assert same_table(space.resize(strategy), metal) is None


@pytest.mark.parametrize("name", ZOO)
def test_law_6_cut_is_mask(name: str) -> None:
    space = zoo_space(name)
    exact = copy.deepcopy(space.network.model).double()
    image = example_input(exact, space.network.input_shape, batch=2, seed=3)
    for strategy in strategies(name):
        cuts = space.cuts(strategy)
        smaller = cut(exact, cuts)
        with evaluating(smaller), evaluating(exact):
            got, untouched = smaller(image), exact(image)
            with masking(exact, cuts):
                expected = exact(image)
        assert torch.allclose(got, expected, rtol=1e-7, atol=1e-9 * float(expected.abs().max()))
        assert not torch.allclose(got, untouched, rtol=1e-3), "nothing was cut"


def test_cut_is_mask_catches_a_wrong_mapping() -> None:
    """The law can fail: channels shifted by one have the right shapes and the wrong outputs."""
    space = zoo_space("resnet20")
    exact = copy.deepcopy(space.network.model).double()
    cuts = space.cuts(space.smallest)
    wrong = copy.deepcopy(cuts)
    layer = "layer1.0.conv2"
    removed = wrong[layer]["in"]
    wrong[layer]["in"] = sorted((channel + 1) % 16 for channel in removed)
    image = example_input(exact, (3, 32, 32), batch=2)
    smaller = cut(exact, wrong)
    with evaluating(smaller), evaluating(exact), masking(exact, cuts):
        assert not torch.allclose(smaller(image), exact(image), rtol=1e-3)


@pytest.mark.parametrize(
    "name", ["resnet56", "tv_mobilenet_v2", "tv_googlenet", "tv_shufflenet_v2"]
)
@pytest.mark.parametrize("metric", METRICS[:3])
def test_law_2_no_episode_over_budget(name: str, metric: str) -> None:
    space = zoo_space(name)
    original, smallest = space.cost({}), space.cost(space.smallest)
    budget = Budget(metric, 0.3 * original[metric] + 0.7 * smallest[metric])  # type: ignore[arg-type,index]
    generator = np.random.default_rng(0)
    for act in (lambda: 1.0, lambda: 0.0, lambda: float(generator.random())):
        strategy = walk(space, budget, act)
        assert budget.allows(space.cost(strategy))
    largest = walk(space, budget, lambda: 1.0)
    assert space.cost(largest)[budget.metric] > 0.9 * budget.limit, (
        "all ones should use up the budget"
    )


def test_law_2_unreachable_budget_is_refused() -> None:
    space = zoo_space("resnet20")
    least = space.cost(space.smallest).macs
    with pytest.raises(UserError, match=str(least)):
        walk(space, Budget("macs", least - 1), lambda: 1.0)
    assert space.cost(walk(space, Budget("macs", least), lambda: 1.0)).macs == least


@pytest.mark.parametrize(
    "name", ["resnet20", "tv_googlenet", "tv_regnet_x_400mf", "tv_efficientnet_b0"]
)
def test_law_5_monotone(name: str) -> None:
    space = zoo_space(name)
    for seed, decision in enumerate(space.decisions[:12]):
        base = random_strategy(space, seed)
        costs = [space.cost({**base, decision.name: choice}) for choice in decision.choices]
        for metric in METRICS[:3]:
            values = [cost[metric] for cost in costs]
            assert values == sorted(values)


@pytest.mark.parametrize("name", ["resnet20", "tv_densenet", "tv_shufflenet_v2"])
def test_law_5_ratio_one_changes_nothing(name: str) -> None:
    space = zoo_space(name)
    image = example_input(space.network.model, space.network.input_shape)
    new = space.apply({decision.name: decision.choices[-1] for decision in space.decisions})
    with evaluating(new), evaluating(space.network.model):
        assert torch.equal(new(image), space.network.model(image))


def test_surgery_leaves_the_original_alone() -> None:
    space = zoo_space("resnet20")
    before = copy.deepcopy(space.network.model.state_dict())
    assert isinstance(space.apply(space.smallest), nn.Module)
    after = space.network.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
