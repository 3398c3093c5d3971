"""Dynamic distribution pruning (DDPNAS: Zheng et al. 2019, arXiv 1905.13543): a categorical
distribution over the choices of each decision is sampled and updated, and loses its least likely
choices until one is left.
"""

from __future__ import annotations

import numpy as np
from amc.agents.proposing import EpisodeOptions, ProposingAgent, Ratios
from numpy.typing import NDArray
from pydantic import Field


class DDPNASOptions(EpisodeOptions):
    """The options of the agent."""

    epoch: int = Field(
        10, ge=2, le=10_000, description="strategies that are sampled between two updates"
    )
    prunings: int = Field(
        20,
        ge=1,
        le=10_000,
        description="how often, over the search, the least likely choices are removed",
    )
    rate: float = Field(0.3, gt=0, le=100, description="step of an update of the probabilities")


class DDPNASAgent(ProposingAgent):
    """Samples every decision's choice from its own distribution.

    After an epoch the probability of a choice grows with the advantage (the rank of the reward in
    the epoch, from -1 to 1) of the strategies that executed it. At equal intervals so many of the
    least likely choices go that at the last pruning one is left.
    """

    Options = DDPNASOptions
    options: DDPNASOptions

    def begin(self) -> None:
        self._ratios = [np.array(decision.ratios) for decision in self.space.decisions]
        self._logits = [np.zeros(len(ratios)) for ratios in self._ratios]
        self._alive = [np.ones(len(ratios), dtype=bool) for ratios in self._ratios]

    def propose(self) -> list[Ratios]:
        if self.walks:
            self._update()
            self._prune()
        return [self._sample() for _ in range(self.options.epoch)]

    def probabilities(self) -> list[NDArray[np.float64]]:
        """Of each decision's choices."""
        result = []
        for logits, alive in zip(self._logits, self._alive, strict=True):
            weights = np.where(alive, np.exp(logits - logits[alive].max()), 0.0)
            result.append(weights / weights.sum())
        return result

    def _sample(self) -> Ratios:
        pairs = zip(self._ratios, self.probabilities(), strict=True)
        return np.array([self.generator.choice(ratios, p=p) for ratios, p in pairs])

    def _update(self) -> None:
        last = self.walks[-self.options.epoch :]
        order = np.argsort([walk.reward for walk in last], kind="stable")
        advantages = np.empty(len(last))
        advantages[order] = np.linspace(-1.0, 1.0, len(last))
        probabilities = self.probabilities()
        for walk, advantage in zip(last, advantages, strict=True):
            for step, ratio in enumerate(walk.ratios):
                taken = int(np.argmin(np.abs(self._ratios[step] - ratio)))
                change = -probabilities[step]
                change[taken] += 1
                self._logits[step] += self.options.rate * advantage * change

    def _prune(self) -> None:
        """Remove what is due by now: the number of choices falls linearly to one."""
        done = self.episodes_done / self.episodes * (1 + 1 / self.options.prunings)
        due = np.floor(done * self.options.prunings) / self.options.prunings
        for logits, alive in zip(self._logits, self._alive, strict=True):
            keep = max(1, round(len(alive) - due * (len(alive) - 1)))
            order = np.argsort(np.where(alive, logits, -np.inf), kind="stable")
            alive[order[: len(alive) - keep]] = False
