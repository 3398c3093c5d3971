"""The Gymnasium environment: one episode walks a network, decision by decision, and ends with a
strategy within the budget.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gymnasium
import numpy as np
from amc.envs.observation import FloatArray, Observer
from gymnasium import spaces

from amc.cost.budget import Budget
from amc.evaluate.outcome import Outcome
from amc.spaces.base import CompressionSpace, Strategy
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
    A `Box(0, 1, (11,), float32)`: AMC's features, scaled over the decisions of the network.

    | Num | Observation                                        |
    |-----|----------------------------------------------------|
    | 0   | index of the decision                              |
    | 1   | output channels                                    |
    | 2   | input channels                                     |
    | 3   | input height                                       |
    | 4   | input width                                        |
    | 5   | stride                                             |
    | 6   | kernel size                                        |
    | 7   | MACs of the decision's layers                      |
    | 8   | MACs removed so far, as a part of the network's    |
    | 9   | MACs of the layers still to come, likewise         |
    | 10  | the previous executed keep ratio                   |

    In a space with decisions of several kinds (channels and ranks, say) the kind of the decision
    comes first. Where the budget is a range, the budget of the episode, as a part of the original's
    cost, comes last. Each makes it one longer.

    ## Rewards
    0 until the last decision, then the configured reward of the outcome (`amc.evaluate.rewards`).

    ## Starting State
    The first decision of the untouched network. Always the same, but for the budget where it is a
    range: it follows from the number of the episode, which counts from 0.
    `reset(options={"episode": 7, "stride": 2})` is the start of the seventh, and two are from one
    reset to the next.

    ## Episode Termination
    After the last decision. `info["outcome"]` then holds the `Outcome`.

    ## Episode Truncation
    Never.

    ## Arguments
    `gymnasium.make("amc/Compression-v0", space=..., budget=..., evaluate=..., announce=...)`: an
    action space bound to a network, a budget, a function from a strategy and its budget to the
    outcome, and, where strategies can be measured side by side, one that takes those that come
    next, each with its budget, and the number of the first one's episode.

    ## Version History
    * v0: initial version
    """

    metadata = {"render_modes": []}

    def __init__(
        self,
        space: CompressionSpace,
        budget: Budget,
        evaluate: Callable[[Strategy, Budget], Outcome],
        announce: Callable[[Iterable[tuple[Strategy, Budget]], int], None] | None = None,
    ) -> None:
        self.space, self._evaluate, self._announce = space, evaluate, announce
        self.bounds = Bounds.of(space, budget)  # of any episode
        self._within = self.bounds  # of this one
        self._episode, self._stride = -1, 1
        self._whole = space.cost({})[budget.metric]
        self.budgets_differ = budget.least is not None
        self._observe = Observer(space.decisions, space.network.table, self.budgets_differ)
        features = len(self._observe.features)
        self.observation_space = spaces.Box(0.0, 1.0, (features,), np.float32)
        self.action_space = spaces.Box(0.0, 1.0, (1,), np.float32)
        self._strategy: dict[str, int] = {}
        self._wanted: dict[str, float] = {}
        self._ratio = 1.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        super().reset(seed=seed)
        options = options or {}
        self._episode = options.get("episode", self._episode + self._stride)
        self._stride = options.get("stride", self._stride)
        self._within = self.bounds.of_episode(self._episode)
        self._strategy, self._wanted, self._ratio = {}, {}, 1.0
        return self._observation(), {}

    def step(self, action: FloatArray) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        decision = self.space.decisions[len(self._strategy)]
        self._wanted[decision.name] = wanted = float(np.clip(action, 0, 1).item())
        fill = self.bounds.budget.fill
        choice = (
            self.space.decode(self.bounds.decisions[decision.name], wanted)
            if fill
            else self._within.choose(self._strategy, decision, wanted)
        )
        self._strategy[decision.name] = choice
        self._ratio = self.space.encode(decision, choice)
        info: dict[str, Any] = {"executed_ratio": self._ratio}
        done = len(self._strategy) == len(self.space.decisions)
        reward = 0.0
        if done:
            if fill:
                self._strategy = self._within.scaled(self._wanted)
            info["executed_ratios"] = self.space.ratios(self._strategy)
            outcome = self._evaluate(self._strategy, self._within.budget)
            reward, info["outcome"] = outcome.reward, outcome
        return self._observation(), reward, done, False, info

    def announce(self, episodes: Sequence[FloatArray], first: int) -> None:
        """Say which episodes come next, so that their strategies can be measured side by side.

        Args:
            episodes: the actions of each, (decisions,).
            first: the number of the first one.
        """
        if self._announce is None:
            return
        # one by one: who does not measure side by side asks for none
        numbered = enumerate(episodes, first)
        self._announce((self._executed(*episode) for episode in numbered), first)

    def _executed(self, number: int, actions: FloatArray) -> tuple[dict[str, int], Budget]:
        """What an episode will end in, and its budget."""
        within = self.bounds.of_episode(number)
        wanted = np.clip(np.asarray(actions, np.float32), 0, 1)
        return within.executed([float(action) for action in wanted]), within.budget

    def twin(self) -> CompressionEnv:
        """Another environment for the same problem, with an episode of its own."""
        other = copy.copy(self)
        other.reset()
        return other

    def _observation(self) -> FloatArray:
        macs = self.space.resize(self._strategy).macs
        budget = self._within.budget.limit / self._whole
        return self._observe(len(self._strategy), macs, self._ratio, budget)
