"""Which decisions can be trusted: with them alone, what a strategy is said to be holds for the
network that comes out.

Decisions are checked together, at several choices each; where that fails, each alone; where each
holds alone, those that fail together with the ones before them are left out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from amc.cost.cost import ON_PAPER, cost_of
from amc.network.layers import LayerTable
from amc.spaces.base import CompressionSpace, Decision

Choose = Callable[[Decision], int]
Why = Callable[[dict[str, int], bool], str | None]
"""Of a strategy: why it is not what it is said to be; whether its costs are counted, too."""


def _half(decision: Decision) -> int:
    return min(decision.choices, key=lambda choice: abs(2 * choice - decision.choices[-1]))


def _any(decision: Decision) -> int:
    return random.Random(decision.name).choice(decision.choices[:-1])


CHOICES: tuple[tuple[Choose, bool], ...] = (
    (lambda decision: decision.choices[0], True),
    (_half, True),
    (lambda decision: decision.choices[-2], False),
    (_any, False),
)
"""The smallest, the middle, the largest that is not whole, and another one; of the first two the
costs are counted.
"""


def settle(
    decisions: Sequence[Decision], why: Why, choices: Sequence[tuple[Choose, bool]] = CHOICES
) -> tuple[list[Decision], dict[str, str]]:
    """The decisions that hold at some choices, and for the others (by name) the reason."""
    left, gone = list(decisions), dict[str, str]()
    for choose, counted in choices:

        def wrong(
            some: Sequence[Decision], choose: Choose = choose, count: bool = counted
        ) -> str | None:
            return why({decision.name: choose(decision) for decision in some}, count)

        while left and (reason := wrong(left)) is not None:
            alone = {decision.name: wrong([decision]) for decision in left}
            guilty = {name: found for name, found in alone.items() if found is not None}
            guilty = guilty or {_first_that_fails(left, wrong).name: reason}
            gone |= guilty
            left = [d for d in left if d.name not in guilty]
    return left, gone


def _first_that_fails(
    decisions: Sequence[Decision], wrong: Callable[[Sequence[Decision]], str | None]
) -> Decision:
    """The last of the shortest sequence of first decisions that fails together."""
    low, high = 1, len(decisions)
    while low < high:
        middle = (low + high) // 2
        if wrong(decisions[:middle]) is None:
            low = middle + 1
        else:
            high = middle
    return decisions[low - 1]


def miscount(space: CompressionSpace, strategy: dict[str, int], metal: LayerTable) -> str | None:
    """Where the costs of a strategy on paper are not those of the network that it makes.

    Args:
        space: of the strategy.
        strategy: that was applied.
        metal: the layer table of what came out.
    """
    said, real = space.cost(strategy), cost_of(metal)
    for metric in ON_PAPER:
        if said[metric] != real[metric]:
            return f"its {metric} would be {real[metric]:,}, not {said[metric]:,}"
    return None
