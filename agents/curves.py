"""What is known of a network's loss from a few measurements: for every decision a curve over its
keep ratio, for neighbours what they lose together beyond the sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from amc.agents.proposing import Ratios
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator, RegularGridInterpolator
from sklearn.isotonic import IsotonicRegression

Array = NDArray[np.float64]
CUBIC = 4  # points that a cubic takes


def places(ratios: Ratios | Sequence[float], among: Ratios | Sequence[float]) -> Array:
    """The logarithms of keep ratios; of 0, where all of a branch goes, that of half of the smallest
    other one of those that it is ``among``.
    """
    at = np.array(ratios)
    least = min((one for one in among if one > 0), default=1.0)
    return np.asarray(np.log(np.where(at > 0, at, least / 2)))


@dataclass(frozen=True)
class Curve:
    """The loss of one decision over its keep ratio, relative to the strategy that was measured
    around: the measured points, made to fall as the ratio rises, with a monotone cubic between
    them, over the logarithm of the ratio.
    """

    points: Mapping[float, float]  # keep ratio -> loss

    def __call__(self, ratios: Sequence[float]) -> Array:
        """The losses at some keep ratios; infinite beyond what was measured."""
        known = np.array(sorted(self.points))
        losses = np.array([self.points[ratio] for ratio in known])
        at = np.array(ratios)
        if len(known) == 1:
            return np.where(np.isclose(at, known[0]), losses[0], np.inf)
        losses = IsotonicRegression(increasing=False).fit_transform(known, losses)
        every = [*ratios, *known]
        found = PchipInterpolator(places(known, every), losses)(places(at, every))
        inside = (at >= known[0] - 1e-9) & (at <= known[-1] + 1e-9)
        return np.asarray(np.where(inside, found, np.inf))


@dataclass(frozen=True)
class Interaction:
    """What two neighbours lose together beyond the sum of what each loses alone: measured on a
    grid, with a monotone cubic between (a line on a grid of less than four), over the logarithm of
    the ratios.
    """

    first: Sequence[float]  # keep ratios, ascending to 1
    second: Sequence[float]
    excess: Array  # (first, second)

    def __call__(self, first: Sequence[float], second: Sequence[float]) -> Array:
        """At all pairs of some keep ratios, (first, second)."""
        if min(self.excess.shape) < 2:  # one of them has nothing to decide
            return np.zeros((len(first), len(second)))
        every = [[*self.first, *first], [*self.second, *second]]
        grid = tuple(map(places, (self.first, self.second), every))
        method = "pchip" if min(self.excess.shape) >= CUBIC else "linear"
        between = RegularGridInterpolator(grid, self.excess, method=method)
        ends = [
            np.clip(places(ratios, among), axis[0], axis[-1])
            for ratios, among, axis in zip((first, second), every, grid, strict=True)
        ]
        return np.asarray(between(tuple(np.meshgrid(*ends, indexing="ij"))))


def spread(ratios: Ratios | Sequence[float], count: int) -> list[float]:
    """So many of a decision's keep ratios below 1, from the smallest one on, as evenly over their
    logarithm as they allow; ascending.
    """
    below = [ratio for ratio in ratios if ratio < 1]
    if not below:
        return []
    at = places(below, ratios)
    wanted = np.exp(np.linspace(at[0], 0.0, count + 1)[:-1])
    return sorted({below[int(np.argmin(np.abs(at - np.log(one))))] for one in wanted})
