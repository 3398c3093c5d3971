"""Means with intervals, and how sure a difference between two samples is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Values = NDArray[np.float64]

CONFIDENCE = 0.95


def interval(values: Values) -> tuple[Values, Values, Values]:
    """Mean and its 95% interval (Student's t) over the first axis (runs); of one run the interval
    is nan.
    """
    mean = values.mean(axis=0)
    if len(values) < 2:
        nothing = np.full_like(mean, np.nan)
        return mean, nothing, nothing
    error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * error
    return mean, mean - half, mean + half


def welch(first: Values, second: Values) -> tuple[float, float, float]:
    """Difference of the means of two independent samples (n,), (m,) and its 95% interval, without
    the assumption of equal variances (Welch-Satterthwaite); nan where one has a single value.
    """
    difference = float(first.mean() - second.mean())
    if min(len(first), len(second)) < 2:
        return difference, np.nan, np.nan
    parts = np.array([sample.var(ddof=1) / len(sample) for sample in (first, second)])
    if not parts.any():
        return difference, difference, difference
    lengths = np.array([len(first), len(second)])
    freedom = parts.sum() ** 2 / (parts**2 / (lengths - 1)).sum()
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * np.sqrt(parts.sum()))
    return difference, difference - half, difference + half


def rank_sum_p(first: Values, second: Values) -> float:
    """The two-sided p value of Wilcoxon's rank sum (Mann-Whitney), exact with ties too: among all
    ways to divide the values into two samples of these sizes, all equally likely, twice the part
    whose rank sum is as far to the nearer side.

    Sums of mid-ranks are counted by the shift algorithm (Streitberg & Röhmel 1986): no way is
    walked, so sizes of a hundred each take less than a second.
    """
    small, large = sorted((first, second), key=len)
    ranks = np.rint(2 * stats.rankdata(np.concatenate([small, large]))).astype(int)  # whole numbers
    total = int(np.sort(ranks)[len(large) :].sum())  # the largest sum there is
    ways = np.zeros((len(small) + 1, total + 1))  # (chosen, their sum) -> a share of all ways
    ways[0, 0] = 1.0
    for number, rank in enumerate(ranks):
        for chosen in range(min(number + 1, len(small)), 0, -1):
            ways[chosen, rank:] += ways[chosen - 1, : total + 1 - rank]
        ways /= 2  # no overflow
    shares = ways[-1] / ways[-1].sum()
    found = int(ranks[: len(small)].sum())
    return float(min(1.0, 2 * min(shares[: found + 1].sum(), shares[found:].sum())))
