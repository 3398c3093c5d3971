"""The Gymnasium environment."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest
from amc.envs import ENV_ID
from amc.envs.observation import FEATURES, Observer
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from zoo import zoo_space

from amc.cost.budget import Budget
from amc.evaluate.outcome import Outcome
from amc.evaluate.rewards import Score
from amc.spaces.base import Strategy


def make(name: str = "resnet20", ratio: float = 0.5, fill: bool = False) -> gymnasium.Env:
    space = zoo_space(name)

    def measure(strategy: Strategy, budget: Budget) -> Outcome:
        cost = space.cost(strategy)
        return Outcome(dict(strategy), (), Score(0.5, 1.0, 0.0), cost, -0.5, True, 0.0)

    budget = Budget.of("macs", space.cost({}), ratio=ratio, fill=fill)
    return gymnasium.make(ENV_ID, space=space, budget=budget, evaluate=measure)


@pytest.mark.parametrize("fill", [False, True])
def test_conforms_to_gymnasium_and_stable_baselines3(fill: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(make(fill=fill).unwrapped, skip_render_check=True)
        sb3_check_env(make(fill=fill))


@pytest.mark.parametrize("name", ["resnet20", "plain20", "mobilenet_v1"])
@pytest.mark.parametrize("actions", ["small", "large", "zero", "random"])
def test_a_budget_that_is_filled(name: str, actions: str) -> None:
    """Law 2 with scaling: within budget, and no single step more would be."""
    env, space = make(name, fill=True), zoo_space(name)
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
    env = make()
    observation, _ = env.reset(seed=0)
    decisions = zoo_space("resnet20").decisions
    for index, decision in enumerate(decisions):
        assert observation.shape == (11,) and observation.min() >= 0 and observation.max() <= 1
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
    env = make(ratio=1.0)
    env.reset()
    for decision in zoo_space("resnet20").decisions:
        *_, info = env.step(np.array([0.5], np.float32))
        assert info["executed_ratio"] == min(decision.ratios, key=lambda ratio: abs(ratio - 0.5))


def test_reduced_and_rest_are_macs() -> None:
    space = zoo_space("plain20")
    observer = Observer(space.decisions, space.network.table)
    first, last = (
        observer(0, space.network.table.macs, 1.0),
        observer(len(space.decisions) - 1, 0, 0.3),
    )
    reduced, rest = FEATURES.index("reduced"), FEATURES.index("rest")
    own = space.network.table["conv1"].macs / space.network.table.macs
    assert first[reduced] == 0 and 0.9 < first[rest] < 1 - own
    assert last[reduced] == 1 and last[rest] == 0


def test_a_constant_feature_is_zero() -> None:
    space = zoo_space("plain20")
    observation = Observer(space.decisions, space.network.table)(3, 0, 1.0)
    assert observation[FEATURES.index("kernel")] == 0
