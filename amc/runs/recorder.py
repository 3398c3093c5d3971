"""What happens to every outcome before the agent learns of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from amc.cost.budget import Budget
from amc.errors import UserError
from amc.evaluate.evaluator import Evaluator
from amc.evaluate.outcome import Outcome
from amc.runs.directory import Run
from amc.spaces.base import Strategy


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
        for outcome in self.outcomes:
            self._consider(outcome)

    def announce(self, batch: Iterable[tuple[Strategy, Budget]], first: int) -> None:
        """What is measured next; the uniform strategy came before the first episode."""
        self.evaluator.together(batch, self.outcomes[: 1 + first])

    def evaluate(self, strategy: Strategy, budget: Budget) -> Outcome:
        outcome = self.evaluator(strategy, budget)
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
            self.outcomes.append(outcome)
            self._consider(outcome)
        self.number += 1
        return outcome

    def _consider(self, outcome: Outcome) -> None:
        if outcome.can_be_best and (self.best is None or outcome.reward > self.best.reward):
            self.best = outcome
