"""From a strategy to its outcome: apply, repair, measure on the held-out images. A strategy is
never measured twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from amc.cost.budget import Budget
from amc.cost.cost import Cost
from amc.errors import UserError
from amc.evaluate.inference import (
    AGREEMENT,
    ImageSet,
    Precision,
    has_bf16_units,
    logits,
    mean_score,
    per_image,
    prepared,
    score,
)
from amc.evaluate.racing import blocks, estimate, is_hopeless
from amc.evaluate.rewards import Reward, Score
from amc.spaces.base import CompressionSpace, Strategy


@dataclass(frozen=True)
class Outcome:
    """What one episode came to."""

    strategy: dict[str, int]
    ratios: tuple[float, ...]  # the keep ratio of each decision, in order
    score: Score
    cost: Cost
    reward: float
    feasible: bool
    seconds: float
    profile: Mapping[str, float] = field(default_factory=dict)  # part -> seconds
    stopped_after: int | None = None  # images, where racing stopped it: the score is an estimate

    @property
    def can_be_best(self) -> bool:
        """Whether it keeps the budget and was measured on all images."""
        return self.feasible and self.stopped_after is None

    def as_line(self) -> dict[str, Any]:
        """The fields of an episode line in the journal."""
        return {
            "ratios": list(self.ratios),
            "strategy": self.strategy,
            "search_accuracy": self.score.accuracy,
            "cross_entropy": self.score.cross_entropy,
            "kl": self.score.kl,
            **self.cost.as_dict(),
            "reward": self.reward,
            "feasible": self.feasible,
            "seconds": self.seconds,
            "profile": dict(self.profile),
            "stopped_after": self.stopped_after,
        }

    @classmethod
    def from_line(cls, line: Mapping[str, Any]) -> Outcome:
        """The inverse of `as_line`."""
        return cls(
            dict(line["strategy"]),
            tuple(line["ratios"]),
            Score(line["search_accuracy"], line["cross_entropy"], line["kl"]),
            Cost(line["macs"], line["params"], line["memory_bytes"], line["latency_ms"]),
            line["reward"],
            line["feasible"],
            line["seconds"],
            line.get("profile", {}),  # runs of version 0.1 have neither
            line.get("stopped_after"),
        )


class Evaluator:
    """Measures strategies of one space on one set of images, against one budget.

    Args:
        space: whose strategies are measured.
        images: to measure on.
        budget: what they must keep.
        reward: of a score and a cost.
        precision: auto, fp32 or bf16.
        racing: the confidence with which a strategy must be worse than the best one so far for its
            measurement to be stopped (`amc.evaluate.racing`); None measures all on all images.
    """

    def __init__(
        self,
        space: CompressionSpace,
        images: ImageSet,
        budget: Budget,
        reward: Reward,
        precision: Precision = "auto",
        racing: float | None = None,
    ) -> None:
        if racing is not None:  # blocks must be alike, whatever order the images are in
            shuffled = torch.Generator().manual_seed(0)
            images = images[torch.randperm(len(images.labels), generator=shuffled)]
        self.space, self.images, self.budget, self.reward = space, images, budget, reward
        self.racing = racing
        self.original = space.cost({})
        self.clock = space.clock
        self._size = space.network.table.activations.batch_size()
        self._outcomes: dict[tuple[int, ...], Outcome] = {}
        self._leader: Outcome | None = None
        self._leader_values: Tensor | None = None  # per image
        self.precision_note = ""
        self._bf16 = self._choose(precision)

    def _choose(self, precision: Precision) -> bool:
        """Measure the untouched network; take bf16 only where it agrees with fp32."""
        self._reference = self._untouched(self.images, False)
        self.baseline = score(self._reference, self.images.labels)
        if precision == "fp32" or (precision == "auto" and not has_bf16_units()):
            return False
        outputs = self._untouched(self.images, True)
        difference = abs(score(outputs, self.images.labels).accuracy - self.baseline.accuracy)
        if difference <= AGREEMENT:
            return True
        why = f"bf16 differs from fp32 by {100 * difference:.2f} points on the untouched network"
        if precision == "bf16":
            raise UserError(f"evaluate.precision is bf16, but {why}")
        self.precision_note = f"{why}: using fp32"
        return False

    def _untouched(self, images: ImageSet, bf16: bool) -> Tensor:
        network = self.space.network
        return logits(prepared(network.model, network, bf16), images, self._size, bf16)

    def untouched(self, images: ImageSet) -> Score:
        """The score of the original network on other images."""
        return score(self._untouched(images, False), images.labels)

    @property
    def precision(self) -> str:
        return "bf16" if self._bf16 else "fp32"

    def remember(self, outcome: Outcome) -> None:
        """Take over an outcome that was measured before (a resumed run)."""
        self._outcomes[tuple(outcome.strategy.values())] = outcome
        if outcome.can_be_best and (self._leader is None or outcome.reward > self._leader.reward):
            self._leader, self._leader_values = outcome, None

    def __call__(self, strategy: Strategy) -> Outcome:
        """Measure a strategy; one that was measured before is not measured again."""
        start = time.perf_counter()
        full = self.space.complete(strategy)
        known = self._outcomes.get(tuple(full.values()))
        if known is not None:
            seconds = time.perf_counter() - start
            return replace(known, seconds=seconds, profile=self.clock.take())
        cost = self.space.cost(full)
        values = self._measure(full, cost)
        measured, stopped = mean_score(values), None
        if len(values) < len(self.images.labels):
            assert self._leader is not None and self._leader_values is not None
            stopped = len(values)
            measured = estimate(values, self._leader_values[:stopped], self._leader.score)
        outcome = Outcome(
            full,
            self.space.ratios(full),
            measured,
            cost,
            self._reward(cost)(measured),
            self.budget.allows(cost),
            time.perf_counter() - start,
            self.clock.take(),
            stopped,
        )
        self.remember(outcome)
        if self._leader is outcome:
            self._leader_values = values
        return outcome

    def _reward(self, cost: Cost) -> Callable[[Score], float]:
        return lambda score: self.reward(score, cost, self.original, self.budget)

    def _measure(self, strategy: Strategy, cost: Cost, whole: bool = False) -> Tensor:
        """Of each image what `per_image` gives, (n, 3): of all images, or of as many as it took to
        see that the strategy is worse than the leader.
        """
        with self.clock("apply"):
            smaller = self.space.apply(strategy)
            model = prepared(smaller, self.space.network, self._bf16)
        leader = None if whole or self.racing is None else self._leader
        if leader is not None and self._leader_values is None:  # a resumed run
            self._leader_values = self._measure(leader.strategy, leader.cost, whole=True)
        values = torch.zeros(0, 3, dtype=torch.float64)
        count = len(self.images.labels)
        with self.clock("evaluate"):
            for block in blocks(count) if leader else [slice(0, count)]:
                images = self.images[block]
                outputs = logits(model, images, self._size, self._bf16)
                more = per_image(outputs, images.labels, self._reference[block])
                values = torch.cat([values, more])
                if leader is None or self._leader_values is None or len(values) == count:
                    continue
                rewards = self._reward(cost), self._reward(leader.cost)
                theirs = self._leader_values[: len(values)]
                if is_hopeless(values, theirs, *rewards, count, self.racing or 1.0):
                    break
        return values
