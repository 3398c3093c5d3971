"""From a strategy to its outcome: apply, repair, measure on the held-out images. A strategy is
never measured twice.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from amc.cost.budget import Budget
from amc.cost.cost import Cost
from amc.errors import UserError
from amc.evaluate.inference import (
    AGREEMENT,
    ImageSet,
    Precision,
    batch_size,
    has_bf16_units,
    logits,
    prepared,
    score,
)
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
        )


class Evaluator:
    """Measures strategies of one space on one set of images, against one budget."""

    def __init__(
        self,
        space: CompressionSpace,
        images: ImageSet,
        budget: Budget,
        reward: Reward,
        precision: Precision = "auto",
    ) -> None:
        self.space, self.images, self.budget, self.reward = space, images, budget, reward
        self.original = space.cost({})
        self._size = batch_size(space.network.table.activations.peak_bytes())
        self._outcomes: dict[tuple[int, ...], Outcome] = {}
        self.precision_note = ""
        self._bf16 = self._choose(precision)

    def _choose(self, precision: Precision) -> bool:
        """Measure the untouched network; take bf16 only where it agrees with fp32."""
        model, folds = self.space.network.model, self.space.network.table.folds
        self._reference = logits(prepared(model, folds, False), self.images, self._size, False)
        self.baseline = score(self._reference, self.images.labels)
        if precision == "fp32" or (precision == "auto" and not has_bf16_units()):
            return False
        outputs = logits(prepared(model, folds, True), self.images, self._size, True)
        difference = abs(score(outputs, self.images.labels).accuracy - self.baseline.accuracy)
        if difference <= AGREEMENT:
            return True
        why = f"bf16 differs from fp32 by {100 * difference:.2f} points on the untouched network"
        if precision == "bf16":
            raise UserError(f"evaluate.precision is bf16, but {why}")
        self.precision_note = f"{why}: using fp32"
        return False

    def untouched(self, images: ImageSet) -> Score:
        """The score of the original network on other images."""
        network = self.space.network
        return score(
            logits(prepared(network.model, network.table.folds, False), images, self._size, False),
            images.labels,
        )

    @property
    def precision(self) -> str:
        return "bf16" if self._bf16 else "fp32"

    def remember(self, outcome: Outcome) -> None:
        """Take over an outcome that was measured before (a resumed run)."""
        self._outcomes[tuple(outcome.strategy.values())] = outcome

    def __call__(self, strategy: Strategy) -> Outcome:
        """Measure a strategy; one that was measured before is not measured again."""
        start = time.perf_counter()
        full = self.space.complete(strategy)
        known = self._outcomes.get(tuple(full.values()))
        if known is not None:
            return known
        cost = self.space.cost(full)
        measured = self.measure(full)
        ratios = tuple(
            self.space.encode(decision, full[decision.name]) for decision in self.space.decisions
        )
        outcome = Outcome(
            full,
            ratios,
            measured,
            cost,
            self.reward(measured, cost, self.original, self.budget),
            self.budget.allows(cost),
            time.perf_counter() - start,
        )
        self.remember(outcome)
        return outcome

    def measure(self, strategy: Strategy) -> Score:
        """The score of a strategy on the images, without the cache."""
        model = prepared(self.space.apply(strategy), self.space.network.table.folds, self._bf16)
        return score(
            logits(model, self.images, self._size, self._bf16), self.images.labels, self._reference
        )
