"""A budget: one metric and its limit; and the rule that keeps every episode within it."""

from __future__ import annotations

import decimal
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from amc.cost.cost import Cost, Metric
from amc.errors import UserError, shown

GOLDEN = (5**0.5 - 1) / 2
AT_END = 0.05  # of the episodes of a range, at each of its ends


@dataclass(frozen=True)
class Budget:
    """A network is within budget when its cost in ``metric`` is at most ``limit``; or, of a range,
    within the budget of its episode, which is between ``least`` and ``limit``.
    """

    metric: Metric
    limit: float
    fill: bool = False  # whether episodes are scaled to use all of it
    least: float | None = None  # of a range

    @classmethod
    def of(
        cls,
        metric: Metric,
        original: Cost,
        ratio: float | tuple[float, float] | None = None,
        limit: float | None = None,
        fill: bool = False,
    ) -> Budget:
        """A budget as a ratio of the original's cost, or as an absolute value; two ratios are a
        range.

        Raises:
            UserError: not exactly one of the two is given, or it is out of range.
        """
        if (ratio is None) == (limit is None):
            raise UserError("a budget takes either a ratio or a limit")
        if isinstance(ratio, tuple):
            low, high = (cls.of(metric, original, one, fill=fill) for one in ratio)
            return replace(high, least=low.limit)
        if ratio is not None:
            if not 0 < ratio <= 1:
                raise UserError(f"budget.ratio is {shown(ratio)}: it must be above 0 and at most 1")
            return cls(metric, ratio * original[metric], fill)
        assert limit is not None
        if not 0 < limit < math.inf:
            raise UserError(f"budget.limit is {shown(limit)}: it must be above 0 and finite")
        return cls(metric, limit, fill)

    def of_episode(self, number: int) -> Budget:
        """The budget of one episode: of a range, the ``number``-th of a sequence that spreads
        evenly wherever it ends (multiples of the golden ratio, modulo 1), from the middle on; a
        tenth of them are at the two ends.
        """
        if self.least is None:
            return self
        place = (0.5 + number * GOLDEN) % 1
        place = min(1.0, max(0.0, (place - AT_END) / (1 - 2 * AT_END)))
        limit = (1 - place) * self.least + place * self.limit  # exact at the ends
        return replace(self, limit=limit, least=None)

    def allows(self, cost: Cost) -> bool:
        return cost[self.metric] <= self.limit

    def check_reachable(self, smallest: Cost, original: Cost, why: str = "") -> None:
        """Refuse a budget that not even the smallest strategy meets.

        Raises:
            UserError: with the smallest value that can be reached, rounded up so that it can be
                typed back, and ``why`` it is no smaller.
        """
        wanted = self.limit if self.least is None else self.least
        if smallest[self.metric] > wanted:
            least, whole = smallest[self.metric], original[self.metric]
            digits = 6 if self.metric == "latency_ms" else 10
            raise UserError(
                f"the budget of {wanted:.{digits}g} {self.metric} cannot be reached: the "
                f"smallest possible is {_limit(least, self.metric)} (ratio {_ratio(least, whole)})"
                + (f"; {why}" if why else "")
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


def _limit(least: float, metric: Metric) -> str:
    """The smallest limit of few digits that is not below a cost: counts are whole."""
    if metric != "latency_ms":
        return str(math.ceil(least))
    context = decimal.Context(prec=6, rounding=decimal.ROUND_CEILING)
    return f"{context.create_decimal_from_float(least):f}"


def _ratio(least: float, whole: float) -> str:
    """The smallest ratio of four digits whose part of the whole is not below a cost."""
    steps = math.ceil(1e4 * least / whole)
    while steps / 1e4 * whole < least:  # by rounding
        steps += 1
    return f"{steps / 1e4:.4f}"
