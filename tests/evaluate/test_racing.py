"""Racing: who is stopped, how often wrongly, and what a search makes of it."""

from __future__ import annotations

import math

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


def is_stopped(candidate: Tensor, leader: Tensor, confidence: float) -> int | None:
    """After how many images a race is over; None where it is not before the end."""
    rewards = by_accuracy, by_accuracy
    for count in racing.looks(len(leader))[:-1]:
        seen = candidate[:count], leader[:count]
        if racing.is_hopeless(*seen, *rewards, len(leader), confidence):
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
