"""The Gymnasium environment: one episode walks a network, decision by decision, and ends with a
strategy within the budget.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import gymnasium
import numpy as np
from amc.envs.observation import Amc, FloatArray, Observation, Position, checked
from gymnasium import spaces

from amc.cost.budget import Budget
from amc.evaluate.outcome import Outcome
from amc.spaces.base import CompressionSpace, Decision, Strategy
from amc.spaces.bounding import Bounds


class CompressionEnv(gymnasium.Env[FloatArray, FloatArray]):
    """
    ## Description
    The agent walks the decisions of an action space in execution order and gives each a keep ratio.
    No weight is touched until the last decision; then the strategy is applied, repaired and
    measured, and the episode ends with its reward.

    ## Action Space
    A `Box(0, 1, (1,), float32)`: the keep ratio of the decision.

    | Num | Action     | Min | Max |
    |-----|------------|-----|-----|
    | 0   | keep ratio | 0   | 1   |

    Where the budget is not to be filled, the executed ratio is that of the largest legal choice
    which is not above the action and with which the budget can still be met when all later
    decisions take their floor (AMC, Algorithm 1; `amc.spaces.bounding`). Where it is
    (`Budget.fill`), the ratios of the whole episode are multiplied at its end by a common factor,
    as large as the budget allows. `info["executed_ratio"]` tells the ratio of a step, as far as it
    is known then; `info["executed_ratios"]`, after the last, those of the strategy.

    ## Observation Space
    A `Box(0, 1, (12,), float32)`: AMC's 11 features, scaled over the decisions of the network, and
    the budget.

    | Num | Observation                                                              |
    |-----|--------------------------------------------------------------------------|
    | 0   | index of the decision                                                    |
    | 1   | output channels                                                          |
    | 2   | input channels                                                           |
    | 3   | input height                                                             |
    | 4   | input width                                                              |
    | 5   | stride                                                                   |
    | 6   | kernel size                                                              |
    | 7   | MACs of the decision's layers                                            |
    | 8   | removed so far, as a part of the original's cost in the budget's metric  |
    | 9   | what the decisions to come would remove at their floor, as such a part   |
    | 10  | the previous keep ratio                                                  |
    | 11  | the budget of the episode, as such a part                                |

    In a space with decisions of several kinds (channels and ranks, say) the kind of the decision
    comes first, which makes it one longer. ``observation`` puts another class in the place of these
    features (`amc.envs.observation`).

    Where the budget is filled, features 8 to 10 are of the ratios as they are wanted, while the
    episode is walked: what is executed is known at its end only. `info["observations"]` then tells
    what would have been seen on the way to what was executed, (decisions + 1, features): that is
    what belongs to `info["executed_ratios"]`, and what an agent learns from.

    ## Rewards
    0 until the last decision, then the configured reward of the outcome (`amc.evaluate.rewards`).

    ## Starting State
    The first decision of the untouched network. Always the same, but for the budget where it is a
    range: it follows from the number of the episode, which counts from 0.
    `reset(options={"episode": 7, "stride": 2})` is the start of the seventh, and two are from one
    reset to the next. With `"exact": True` the episode only measures: every ratio is executed as it
    is, whether or not the budget allows it (and what it does not allow is nobody's result).

    ## Episode Termination
    After the last decision. `info["outcome"]` then holds the `Outcome`, `info["budget"]` the
    episode's budget as a part of the original's cost, and `info["feasible"]` whether it was kept.

    ## Episode Truncation
    Never.

    ## Arguments
    `gymnasium.make("amc/Compression-v0", space=..., budget=..., evaluate=..., announce=...,
    observation=...)`: an action space bound to a network, a budget, a function from a strategy and
    its budget to the outcome (without it the reward is 0), and, where strategies can be measured
    side by side, one that takes those that come next, each with its budget, and the number of the
    first one's episode; and what makes the observation of an action space.

    ## Version History
    * v0: initial version
    """

    metadata = {"render_modes": []}

    def __init__(
        self,
        space: CompressionSpace,
        budget: Budget,
        evaluate: Callable[[Strategy, Budget], Outcome] | None = None,
        announce: Callable[[Iterable[tuple[Strategy, Budget]], int], None] | None = None,
        observation: Callable[[CompressionSpace], Observation] = Amc,
    ) -> None:
        self.space, self._evaluate, self._announce = space, evaluate, announce
        self.bounds = Bounds.of(space, budget)  # of any episode
        self._within = self.bounds  # of this one
        self._episode, self._stride, self._exact = -1, 1, False
        self._whole = space.cost({})[budget.metric]
        self.budgets_differ = budget.least is not None
        self.observation = observation(space)
        self.extractor = getattr(self.observation, "extractor", None)
        self._strategy: dict[str, int] = {}
        self._wanted: dict[str, float] = {}
        self._within = self.bounds.of_episode(0)
        self._seen: list[FloatArray] = [self._observed({})]
        self.observation_space = spaces.Box(0.0, 1.0, self._seen[0].shape, np.float32)
        self.action_space = spaces.Box(0.0, 1.0, (1,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        super().reset(seed=seed)
        options = options or {}
        self._episode = options.get("episode", self._episode + self._stride)
        self._stride = options.get("stride", self._stride)
        self._exact = options.get("exact", False)
        self._within = self.bounds.of_episode(self._episode)
        self._strategy, self._wanted = {}, {}
        self._seen = [self._observed({})]
        return self._seen[0], {}

    def step(self, action: FloatArray) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        decision = self.space.decisions[len(self._strategy)]
        self._wanted[decision.name] = wanted = float(np.clip(action, 0, 1).item())
        choice = self._chosen(decision, wanted)
        self._strategy[decision.name] = choice
        self._seen.append(self._observed(self._strategy))
        info: dict[str, Any] = {"executed_ratio": self.space.encode(decision, choice)}
        done, reward = len(self._strategy) == len(self.space.decisions), 0.0
        if done:
            info |= self._end()
            reward = info["outcome"].reward if "outcome" in info else 0.0
        return self._seen[len(self._strategy)], reward, done, False, info

    def _chosen(self, decision: Decision, wanted: float) -> int:
        """What is executed, as far as it is known before the end."""
        if self._exact:
            return self.space.decode(decision, wanted)
        if self.bounds.budget.fill:
            return self.space.decode(self.bounds.decisions[decision.name], wanted)
        return self._within.choose(self._strategy, decision, wanted)

    def _end(self) -> dict[str, Any]:
        """Execute and measure the strategy."""
        if self.bounds.budget.fill and not self._exact:
            self._strategy = self._within.scaled(self._wanted)
            self._seen = self._way(self._strategy)
        info: dict[str, Any] = {
            "executed_ratios": self.space.ratios(self._strategy),
            "observations": np.stack(self._seen),
            "budget": self._within.budget.limit / self._whole,
            "feasible": self._within.budget.allows(self.space.cost(self._strategy)),
        }
        if self._evaluate is not None:
            info["outcome"] = self._evaluate(self._strategy, self._within.budget)
        return info

    def announce(
        self, episodes: Sequence[FloatArray], first: int, exact: Collection[int] = ()
    ) -> None:
        """Say which episodes come next, so that their strategies can be measured side by side.

        Args:
            episodes: the actions of each, (decisions,).
            first: the number of the first one.
            exact: the numbers of those that will be reset to be exact.
        """
        if self._announce is None:
            return
        # one by one: who does not measure side by side asks for none
        numbered = enumerate(episodes, first)
        self._announce((self._executed(*one, one[0] in exact) for one in numbered), first)

    def _executed(
        self, number: int, actions: FloatArray, exact: bool
    ) -> tuple[dict[str, int], Budget]:
        """What an episode will end in, and its budget."""
        within = self.bounds.of_episode(number)
        ratios = [float(ratio) for ratio in np.clip(np.asarray(actions, np.float32), 0, 1)]
        if not exact:
            return within.executed(ratios), within.budget
        pairs = zip(self.space.decisions, ratios, strict=True)
        return {one.name: self.space.decode(one, ratio) for one, ratio in pairs}, within.budget

    def rehearse(
        self, policy: Callable[[FloatArray], float], episode: int = 0
    ) -> tuple[tuple[float, ...], FloatArray]:
        """Walk an episode without measuring anything.

        Args:
            policy: from an observation to the keep ratio that is wanted.
            episode: its number, from which its budget follows.

        Returns:
            The executed keep ratios, and the observations that belong to them, (decisions + 1,
            features).
        """
        other = copy.copy(self)
        other._evaluate = None
        seen, _ = other.reset(options={"episode": episode, "stride": 1})
        for _ in self.space.decisions:
            seen, *_, info = other.step(np.array([policy(seen)], np.float32))
        return info["executed_ratios"], info["observations"]

    def twin(self) -> CompressionEnv:
        """Another environment for the same problem, with an episode of its own."""
        other = copy.copy(self)
        other.reset()
        return other

    def _way(self, strategy: Strategy) -> list[FloatArray]:
        """What is seen on the way to a strategy."""
        names = list(strategy)
        return [
            self._observed({name: strategy[name] for name in names[:count]})
            for count in range(len(names) + 1)
        ]

    def _observed(self, so_far: Strategy) -> FloatArray:
        """What is seen after some decisions."""
        metric = self._within.budget.metric
        now = self.space.cost(so_far)[metric]
        least = self.space.cost({**self.bounds.floor, **so_far})[metric]
        made = self.space.decisions[: len(so_far)]
        position = Position(
            tuple(self.space.encode(d, so_far[d.name]) for d in made),
            1 - now / self._whole,
            (now - least) / self._whole,
            self._within.budget.limit / self._whole,
        )
        return checked(self.observation, self.observation(position))
