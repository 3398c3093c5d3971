"""The best strategy within a budget where losses are known: a knapsack, of which every decision
takes one choice; or a chain, where neighbours lose more or less together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from amc.spaces.bounding import Bounds

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

UNITS = 2000  # of a budget: costs are rounded up to them
ROUNDS = 3  # of costs taken anew around what was found, where they do not add up


@dataclass(frozen=True)
class Losses:
    """Of every decision's choices that are worth taking (`Bounds.choices`)."""

    alone: Sequence[Array]  # (choices,) each; infinite: not to be taken
    together: Sequence[Array]  # of neighbours, beyond the sum, (choices, choices of the next)

    def of(self, taken: Sequence[int]) -> float:
        """The loss of a strategy, as indices of choices."""
        alone = sum(float(own[i]) for own, i in zip(self.alone, taken, strict=True))
        if not self.together:
            return alone
        pairs = zip(self.together, pairwise(taken), strict=True)
        return alone + sum(float(pair[ends]) for pair, ends in pairs)


def cheapest(losses: Losses, weights: Sequence[IntArray], capacity: int) -> list[int] | None:
    """The choices (indices) of least loss whose weights sum to at most the capacity, by dynamic
    programming over decisions and capacity; None where there are none.

    Args:
        losses: of the choices.
        weights: of the choices, (choices,) each, none negative.
        capacity: at least 0.
    """
    best: Array = np.full((len(weights[0]), capacity + 1), np.inf)
    for choice, weight in enumerate(weights[0]):
        best[choice, weight:] = losses.alone[0][choice]
    came: list[IntArray] = []
    for step in range(1, len(weights)):
        new, source = _onward(best, losses, step, weights[step])
        best = new
        came.append(source)
    last = int(np.argmin(best[:, capacity]))
    if not np.isfinite(best[last, capacity]):
        return None
    taken, left = [last], capacity
    for step in range(len(weights) - 1, 0, -1):
        at = taken[0]
        taken.insert(0, int(came[step - 1][at, left]))
        left -= int(weights[step][at])
    return taken


def _onward(before: Array, losses: Losses, step: int, weights: IntArray) -> tuple[Array, IntArray]:
    """The least loss of each choice of a decision at each capacity, and the choice before it."""
    capacity = before.shape[1] - 1
    best = np.full((len(weights), capacity + 1), np.inf)
    source = np.zeros(best.shape, np.int64)
    for choice, weight in enumerate(weights):
        if weight > capacity or not np.isfinite(losses.alone[step][choice]):
            continue
        arriving = before[:, : capacity + 1 - weight]
        if losses.together:
            arriving = arriving + losses.together[step - 1][:, choice, None]
        from_ = np.argmin(arriving, axis=0)
        source[choice, weight:] = from_
        least = np.take_along_axis(arriving, from_[None], axis=0)[0]
        best[choice, weight:] = least + losses.alone[step][choice]
    return best, source


def solve(bounds: Bounds, losses: Losses, around: Mapping[str, int]) -> dict[str, int]:
    """The strategy of least loss within a budget. Exact, up to the rounding of costs, where the
    cost of a decision does not depend on the others; else each decision's cost is taken around the
    strategy that was found last, from ``around`` on.
    """
    reference, found = dict(around), dict[str, int]()
    for _ in range(ROUNDS):
        weights, capacity = _weights(bounds, losses, reference)
        taken = cheapest(losses, weights, capacity) if capacity >= 0 else None
        if taken is None:
            break
        names = zip(bounds.choices.items(), taken, strict=True)
        strategy = {name: choices[index] for (name, choices), index in names}
        fitted = _fitted(bounds, losses, strategy)
        if not found or _loss(bounds, losses, fitted) < _loss(bounds, losses, found):
            found = fitted
        if strategy == reference:
            break
        reference = strategy
    return found or _fitted(bounds, losses, reference)


def _weights(
    bounds: Bounds, losses: Losses, reference: Mapping[str, int]
) -> tuple[list[IntArray], int]:
    """What each choice costs beyond its decision's cheapest one, in units of the budget, and how
    many of these there are; the other decisions as in a strategy. Choices that are not to be taken
    cost nothing.
    """
    space, budget = bounds.space, bounds.budget
    here = space.cost(reference)[budget.metric]
    unit = budget.limit / UNITS
    weights, least = [], here
    for (name, choices), lost in zip(bounds.choices.items(), losses.alone, strict=True):
        taken = np.flatnonzero(np.isfinite(lost))
        trials = [{**reference, name: choices[index]} for index in taken]
        costs = np.zeros(len(choices))
        costs[taken] = [space.cost(trial)[budget.metric] - here for trial in trials]
        lowest = float(min(costs[taken], default=0.0))
        costs[taken] -= lowest
        weights.append(np.ceil(costs / unit - 1e-9).astype(np.int64))
        least += lowest
    return weights, int(np.floor((budget.limit - least) / unit))


def _fitted(bounds: Bounds, losses: Losses, strategy: dict[str, int]) -> dict[str, int]:
    """A strategy within the budget: scaled down to it where it is over it; then what is left goes
    to the single steps that gain most for their cost.
    """
    space, budget, choices = bounds.space, bounds.budget, bounds.choices
    if not budget.allows(space.cost(strategy)):
        pairs = zip(strategy, space.ratios(strategy), strict=True)
        return bounds.scaled(dict(pairs))
    strategy = dict(strategy)
    while True:
        here, now = space.cost(strategy)[budget.metric], _loss(bounds, losses, strategy)
        steps: list[tuple[float, dict[str, int]]] = []
        for name, own in choices.items():
            larger = [choice for choice in own if choice > strategy[name]]
            trial = {**strategy, name: larger[0]} if larger else strategy
            cost = space.cost(trial)
            gain = now - _loss(bounds, losses, trial)
            if larger and budget.allows(cost) and gain >= 0:
                steps.append((gain / max(cost[budget.metric] - here, 1e-12), trial))
        if not steps:
            return strategy
        strategy = max(steps, key=lambda step: step[0])[1]


def _loss(bounds: Bounds, losses: Losses, strategy: Mapping[str, int]) -> float:
    taken = [
        min(range(len(own)), key=lambda index: abs(own[index] - strategy[name]))
        for name, own in bounds.choices.items()
    ]
    return losses.of(taken)
