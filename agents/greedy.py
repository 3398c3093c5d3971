"""Greedy shrinking by measured sensitivity, as NetAdapt does it (Yang et al., ECCV 2018)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from amc.agents.proposing import ProposingAgent, Ratios


class GreedyAgent(ProposingAgent):
    """Starts from the untouched network. In each round every decision in turn is shrunk until the
    network has lost the round's share of the budgeted metric; the one that loses least reward, for
    an equal gain that is, is kept.

    NetAdapt measures networks that are still over the budget. Here each of them is measured scaled
    down to it, since an episode may not end over it: what a decision is worth is seen at the
    budget. The rounds are as many as the episodes allow.
    """

    def begin(self) -> None:
        self._now = {name: choices[-1] for name, choices in self.bounds.choices.items()}
        whole = self._cost(self._now)
        rounds = max(1, self.options.episodes // self.steps)
        self._share = (whole - self.bounds.budget.limit) / rounds
        self._target = whole
        self._trials: list[dict[str, int]] = []

    def propose(self) -> list[Ratios]:
        if self._trials:
            rewards = [walk.reward for walk in self.walks[-len(self._trials) :]]
            self._now = self._trials[int(np.argmax(rewards))]
        self._trials = []
        limit = self.bounds.budget.limit
        while not self._trials and self._target > limit:
            self._target = max(limit, self._target - self._share)
            shrunk = (self._shrunk(name) for name in self.bounds.choices)
            self._trials = [trial for trial in shrunk if trial is not None]
        return [self.scaled(np.array(self.space.ratios(trial))) for trial in self._trials]

    def _cost(self, strategy: Mapping[str, int]) -> float:
        return float(self.space.cost(strategy)[self.bounds.budget.metric])

    def _shrunk(self, name: str) -> dict[str, int] | None:
        """The strategy with one decision small enough for the round's target; None where it cannot
        be.
        """
        floor, now = self.bounds.floor[name], self._now[name]
        for choice in reversed(self.bounds.choices[name]):
            trial = {**self._now, name: choice}
            if floor <= choice < now and self._cost(trial) <= self._target:
                return trial
        return None
