"""From a strategy to its outcome: apply, repair, measure on the held-out images. A strategy is
never measured twice.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from amc.compute import Frugal
from amc.cost.budget import Budget
from amc.cost.cost import Cost
from amc.evaluate import pace
from amc.evaluate.measure import ImageSet, logits, mean_score, per_image, score
from amc.evaluate.outcome import NO_SCORE, Candidate, Measured, Measurers, Outcome, Rival
from amc.evaluate.prepare import SEEN, Prepared, confirmed, prepared
from amc.evaluate.racing import blocks, estimate, is_hopeless
from amc.evaluate.rewards import NotFinite, Reward, Score, finite
from amc.spaces.base import CompressionSpace, Strategy

_Key = tuple[int, ...]
FEWEST = 64  # calibration images that repair is left, where memory does not suffice
FIRST = 3  # candidates whose prepared networks are compared with their own modules
_WAITING = "waiting"  # for others to measure


class Evaluator:
    """Measures strategies of one space on one set of images, against a budget.

    Args:
        space: whose strategies are measured.
        images: to measure on.
        budget: what they must keep, where a call names no other.
        reward: of a score and a cost.
        precision: auto, fp32, bf16 or fp16 (`amc.evaluate.pace`).
        batch_size: images measured at once; None: what is fastest.
        racing: the confidence with which a strategy must be worse than the best one so far within
            its budget for its measurement to be stopped (`amc.evaluate.racing`); None measures all
            on all images.
    """

    def __init__(
        self,
        space: CompressionSpace,
        images: ImageSet,
        budget: Budget,
        reward: Reward,
        precision: str = "auto",
        racing: float | None = None,
        batch_size: int | None = None,
    ) -> None:
        if racing is not None:  # blocks must be alike, whatever order the images are in
            shuffled = torch.Generator().manual_seed(0)
            images = images[torch.randperm(len(images.labels), generator=shuffled)]
        self.space, self.images, self.budget, self.reward = space, images, budget, reward
        self.racing = racing
        self.original = space.cost({})
        self.clock = space.clock
        self.measurers: Measurers | None = None  # for `together`
        self.fell_back: Callable[[], None] = _nothing  # called where it goes on with less
        self._outcomes: dict[_Key, Outcome] = {}
        self._ahead: set[_Key] = set()  # measured by `together`, and not asked for yet
        self._rivals: list[Outcome] = []
        self._frozen = False  # whether `together` has named the rivals
        self._values: dict[_Key, Tensor] = {}  # of those that may be rivals
        self._unconfirmed = FIRST  # candidates that are compared with their own modules
        self._best = -math.inf  # reward, of those that are
        self.pace, self._reference = pace.choose(space.network, images, precision, batch_size)
        self.baseline = score(self._reference, images.labels)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is called: that is of this process only."""
        return {**self.__dict__, "fell_back": _nothing}

    def losses(self, images: ImageSet | None = None) -> Tensor:
        """The original network's cross-entropy on each image (n,), in fp32; none: on the held-out
        ones.
        """
        if images is None:
            return per_image(self._reference, self.images.labels)[:, 1]
        network = self.space.network
        outputs = self._logits(prepared(network.model, network), images)
        return per_image(outputs, images.labels)[:, 1]

    @property
    def calibration_images(self) -> int:
        """That repair uses: those that it has memory for."""
        return 0 if self.space.calibration is None else len(self.space.calibration)

    def _logits(self, model: nn.Module, images: ImageSet) -> Tensor:
        """A network's outputs, (n, classes), in batches for which there is memory."""
        batches = Frugal(self.pace.batch_size)
        outputs: Tensor = batches(images.compute, lambda size: logits(model, images, size))
        if batches.size != self.pace.batch_size:
            self.pace = replace(self.pace, batch_size=batches.size)
            self.fell_back()
        return outputs

    def _applied(self, strategy: Strategy) -> nn.Module:
        """The smaller network, repaired with as many images as there is memory for."""
        before = self.calibration_images

        def apply(images: int) -> nn.Module:
            self.space.recalibrate(images)
            return self.space.apply(strategy)

        repairs = Frugal(before, FEWEST, "{} calibration images")
        smaller: nn.Module = repairs(self.images.compute, apply)
        if repairs.size != before:
            self.fell_back()
        return smaller

    def remember(self, outcome: Outcome) -> None:
        """Take over an outcome that was measured before (a resumed run)."""
        self._outcomes[_key(outcome.strategy)] = outcome
        if not self._frozen:
            self._rivals.append(outcome)

    def __call__(self, strategy: Strategy, budget: Budget | None = None) -> Outcome:
        """Measure a strategy; one that was measured before is not measured again."""
        start = time.perf_counter()
        budget = budget or self.budget
        full = self.space.complete(strategy)
        key = _key(full)
        known = self._outcomes.get(key)
        if known is None:
            candidate = self._candidate(full, budget)
            measured = self.measure(candidate)
            self._keep(measured, candidate)
            return measured.outcome
        profile = self.clock.take()
        profile.pop(_WAITING, None)  # its parts are known
        if key in self._ahead:
            self._ahead.remove(key)
            return replace(known, profile={**profile, **known.profile})
        seconds = time.perf_counter() - start
        return replace(self._judged(known, budget), seconds=seconds, profile=profile)

    def together(self, batch: Iterable[tuple[Strategy, Budget]], walked: Sequence[Outcome]) -> None:
        """Say which strategies will be asked for next. From now on candidates race only against
        what was ``walked`` before: so it makes no difference how many are measured side by side,
        or in which order.
        """
        self._rivals, self._frozen = list(walked), True
        if self.measurers is None:
            return
        candidates: dict[_Key, Candidate] = {}
        for strategy, budget in batch:
            full = self.space.complete(strategy)
            if _key(full) not in self._outcomes:
                candidates.setdefault(_key(full), self._candidate(full, budget))
        if not candidates:
            return
        start = time.perf_counter()
        with self.clock(_WAITING):
            results = list(self.measurers.measure(list(candidates.values())))
        share = (time.perf_counter() - start) / len(results)
        for measured, candidate in zip(results, candidates.values(), strict=True):
            parts = measured.outcome.profile
            scale = share / max(sum(parts.values()), 1e-9)
            profile = {part: seconds * scale for part, seconds in parts.items()}
            outcome = replace(measured.outcome, seconds=share, profile=profile)
            self._keep(Measured(outcome, measured.values), candidate)
            self._ahead.add(_key(outcome.strategy))

    def measure(self, candidate: Candidate) -> Measured:
        """Measure a candidate, whatever is known of it; nothing is remembered. One whose outputs or
        reward are not finite has failed, and so has one with which anything raises.
        """
        start = time.perf_counter()
        strategy = self.space.complete(candidate.strategy)
        cost = self.space.cost(strategy)
        try:
            return self._measured(candidate, strategy, cost, start)
        except Exception as error:
            outcome = self._outcome(strategy, cost, candidate.budget, start)
            return Measured(outcome.having_failed(error), torch.zeros(0, 3, dtype=torch.float64))

    def _outcome(
        self, strategy: dict[str, int], cost: Cost, budget: Budget, start: float
    ) -> Outcome:
        """What is known of a candidate but for its score and its reward."""
        return Outcome(
            strategy,
            self.space.ratios(strategy),
            NO_SCORE,
            cost,
            math.nan,
            budget.allows(cost),
            time.perf_counter() - start,
            self.clock.take(),
        )

    def why_failing(self, strategy: Strategy, budget: Budget) -> str | None:
        """Why a strategy fails, measured beside the search; None where it does not."""
        before = self._best, self._unconfirmed
        try:
            return self.measure(Candidate(strategy, budget)).outcome.failed
        finally:
            self._best, self._unconfirmed = before

    def _measured(
        self, candidate: Candidate, strategy: dict[str, int], cost: Cost, start: float
    ) -> Measured:
        with self.clock("apply"):
            smaller = self._applied(strategy)
            model = prepared(smaller, self.space.network, self.pace.dtype)
        values = self._race(candidate, model, cost)
        reward = self._reward(cost, candidate.budget)(mean_score(values))
        whole = len(values) == len(self.images.labels)
        best = whole and candidate.budget.allows(cost) and reward > self._best
        if best or self._unconfirmed:  # the winner is one of these
            self._unconfirmed = max(0, self._unconfirmed - 1)
            self._best = reward if best else self._best
            trusted = self.space.network.trusted.steps
            model = self._confirmed(smaller)
            if self.space.network.trusted.steps != trusted:
                values = self._race(candidate, model, cost)
        score, stopped = mean_score(values), None
        if len(values) < len(self.images.labels):
            assert candidate.rival is not None
            stopped, rival = len(values), candidate.rival
            score = estimate(values, rival.values[:stopped], rival.outcome.score)
        outcome = replace(
            self._outcome(strategy, cost, candidate.budget, start),
            score=score,
            reward=self._reward(cost, candidate.budget)(score),
            stopped_after=stopped,
            repair_kept=self.space.repair_kept,
        )
        return Measured(outcome, values)

    def _keep(self, measured: Measured, candidate: Candidate) -> None:
        """Remember what was measured; the values of what later ones may race against, too."""
        outcome, rival = measured.outcome, candidate.rival
        better = rival is None or outcome.reward > rival.outcome.reward
        if self.racing is not None and outcome.can_be_best and better:
            self._values[_key(outcome.strategy)] = measured.values
        self.remember(outcome)

    def _judged(self, outcome: Outcome, budget: Budget) -> Outcome:
        """What an outcome that was measured within one budget is worth within another."""
        if outcome.failed is not None:
            return outcome
        try:
            reward = self._reward(outcome.cost, budget)(outcome.score)
        except Exception as error:
            return outcome.having_failed(error)
        return replace(outcome, reward=reward, feasible=budget.allows(outcome.cost))

    def _reward(self, cost: Cost, budget: Budget) -> Callable[[Score], float]:
        return lambda score: finite(self.reward(score, cost, self.original, budget))

    def _candidate(self, strategy: dict[str, int], budget: Budget) -> Candidate:
        """One that is over its budget is measured for its own sake: it races against nothing."""
        within = self.racing is not None and budget.allows(self.space.cost(strategy))
        return Candidate(strategy, budget, self._rival(budget) if within else None)

    def _rival(self, budget: Budget) -> Rival | None:
        """The best one within a budget, the earliest of equals."""
        best: Outcome | None = None
        for outcome in self._rivals:
            own = self._judged(outcome, budget)
            if own.can_be_best and (best is None or own.reward > best.reward):
                best = own
        if best is None:
            return None
        key = _key(best.strategy)
        if key not in self._values:  # a resumed run
            self._values[key] = self.measure(Candidate(best.strategy, budget)).values
        return Rival(best, self._values[key])

    def _confirmed(self, smaller: nn.Module) -> Prepared:
        trusted = self.space.network.trusted
        before = trusted.steps
        seen = self.images[:SEEN].normalised
        model = confirmed(smaller, self.space.network, seen, self.pace.dtype)
        if trusted.steps != before:
            logging.getLogger("amc").warning("warning: %s", trusted.note)
            self.fell_back()
        return model

    def _race(self, candidate: Candidate, model: Prepared, cost: Cost) -> Tensor:
        """Of each image what `per_image` gives, (n, 3): of all images, or of as many as it took to
        see that the strategy is worse than its rival.
        """
        rival, count = candidate.rival, len(self.images.labels)
        values = torch.zeros(0, 3, dtype=torch.float64)
        with self.clock("evaluate"):
            for block in blocks(count) if rival else [slice(0, count)]:
                images = self.images[block]
                outputs = self._logits(model, images)
                if not outputs.isfinite().all() and model.dtype == torch.float16:
                    model = model.widened()  # fp16 ends at 65,504
                    outputs = self._logits(model, images)
                if not outputs.isfinite().all():
                    raise NotFinite("the network gives NaN or infinity")
                more = per_image(outputs, images.labels, self._reference[block])
                values = torch.cat([values, more])
                if rival is None or len(values) == count:
                    continue
                costs = cost, rival.outcome.cost
                ours, other = (self._reward(own, candidate.budget) for own in costs)
                assert self.racing is not None
                if is_hopeless(values, rival.values, ours, other, self.racing):
                    break
        return values


def _nothing() -> None:
    """What is called where nobody asks."""


def _key(strategy: Strategy) -> _Key:
    return tuple(strategy.values())
