"""What is measured, and what comes out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from amc.cost.budget import Budget
from amc.cost.cost import Cost
from amc.evaluate.rewards import Score
from amc.spaces.base import Strategy


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
    repair_kept: bool = True  # false: repair took it further from the original, and was undone

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
            "repair_kept": self.repair_kept,
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
            line.get("repair_kept", True),
        )


@dataclass(frozen=True)
class Rival:
    """What a candidate must not be worse than."""

    outcome: Outcome
    values: Tensor  # of each image what `per_image` gives, (images, 3)


@dataclass(frozen=True)
class Candidate:
    """A strategy to be measured."""

    strategy: Strategy
    budget: Budget
    rival: Rival | None = None  # none: it is measured on all images


@dataclass(frozen=True)
class Measured:
    """What came out, and of each image what `per_image` gives: of as many as it took."""

    outcome: Outcome
    values: Tensor


class Measurers(Protocol):
    """Measure candidates side by side (`amc.parallel.measurers`)."""

    def measure(self, candidates: Sequence[Candidate]) -> Iterator[Measured]:
        """In their order."""
