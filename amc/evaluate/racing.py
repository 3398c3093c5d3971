"""Stop measuring a candidate as soon as it is clear that it will not be the best (racing: Maron &
Moore, 1993).

A candidate is compared with the leader on the same images, in blocks that grow. Per-image noise is
shared by the two, so the difference between them is clear long before either accuracy is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from scipy.stats import t
from torch import Tensor

from amc.evaluate.measure import mean_score
from amc.evaluate.rewards import Score

FIRST = 250  # images in the first block; every further look comes after twice as many
PIECE = 25  # images that one value of the reward is computed from


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
    candidate: Tensor,
    leader: Tensor,
    reward: Callable[[Score], float],
    leader_reward: Callable[[Score], float],
    images: int,
    confidence: float,
) -> bool:
    """Whether a candidate's reward on all images will be below the leader's.

    The rewards are compared on pieces of `PIECE` images each. The upper end of Student's one-sided
    confidence interval of the mean difference must be below zero. Sampling without replacement
    narrows it (finite population correction); the error probability is divided by the number of
    looks, so ``confidence`` holds for a candidate's whole race.

    Args:
        candidate: `amc.evaluate.measure.per_image` of the images so far, (n, 3).
        leader: the same of the leader, for the same images.
        reward: the candidate's reward for a score.
        leader_reward: the leader's reward for a score.
        images: how many there are in all.
        confidence: that a candidate which is called hopeless is worse.
    """
    count = len(candidate) // PIECE
    pieces = zip(
        candidate[: count * PIECE].split(PIECE), leader[: count * PIECE].split(PIECE), strict=True
    )
    differences = [
        reward(mean_score(ours)) - leader_reward(mean_score(theirs)) for ours, theirs in pieces
    ]
    mean = math.fsum(differences) / count
    variance = math.fsum((value - mean) ** 2 for value in differences) / (count - 1)
    left = 1 - len(candidate) / images
    error = (1 - confidence) / max(1, len(looks(images)) - 1)
    return mean + float(t.ppf(1 - error, count - 1)) * math.sqrt(variance * left / count) < 0


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
