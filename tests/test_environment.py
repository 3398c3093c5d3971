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
from amc.evaluate.evaluator import Outcome
from amc.evaluate.rewards import Score
from amc.spaces.base import Strategy


def make(name: str = "resnet20", ratio: float = 0.5) -> gymnasium.Env:
    space = zoo_space(name)

    def measure(strategy: Strategy) -> Outcome:
        cost = space.cost(strategy)
        return Outcome(dict(strategy), (), Score(0.5, 1.0, 0.0), cost, -0.5, True, 0.0)

    return gymnasium.make(
        ENV_ID, space=space, budget=Budget.of("macs", space.cost({}), ratio=ratio), evaluate=measure
    )


def test_conforms_to_gymnasium_and_stable_baselines3() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(make().unwrapped, skip_render_check=True)
        sb3_check_env(make())


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
