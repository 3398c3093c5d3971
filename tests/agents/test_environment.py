"""The Gymnasium environment."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from amc.envs.observation import FEATURES, Amc, Position
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from zoo import env_around, zoo_env, zoo_network, zoo_space

from amc.spaces.base import CompressionSpace
from amc.spaces.channel import ChannelSpace
from amc.spaces.lowrank import LowRankSpace
from amc.spaces.mixed import MixedSpace


@pytest.mark.parametrize("fill", [False, True])
def test_conforms_to_gymnasium_and_stable_baselines3(fill: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(zoo_env(fill=fill).unwrapped, skip_render_check=True)
        sb3_check_env(zoo_env(fill=fill))


@pytest.mark.parametrize("name", ["resnet20", "plain20", "mobilenet_v1"])
@pytest.mark.parametrize("actions", ["small", "large", "zero", "random"])
def test_a_budget_that_is_filled(name: str, actions: str) -> None:
    """Law 2 with scaling: within budget, and no single step more would be."""
    env, space = zoo_env(name, fill=True), zoo_space(name)
    rng = np.random.default_rng(0)
    env.reset()
    for _ in space.decisions:
        fixed = {"small": 0.3, "large": 1.0, "zero": 0.0, "random": rng.random()}
        *_, info = env.step(np.array([fixed[actions]], np.float32))
    strategy, budget = info["outcome"].strategy, env.get_wrapper_attr("bounds").budget
    assert budget.allows(space.cost(strategy))
    for decision in space.decisions:
        larger = [choice for choice in decision.choices if choice > strategy[decision.name]]
        assert not larger or not budget.allows(space.cost({**strategy, decision.name: larger[0]}))
    ratios = [space.encode(d, strategy[d.name]) for d in space.decisions]
    assert list(info["executed_ratios"]) == ratios
    if actions != "random":
        assert strategy == env.get_wrapper_attr("bounds").uniform(), "equal ratios are uniform"


def test_an_episode() -> None:
    env = zoo_env()
    observation, _ = env.reset(seed=0)
    decisions = zoo_space("resnet20").decisions
    for index, decision in enumerate(decisions):
        assert observation.shape == (12,) and observation.min() >= 0 and observation.max() <= 1
        assert observation[FEATURES.index("index")] == pytest.approx(index / (len(decisions) - 1))
        observation, reward, terminated, truncated, info = env.step(np.array([0.6], np.float32))
        assert info["executed_ratio"] in decision.ratios
        assert observation[FEATURES.index("previous_ratio")] == pytest.approx(
            info["executed_ratio"]
        )
        assert not truncated and terminated == (index == len(decisions) - 1)
        assert reward == (-0.5 if terminated else 0)
    outcome = info["outcome"]
    assert list(info["executed_ratios"]) == [
        zoo_space("resnet20").encode(d, outcome.strategy[d.name]) for d in decisions
    ]
    assert list(outcome.strategy) == [decision.name for decision in decisions]
    assert outcome.cost.macs <= 0.5 * zoo_space("resnet20").cost({}).macs


def test_the_executed_choice_is_never_above_the_action() -> None:
    env = zoo_env(ratio=1.0)
    env.reset()
    for decision in zoo_space("resnet20").decisions:
        *_, info = env.step(np.array([0.5], np.float32))
        assert info["executed_ratio"] == min(decision.ratios, key=lambda ratio: abs(ratio - 0.5))


def space_of(kind: type[CompressionSpace], **options: Any) -> CompressionSpace:
    calibration = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return kind(zoo_network("plain20"), {"repair": "none", **options}, calibration)


SPACES = {
    "channels": lambda: space_of(ChannelSpace),
    "coupled": lambda: space_of(ChannelSpace, coupled=True),
    "ranks": lambda: space_of(LowRankSpace),
    "separate ranks": lambda: space_of(LowRankSpace, tucker_ranks="separate"),
    "mixed": lambda: space_of(MixedSpace),
}


@pytest.mark.parametrize("metric", ["macs", "params", "memory_bytes"])
@pytest.mark.parametrize("name", SPACES)
def test_reduced_and_rest_are_of_the_budgeted_metric_and_add_up(name: str, metric: str) -> None:
    """Law 12: together they are what is removed where all later decisions take their floor."""
    space = SPACES[name]()
    env = env_around(space, 1.0, metric=metric)
    whole, floor = space.cost({})[metric], env.get_wrapper_attr("bounds").floor
    features = env.get_wrapper_attr("observation").features
    reduced, rest = features.index("reduced"), features.index("rest")
    rng = np.random.default_rng(0)
    seen, _ = env.reset()
    so_far: dict[str, int] = {}
    for decision in space.decisions:
        assert seen[reduced] == pytest.approx(1 - space.cost(so_far)[metric] / whole, abs=1e-6)
        least = space.cost({**floor, **so_far})[metric]
        assert seen[reduced] + seen[rest] == pytest.approx(1 - least / whole, abs=1e-6)
        seen, *_, info = env.step(np.array([rng.random()], np.float32))
        so_far[decision.name] = space.decode(decision, info["executed_ratio"])
    cost = info["outcome"].cost[metric]
    assert seen[reduced] == pytest.approx(1 - cost / whole, abs=1e-6) and seen[rest] == 0


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("name", ["resnet20", "plain20"])
def test_the_observations_of_an_episode_are_those_of_what_was_executed(
    name: str, fill: bool
) -> None:
    """Law 12: whoever walks the executed ratios, exactly, sees what the episode says was seen."""
    env, rng = zoo_env(name, fill=fill), np.random.default_rng(1)
    features = env.get_wrapper_attr("observation").features
    for _ in range(3):
        env.reset()
        for _ in zoo_space(name).decisions:
            *_, info = env.step(rng.random(1).astype(np.float32))
        seen = [env.reset(options={"exact": True})[0]]
        for ratio in info["executed_ratios"]:
            observation, *_, then = env.step(np.array([ratio], np.float32))
            seen.append(observation)
        assert then["executed_ratios"] == info["executed_ratios"]
        np.testing.assert_array_equal(np.stack(seen), info["observations"])
        previous = info["observations"][1:, features.index("previous_ratio")]
        np.testing.assert_allclose(previous, info["executed_ratios"], rtol=1e-6)


def test_an_exact_episode_measures_what_it_is_told() -> None:
    """Whatever the budget says; it is called infeasible."""
    env, space = zoo_env(ratio=0.3, fill=True), zoo_space("resnet20")
    env.reset(options={"exact": True})
    for _ in space.decisions:
        *_, info = env.step(np.array([1.0], np.float32))
    assert info["outcome"].strategy == space.complete({}) and not info["feasible"]
    env.reset()
    for _ in space.decisions:
        *_, info = env.step(np.array([1.0], np.float32))
    assert info["feasible"], "the next one is bounded again"


def test_a_rehearsal_is_the_episode_without_measuring() -> None:
    env = zoo_env(fill=True)
    rng = np.random.default_rng(2)
    wanted = rng.random(len(zoo_space("resnet20").decisions)).tolist()
    left = iter(wanted)
    ratios, seen = env.get_wrapper_attr("rehearse")(lambda _: next(left))
    env.reset(options={"episode": 0})
    for ratio in wanted:
        *_, info = env.step(np.array([ratio], np.float32))
    assert info["executed_ratios"] == ratios
    np.testing.assert_array_equal(info["observations"], seen)


def test_a_constant_feature_is_zero() -> None:
    space = zoo_space("plain20")
    observation = Amc(space)(Position((1.0, 0.5, 0.2), 0.3, 0.4, 0.5))
    assert observation[FEATURES.index("kernel")] == 0
