"""What is measured, and what comes out."""

from __future__ import annotations

import math
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import Tensor

from amc.cost.budget import Budget
from amc.cost.cost import Cost
from amc.errors import UserError, kind_and_line, out_of_memory
from amc.evaluate.rewards import NotFinite, Score
from amc.spaces.base import Strategy

NO_SCORE = Score(math.nan, math.nan, math.nan)


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
    failed: str | None = None  # why there is neither score nor reward: both are nan
    trace: str = ""  # of the error it failed with; not in the journal

    @property
    def can_be_best(self) -> bool:
        """Whether it keeps the budget and was measured on all images."""
        return self.feasible and self.stopped_after is None and self.failed is None

    def having_failed(self, error: Exception) -> Outcome:
        """This, without score and reward, for an error that its network, its space or its reward
        has raised.

        Raises:
            Exception: the error, where it has nothing to do with the strategy.
        """
        if isinstance(error, UserError | OSError) or out_of_memory(error):
            raise error
        why, trace = str(error), ""
        if not isinstance(error, NotFinite):
            why = kind_and_line(error)
            trace = "".join(traceback.format_exception(error))
        return replace(self, score=NO_SCORE, reward=math.nan, failed=why, trace=trace)

    def as_line(self) -> dict[str, Any]:
        """The fields of an episode line in the journal."""
        measured = self.failed is None
        return {
            "ratios": list(self.ratios),
            "strategy": self.strategy,
            "search_accuracy": self.score.accuracy if measured else None,
            "cross_entropy": self.score.cross_entropy if measured else None,
            "kl": self.score.kl if measured else None,
            **self.cost.as_dict(),
            "reward": self.reward if measured else None,
            "feasible": self.feasible,
            "seconds": self.seconds,
            "profile": dict(self.profile),
            "stopped_after": self.stopped_after,
            "repair_kept": self.repair_kept,
            "failed": self.failed,
        }

    @classmethod
    def from_line(cls, line: Mapping[str, Any]) -> Outcome:
        """The inverse of `as_line`."""
        numbers = (line[key] for key in ("search_accuracy", "cross_entropy", "kl", "reward"))
        *scores, reward = (math.nan if number is None else number for number in numbers)
        return cls(
            dict(line["strategy"]),
            tuple(line["ratios"]),
            Score(*scores),
            Cost(line["macs"], line["params"], line["memory_bytes"], line["latency_ms"]),
            reward,
            line["feasible"],
            line["seconds"],
            line.get("profile", {}),  # runs of version 0.1 have neither
            line.get("stopped_after"),
            line.get("repair_kept", True),
            line.get("failed"),
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
