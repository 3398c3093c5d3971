"""Stop measuring a candidate as soon as it is clear that it will not be the best (racing: Maron &
Moore, 1993).

A candidate is compared with the leader on the same images, in blocks that grow. Per-image noise is
shared by the two, so the difference between them is clear long before either accuracy is.

Whether it is clear is decided by betting (Waudby-Smith & Ramdas, 2024, sampling without
replacement): of a candidate that is as good as the leader, a capital that is bet image by image on
it being worse grows 1 / (1 - confidence)-fold in at most 1 - confidence of all orders of the
images, at any time. That needs no distribution and no variance, only the most that an image can
still speak for the candidate. This is known: no image can be more than right, no cross-entropy and
no divergence is below zero, and what the leader has got is known of every image.
experiments/speed measures what the confidence is worth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from amc.evaluate.rewards import Score

FIRST = 250  # images in the first block; every further look comes after twice as many
PIECE = 25  # images that one value of a reward is computed from which is not linear
BETS = (0.1, 0.25, 0.6)  # parts of the largest bet that cannot ruin; the capital is split evenly
CUT = 0.25  # part of what the leader has left to gain that is cut off where it has most

Array = NDArray[np.float64]
Of = Callable[[Score], float]


def looks(images: int) -> list[int]:
    """After how many images a candidate is compared with the leader; the last one is all."""
    counts = []
    count = FIRST
    while count < images:
        counts.append(count)
        count *= 2
    return [*counts, images]


def blocks(images: int) -> Iterator[slice]:
    """The images between two looks."""
    start = 0
    for end in looks(images):
        yield slice(start, end)
        start = end


def is_hopeless(
    candidate: Tensor, leader: Tensor, reward: Of, leader_reward: Of, confidence: float
) -> bool:
    """Whether a candidate's reward on all images will be below the leader's.

    Of candidates whose reward on all images is the leader's or above, at most 1 - ``confidence``
    are called hopeless at any look of their race, over the orders of the images. So it is for
    rewards that are linear in the score, as all of amc's are. One that is not is compared on pieces
    of `PIECE` images, and taken to be best where all are right and nothing diverges; then it holds
    for the mean over the pieces.

    Args:
        candidate: `amc.evaluate.measure.per_image` of the images so far, (n, 3).
        leader: the same of the leader, for all images in the same order, (images, 3).
        reward: the candidate's reward for a score.
        leader_reward: the leader's reward for a score.
        confidence: that a candidate which is called hopeless is worse.
    """
    ours, theirs = candidate.numpy(), leader.numpy()
    linear = _linear(reward, ours, theirs), _linear(leader_reward, ours, theirs)
    if linear[0] is not None and linear[1] is not None:
        own, best = linear[0](ours), linear[0].best
        others = linear[1](theirs)
    else:
        own, others = _of_pieces(reward, ours), _of_pieces(leader_reward, theirs)
        best = _tried(reward, np.array([1.0, 0.0, 0.0]))
    below = own - best
    if not below.max() <= 1e-9 * np.abs(own).max():  # what is best is not known, or was surpassed
        return False
    gains = best - others
    looks_worse = math.fsum(below + gains[: len(below)]) < 0
    return looks_worse and _capital(below, gains) >= 1 / (1 - confidence)


class _Linear:
    """A reward that is linear in the score: of every image, and the best it can be of one."""

    def __init__(self, constant: float, slopes: Array) -> None:
        self.constant, self.slopes = constant, slopes
        accuracy, *losses = slopes.tolist()
        self.best = constant + max(accuracy, 0.0) if max(losses) <= 0 else math.nan

    def __call__(self, scores: Array) -> Array:
        """(n, 3) -> (n,)"""
        return self.constant + scores @ self.slopes


def _linear(reward: Of, *values: Array) -> _Linear | None:
    """A reward as a linear function, if it is one on scores as they occur."""
    largest = np.max([each.max(0) for each in values], axis=0)
    largest = np.where(largest > 0, largest, 1.0)
    corners = [_tried(reward, corner) for corner in (np.zeros(3), *np.diag(largest))]
    found = _Linear(corners[0], (np.array(corners[1:]) - corners[0]) / largest)
    probes = np.array([largest, largest / 2, *(each.mean(0) for each in values)])
    said = np.array([_tried(reward, probe) for probe in probes])
    sizes = 1e-9 * max(map(abs, corners))
    return found if bool((np.abs(found(probes) - said) <= sizes).all()) else None


def _tried(reward: Of, score: Array) -> float:
    """NaN where a reward has none for a score that need not occur."""
    try:
        return reward(Score(*score.tolist()))
    except Exception:  # a user's code
        return math.nan


def _of_pieces(reward: Of, values: Array) -> Array:
    """The rewards of pieces of `PIECE` images."""
    count = len(values) // PIECE
    means = values[: count * PIECE].reshape(count, PIECE, 3).mean(1)
    return np.array([reward(Score(*mean)) for mean in means.tolist()])


def _capital(own: Array, gains: Array) -> float:
    """The most that 1 has ever become by betting that the candidate is worse.

    What is bet on is ``own`` + ``gains``, the difference between the two, with the largest gains
    cut: they are known, so their mean is put back, and a few images on which the leader is very bad
    do not forbid all larger bets. It is never above the cut, and of a candidate that is as good as
    the leader its sum over all images is not below what was cut off.

    Args:
        own: how far the candidate is below the best, of the images so far: (n,), <= 0.
        gains: how far the leader is, of all images: (images,).
    """
    cut = np.minimum(gains, _cut(gains))
    bet_on = own + cut[: len(own)]
    due = cut.sum() - gains.sum() - np.concatenate([[0.0], np.cumsum(bet_on)[:-1]])
    expected = due / (len(gains) - np.arange(len(own)))  # at least, of one as good as the leader
    room = cut.max() - expected
    rounding = 1e-9 * float(np.abs(gains).max())
    if (room < -rounding).any():  # not even if all the rest were at its best
        return math.inf
    won = np.where(room > rounding, expected - bet_on, 0.0) / np.maximum(room, rounding or 1.0)
    capitals = np.exp(np.log1p(np.outer(BETS, np.maximum(won, -1.0))).cumsum(1).clip(max=700))
    return float(capitals.mean(0).max())


def _cut(gains: Array) -> float:
    """Above which lies the part `CUT` of all gains, counted from the smallest."""
    falling = np.sort(gains - gains.min())[::-1]
    sums = falling.cumsum()
    wanted = CUT * sums[-1]
    above = sums - falling * np.arange(1, len(falling) + 1)  # cut off at each of them
    count = max(1, int(np.searchsorted(above, wanted)))
    return float(gains.min() + (sums[count - 1] - wanted) / count)


def estimate(candidate: Tensor, leader: Tensor, leader_whole: Score) -> Score:
    """The score on all images of a candidate that was stopped: the leader's, plus the mean
    difference on the images seen.
    """
    differences = (candidate - leader).mean(0).tolist()
    accuracy, entropy, kl = (
        value + difference
        for value, difference in zip(
            (leader_whole.accuracy, leader_whole.cross_entropy, leader_whole.kl),
            differences,
            strict=True,
        )
    )
    return Score(min(1.0, max(0.0, accuracy)), max(0.0, entropy), max(0.0, kl))
