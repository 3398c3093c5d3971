"""Dynamic distribution pruning (DDPNAS: Zheng et al. 2019, arXiv 1905.13543): the choices of every
decision are tried equally often, and the least likely ones are dropped until one is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from amc.agents.proposing import EpisodeOptions, ProposingAgent, Ratios
from numpy.typing import NDArray
from pydantic import Field

MEMORY = 0.5  # of the distribution before, in an update (published)

Distribution = NDArray[np.float64]


class DDPNASOptions(EpisodeOptions):
    """The options of the agent."""

    subrounds: int = Field(
        3,
        ge=1,
        le=1_000,
        description="how often, at least, every choice that is left is tried before some are "
        "dropped; less often where episodes are too few",
    )
    sharpness: float = Field(
        5.0,
        gt=0,
        le=1_000,
        description="of the softmax over rewards, which are scaled so that the median of all so "
        "far is 0 and the best is 1",
    )


@dataclass(frozen=True)
class Round:
    """What happens between two updates."""

    left: int  # choices after it, of the decision that has most
    subrounds: int
    samples: int  # strategies in a subround


class DDPNASAgent(ProposingAgent):
    """In a subround every decision draws its live choices without replacement, so that each is
    tried once. Its share in the subround is the softmax of ``sharpness`` times the reward, over the
    choices of the decision. After the subrounds of a round the distribution becomes the mean of the
    shares plus half of what it was, the least likely choices are dropped, and the rest is scaled to
    sum to one. The last strategy is the one that is left.

    Differences from the paper:

    1. Rewards may be of any scale, as minus a KL: they are scaled so that the median of all so far
       is 0 and the best is 1. The paper takes 100 times the accuracy: with the default
       ``sharpness`` that is so where the best lies five points above the median.
    2. The environment bounds or scales what is proposed. Choices are credited as executed: with the
       mean over the strategies of the subround that executed them, and with nothing if none did.
    3. Decisions differ in their numbers of choices. Those with fewer draw anew when theirs have
       run out, and lose the same part of them, so that all end together.
    4. A round drops not one choice but a fraction, the smallest with which one is left when the
       episodes end; one by one where they suffice. What they leave over goes to more subrounds.
    5. A reward is that of the compressed network itself: there is no supernet that is trained
       meanwhile.
    """

    Options = DDPNASOptions
    options: DDPNASOptions

    def begin(self) -> None:
        self._ratios = [np.array(decision.ratios) for decision in self.space.decisions]
        self._theta = [np.full(len(ratios), 1 / len(ratios)) for ratios in self._ratios]
        self._rounds = rounds(self._most(), self.episodes - 1, self.options.subrounds)
        self._subrounds = 0  # of the first of these, that are proposed
        self._ended = False

    def propose(self) -> list[Ratios]:
        if self._rounds and self._subrounds == self._rounds[0].subrounds:
            self._update(self._rounds.pop(0))
            self._subrounds = 0
        if self._rounds:
            self._subrounds += 1
            drawn = [self._drawn(theta > 0, self._rounds[0].samples) for theta in self._theta]
            return self._of(np.array(drawn).T)
        ended, self._ended = self._ended, True
        return [] if ended else self._of([[int(theta.argmax()) for theta in self._theta]])

    def probabilities(self) -> list[Distribution]:
        """Of each decision's choices."""
        return [theta.copy() for theta in self._theta]

    def _most(self) -> int:
        return max(int((theta > 0).sum()) for theta in self._theta)

    def _of(self, strategies: Iterable[Sequence[int]]) -> list[Ratios]:
        """The keep ratios of strategies, which are a choice's number for each decision."""
        return [
            np.array([ratios[one] for ratios, one in zip(self._ratios, strategy, strict=True)])
            for strategy in strategies
        ]

    def _drawn(self, alive: NDArray[np.bool_], count: int) -> list[int]:
        """Live choices without replacement; all anew when they have run out."""
        drawn: list[int] = []
        while len(drawn) < count:
            drawn += self.generator.permutation(np.flatnonzero(alive)).tolist()
        return drawn[:count]

    def _update(self, over: Round) -> None:
        """A round is over."""
        rewards = np.array([walk.reward for walk in self.walks])
        middle = np.median(rewards)
        scaled = self.options.sharpness * (rewards - middle) / ((rewards.max() - middle) or 1.0)
        parts = np.arange(len(rewards))[-over.subrounds * over.samples :]
        most, executed = self._most(), np.array([walk.ratios for walk in self.walks])
        for number, (theta, ratios) in enumerate(zip(self._theta, self._ratios, strict=True)):
            taken = np.abs(ratios[:, None] - executed[:, number]).argmin(0)
            alive = theta > 0
            shares = [
                _shares(alive, taken[part], scaled[part])
                for part in np.split(parts, over.subrounds)
            ]
            left = 1 + round((int(alive.sum()) - 1) * (over.left - 1) / max(1, most - 1))
            theta[:] = _dropped(np.mean(shares, axis=0) + MEMORY * theta, alive, left)


def _shares(
    alive: NDArray[np.bool_], taken: NDArray[np.int64], rewards: NDArray[np.float64]
) -> Distribution:
    """The softmax over the live choices of a decision, of the mean reward of each."""
    counts = np.bincount(taken, minlength=len(alive))
    sums = np.bincount(taken, rewards, minlength=len(alive))
    credited = alive & (counts > 0)
    shares = np.zeros(len(alive))
    if credited.any():
        means = sums[credited] / counts[credited]
        shares[credited] = np.exp(means - means.max())
        shares /= shares.sum()
    return shares


def _dropped(theta: Distribution, alive: NDArray[np.bool_], left: int) -> Distribution:
    """The likeliest live choices, scaled to sum to one; of equal ones the largest ratios stay."""
    order = np.argsort(np.where(alive, theta, -1.0), kind="stable")
    kept = np.zeros(len(theta))
    kept[order[-left:]] = np.maximum(theta[order[-left:]], np.finfo(float).tiny)
    scaled: Distribution = kept / kept.sum()
    return scaled


def rounds(choices: int, episodes: int, subrounds: int) -> list[Round]:
    """The rounds after which one of so many choices is left, within so many episodes.

    The fraction dropped in a round is the smallest that the episodes suffice for, up to a half;
    else there are fewer subrounds, then larger fractions, and at last one round of the choices that
    can be tried.
    """
    if choices == 1 or episodes < 1:
        return []
    ways = [(count, kept) for count in range(subrounds, 0, -1) for kept in range(64, 31, -1)]
    for count, kept in [*ways, *((1, kept) for kept in range(31, -1, -1))]:
        path = [choices]
        while path[-1] > 1:
            path.append(max(1, min(path[-1] - 1, path[-1] * kept // 64)))
        spare = episodes - count * sum(path[:-1])
        if spare >= 0:
            return _filled(path, count, spare)
    return [Round(1, 1, episodes)]


def _filled(path: list[int], count: int, spare: int) -> list[Round]:
    """Rounds of so many subrounds; spare episodes go to more of them, in turn."""
    each, spare = divmod(spare, sum(path[:-1]))
    found = []
    for before, left in pairwise(path):
        more = spare >= before
        spare -= before * more
        found.append(Round(left, count + each + more, before))
    return found
