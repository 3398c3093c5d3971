"""What happens to every outcome before the agent learns of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from amc.cost.budget import Budget
from amc.errors import UserError
from amc.evaluate.evaluator import Evaluator
from amc.evaluate.outcome import Outcome
from amc.files import write_bytes
from amc.runs import names
from amc.runs.directory import Run
from amc.spaces.base import CompressionSpace, Strategy

FAILED = 3  # strategies in a row, after which the neighbours of the untouched network are tried


class Recorder:
    """Stands between the environment and the evaluator: writes every outcome to the journal before
    the agent learns from it, so that the journal is never behind a checkpoint. A resumed run must
    repeat what is there already.
    """

    def __init__(self, run: Run, lines: list[dict[str, Any]], evaluator: Evaluator) -> None:
        self.run, self.evaluator = run, evaluator
        self.outcomes = [Outcome.from_line(line) for line in lines]  # of the journal
        self.number = 0  # of the next one
        self.phase_of: Callable[[int], str] = lambda episode: ""
        self.best: Outcome | None = None
        self._sound = False  # whether a neighbour of the untouched network was seen not to fail
        for outcome in self.outcomes:
            evaluator.remember(outcome)
            self._consider(outcome)

    def announce(self, batch: Iterable[tuple[Strategy, Budget]], first: int) -> None:
        """What is measured next; the uniform strategy came before the first episode."""
        self.evaluator.together(batch, self.outcomes[: 1 + first])

    def evaluate(self, strategy: Strategy, budget: Budget) -> Outcome:
        outcome = self._named(self.evaluator(strategy, budget))
        if self.number < len(self.outcomes):
            if self.outcomes[self.number].strategy != outcome.strategy:
                raise UserError(
                    f"{str(self.run.path)!r}: episode {self.number} comes out otherwise than in "
                    "its journal: packages, data or "
                    "weights have changed since"
                )
        else:
            phase = "uniform" if self.number == 0 else self.phase_of(self.number - 1)
            self.run.append(self.number, phase, outcome)
            if outcome.failed is not None:
                logger = logging.getLogger("amc")
                logger.warning("episode %d failed: %s", self.number, outcome.failed)
            self.outcomes.append(outcome)
            self._consider(outcome)
            if len(self.outcomes) >= FAILED and all(o.failed for o in self.outcomes[-FAILED:]):
                self._check_neighbours(budget)
        self.number += 1
        return self._told(outcome)

    def _named(self, outcome: Outcome) -> Outcome:
        """A failed outcome that names the file in which its traceback lies."""
        if not outcome.trace:
            return outcome
        place = f"{names.ERRORS}/episode_{self.number}.txt"
        write_bytes(self.run.path / place, outcome.trace.encode())
        named = replace(outcome, failed=f"{outcome.failed} ({place})", trace="")
        self.evaluator.remember(named)  # as a resumed run will know it
        return named

    def _told(self, outcome: Outcome) -> Outcome:
        """What the agent learns: of a failed strategy that it is worse than all before it."""
        if outcome.failed is None:
            return outcome
        before = self.outcomes[: self.number - 1]
        rewards = [other.reward for other in before if other.failed is None] or [0.0]
        worst = min(rewards) - max(1.0, max(rewards) - min(rewards))
        return replace(outcome, reward=worst)

    def _check_neighbours(self, budget: Budget) -> None:
        """After several failures in a row: refuse to go on where hardly changing the network is
        enough to fail.

        Raises:
            UserError: it is.
        """
        if self._sound:
            return
        near = _neighbours(self.evaluator.space)
        failed = [self.evaluator.why_failing(strategy, budget) for strategy in near]
        self._sound = None in failed
        if not self._sound:
            raise UserError(
                f"{str(self.run.path)!r}: {FAILED} strategies in a row have failed, and so do "
                f"those next to the untouched network ({failed[-1]}): mend that, then `amc resume` "
                "goes on"
            )

    def _consider(self, outcome: Outcome) -> None:
        if outcome.can_be_best and (self.best is None or outcome.reward > self.best.reward):
            self.best = outcome


def _neighbours(space: CompressionSpace) -> list[dict[str, int]]:
    """The untouched strategy, and two that are as near to it as can be."""
    ends = space.decisions[:1] + space.decisions[-1:]
    near = [{one.name: one.choices[-2:][0]} for one in ends]
    return [space.complete(own) for own in ({}, *near)]
