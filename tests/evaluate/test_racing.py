"""Racing: who is stopped, how often wrongly, and what a search makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from zoo import Mine, config_of

from amc.data.datasets import Dataset
from amc.evaluate import racing
from amc.evaluate.rewards import Score
from amc.problem import Problem


def by_accuracy(score: Score) -> float:
    return score.accuracy


def values(correct: Tensor) -> Tensor:
    """Of each image correct, cross-entropy, KL."""
    return torch.stack([correct, 1 - correct, torch.zeros_like(correct)], dim=1).double()


def is_stopped(
    candidate: Tensor,
    leader: Tensor,
    confidence: float,
    reward: Callable[[Score], float] = by_accuracy,
) -> int | None:
    """After how many images a race is over; None where it is not before the end."""
    for count in racing.looks(len(leader))[:-1]:
        if racing.is_hopeless(candidate[:count], leader, reward, reward, confidence):
            return count
    return None


@pytest.mark.parametrize("images", [30, 250, 251, 5000])
def test_blocks_are_all_images_once(images: int) -> None:
    blocks = list(racing.blocks(images))
    assert [i for block in blocks for i in range(images)[block]] == list(range(images))
    assert [block.stop for block in blocks] == racing.looks(images)
    assert racing.looks(5000) == [250, 500, 1000, 2000, 4000, 5000]


def test_what_is_far_worse_is_stopped_at_once_and_what_is_better_never() -> None:
    generator = torch.Generator().manual_seed(0)
    leader = values((torch.rand(4000, generator=generator) < 0.9).double())
    worse = values((torch.rand(4000, generator=generator) < 0.6).double())
    assert is_stopped(worse, leader, 0.99) == 250
    assert is_stopped(leader, worse, 0.6) is None
    assert is_stopped(leader, leader, 0.6) is None


@pytest.mark.parametrize("confidence", [0.7, 0.9])
def test_the_confidence_is_kept(confidence: float) -> None:
    """Candidates exactly as good as the leader on all images are stopped at most as often as the
    confidence allows.
    """
    generator = torch.Generator().manual_seed(0)
    races, wrong = 400, 0
    for _ in range(races):
        leader = (torch.rand(2000, generator=generator) < 0.85).double()
        candidate = leader[torch.randperm(2000, generator=generator)]
        wrong += is_stopped(values(candidate), values(leader), confidence) is not None
    allowed = races * (1 - confidence)
    assert wrong <= allowed + 3 * math.sqrt(allowed)


def races(name: str, images: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Of two candidates that are equally good on all images, how much each loses on every one: a
    skewed difference between them, in a random order.
    """
    if name == "rare":  # one is far better on few images, and a little worse on all others
        difference = np.where(np.arange(images) < images // 100, 49.5, -0.5)
    else:
        difference = generator.lognormal(0, 1.5, images)
    difference = generator.permutation(difference - difference.mean())
    losses = np.maximum(difference, 0) + generator.exponential(0.1, images)
    return torch.from_numpy(losses - difference), torch.from_numpy(losses)


def with_kl(losses: Tensor) -> Tensor:
    return torch.stack([torch.ones_like(losses), losses, losses], dim=1).double()


@pytest.mark.parametrize("name", ["rare", "lognormal"])
@pytest.mark.parametrize("squared", [False, True])
def test_the_confidence_is_kept_where_differences_are_skewed(name: str, squared: bool) -> None:
    """Student's t stops 14% and 21% of these at confidence 0.9."""
    generator = np.random.default_rng(0)

    def reward(score: Score) -> float:
        return -score.kl - 1e-6 * score.kl**2 * squared

    count, wrong = 200, 0
    for _ in range(count):
        candidate, leader = map(with_kl, races(name, 2000, generator))
        wrong += is_stopped(candidate, leader, 0.9, reward) is not None
    assert wrong <= 0.1 * count


def test_a_race_ends_early_where_the_difference_is_as_of_real_candidates() -> None:
    generator = np.random.default_rng(0)
    leader = generator.gamma(0.3, 2.0, 2000)
    candidate = leader * generator.lognormal(0.3, 0.6, 2000)
    assert is_stopped(with_kl(torch.tensor(candidate)), with_kl(torch.tensor(leader)), 0.9, by_kl)


def by_kl(score: Score) -> float:
    return -score.kl


@pytest.mark.parametrize("images", [260, 2000])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_race_is_the_same_at_any_scale_of_the_reward(images: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(1)
    leader, worse = (torch.rand(images, generator=generator) * top for top in (1.0, 1.5))
    ends = [
        is_stopped(with_kl(worse), with_kl(leader), 0.9, lambda score, by=by: by * (3 - score.kl))
        for by in (1.0, scale)
    ]
    assert ends[0] is not None and ends[0] == ends[1]


def test_what_only_a_perfect_rest_could_mend_is_stopped_for_certain() -> None:
    leader = values(torch.ones(1000))
    candidate = values((torch.arange(1000) > 0).double())
    assert is_stopped(candidate, leader, 1 - 1e-12) == 250
    assert is_stopped(leader, leader, 0.5) is None


@pytest.mark.parametrize(
    "reward",
    [
        lambda score: score.kl,  # grows without bounds
        lambda score: -math.log(score.kl),  # there is no best one
        lambda score: -abs(score.accuracy - 0.5),  # is not best where all are right
    ],
)
def test_nothing_is_stopped_by_a_reward_without_a_known_best(
    reward: Callable[[Score], float],
) -> None:
    generator = torch.Generator().manual_seed(0)
    correct = (torch.rand(2, 1000, generator=generator) < 0.5).double()
    worse, leader = (
        torch.stack([row, row + 1, (1 + number) * (row + 1)], dim=1)
        for number, row in enumerate(correct)
    )
    reward(Score(*worse.mean(0).tolist()))
    assert is_stopped(worse, leader, 0.9, reward) is None


def test_an_estimate_is_the_leader_plus_the_difference_seen() -> None:
    leader = torch.tensor([[1.0, 0.2, 0.1], [0.0, 0.4, 0.1]]).double()
    candidate = torch.tensor([[0.0, 0.6, 0.3], [0.0, 0.4, 0.3]]).double()
    got = racing.estimate(candidate, leader, Score(0.9, 0.35, 0.12))
    assert got == Score(pytest.approx(0.4), pytest.approx(0.55), pytest.approx(0.32))


def test_a_raced_search_never_prefers_a_candidate_that_was_stopped(digits: Dataset) -> None:
    torch.manual_seed(0)
    model = Mine()
    problems = [
        Problem.build(config_of("reward=kl", "evaluate.images=300", *more), model, digits)
        for more in ([], ["evaluate.racing=0.6"])
    ]
    whole, raced = (problem.evaluator() for problem in problems)
    assert whole.baseline.cross_entropy == pytest.approx(raced.baseline.cross_entropy)
    space = problems[0].space
    outcomes = []
    for a in reversed(space.decisions[0].choices):
        strategy = {space.decisions[0].name: a, space.decisions[1].name: 8}
        outcomes.append((whole(strategy), raced(strategy)))
    stopped = [(one, two) for one, two in outcomes if two.stopped_after is not None]
    assert stopped
    best = max((two for _, two in outcomes if two.can_be_best), key=lambda two: two.reward)
    for one, two in outcomes:
        if two.stopped_after is None:
            assert two.score.accuracy == pytest.approx(one.score.accuracy)
        else:
            assert two.stopped_after == 250 and not two.can_be_best
            assert two.reward < best.reward
