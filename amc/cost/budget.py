"""A budget: one metric and its limit; and the rule that keeps every episode within it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from amc.cost.cost import Cost, Metric
from amc.errors import UserError


@dataclass(frozen=True)
class Budget:
    """A network is within budget when its cost in ``metric`` is at most ``limit``."""

    metric: Metric
    limit: float
    fill: bool = False  # whether episodes are scaled to use all of it

    @classmethod
    def of(
        cls,
        metric: Metric,
        original: Cost,
        ratio: float | None = None,
        limit: float | None = None,
        fill: bool = False,
    ) -> Budget:
        """A budget as a ratio of the original's cost, or as an absolute value.

        Raises:
            UserError: not exactly one of the two is given, or it is out of range.
        """
        if (ratio is None) == (limit is None):
            raise UserError("a budget takes either a ratio or a limit")
        if ratio is not None:
            if not 0 < ratio <= 1:
                raise UserError(f"budget.ratio is {ratio}: it must be above 0 and at most 1")
            return cls(metric, ratio * original[metric], fill)
        assert limit is not None
        if limit <= 0:
            raise UserError(f"budget.limit is {limit}: it must be above 0")
        return cls(metric, limit, fill)

    def allows(self, cost: Cost) -> bool:
        return cost[self.metric] <= self.limit

    def check_reachable(self, smallest: Cost, original: Cost) -> None:
        """Refuse a budget that not even the smallest strategy meets.

        Raises:
            UserError: with the smallest value that can be reached.
        """
        if not self.allows(smallest):
            least, whole = smallest[self.metric], original[self.metric]
            digits = 6 if self.metric == "latency_ms" else 10
            raise UserError(
                f"the budget of {self.limit:.{digits}g} {self.metric} cannot be reached: the "
                f"smallest possible is {least:.{digits}g} (ratio {least / whole:.4f})"
            )

    def largest_feasible(self, choices: Sequence[int], cost: Callable[[int], Cost]) -> int:
        """The largest of ``choices`` (ascending) whose cost is within the budget; the smallest
        where none is.

        Searched by bisection. What it returns is within the budget, or the smallest, even where
        ``cost`` is noisy or has steps; it is the largest where ``cost`` does not fall as a choice
        rises.
        """
        low, high = 0, len(choices) - 1
        while low < high:
            middle = (low + high + 1) // 2
            if self.allows(cost(choices[middle])):
                low = middle
            else:
                high = middle - 1
        return choices[low]
