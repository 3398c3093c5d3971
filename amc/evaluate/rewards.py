"""Rewards: pure functions (score, cost, original, budget) -> float, higher is better (AMC, section
3.4).

With a budget that the environment keeps, `accuracy` is the paper's R_err. Those with a logarithm
are for a search without a hard budget ("accuracy-guaranteed": set budget.ratio to 1). A user's own
is named ``module:function``; one that counts costs says so (`counts_costs`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from amc.cost.budget import Budget
from amc.cost.cost import Cost, Metric
from amc.errors import shown


@dataclass(frozen=True)
class Score:
    """How good a network is on one set of images."""

    accuracy: float  # in [0, 1]
    cross_entropy: float  # nats an image
    kl: float  # nats an image, from the original network's outputs: KL(original || this)


Reward = Callable[[Score, Cost, Cost, Budget], float]
R = TypeVar("R", bound=Reward)


def counts_costs(reward: R) -> R:
    """Mark a reward that costs go into: less than the budget may be worth more then, so a search
    does not scale its strategies to the whole budget (`budget.fill`).
    """
    reward.counts_costs = True  # type: ignore[attr-defined]
    return reward


def does_count_costs(reward: Reward) -> bool:
    """Whether a reward has said so; one that says nothing does not."""
    return bool(getattr(reward, "counts_costs", False))


class NotFinite(ArithmeticError):
    """What was measured is no finite number."""


def finite(value: object) -> float:
    """What a reward has given, as a float: a number of Python's or NumPy's, or a tensor or array of
    one.

    Raises:
        NotFinite: it is something else, NaN, or infinite.
    """
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise NotFinite(f"the reward is {shown(value)}, not a finite number")
    return number


def accuracy(score: Score, cost: Cost, original: Cost, budget: Budget) -> float:
    """R_err = -error."""
    return score.accuracy - 1


def cross_entropy(score: Score, cost: Cost, original: Cost, budget: Budget) -> float:
    """Minus the cross-entropy: far less sampling noise than the accuracy, on the same images."""
    return -score.cross_entropy


def kl(score: Score, cost: Cost, original: Cost, budget: Budget) -> float:
    """Minus the KL divergence from the original network's outputs: needs no labels."""
    return -score.kl


@counts_costs
def macs(score: Score, cost: Cost, original: Cost, budget: Budget) -> float:
    """R_FLOPs = -error * log(MACs)."""
    return _accuracy_guaranteed(score, cost, "macs")


@counts_costs
def params(score: Score, cost: Cost, original: Cost, budget: Budget) -> float:
    """R_Param = -error * log(params)."""
    return _accuracy_guaranteed(score, cost, "params")


@counts_costs
def memory(score: Score, cost: Cost, original: Cost, budget: Budget) -> float:
    """-error * log(memory_bytes)."""
    return _accuracy_guaranteed(score, cost, "memory_bytes")


@counts_costs
def latency(score: Score, cost: Cost, original: Cost, budget: Budget) -> float:
    """-error * log(latency in microseconds), so that the logarithm is positive."""
    return -(1 - score.accuracy) * math.log(max(1e3 * cost["latency_ms"], math.e))


@counts_costs
def mnasnet(score: Score, cost: Cost, original: Cost, budget: Budget) -> float:
    """accuracy * (cost / limit) ** -0.07 in the budget's metric, as a soft constraint (Tan et al.,
    CVPR 2019, eq. 2).
    """
    return score.accuracy * math.pow(cost[budget.metric] / budget.limit, -0.07)


def _accuracy_guaranteed(score: Score, cost: Cost, metric: Metric) -> float:
    return -(1 - score.accuracy) * math.log(cost[metric])
