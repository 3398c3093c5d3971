"""Which episodes of a run count as what its agent has found.

Episode 0 of every run is the uniform strategy, by the phase of that name in the journal: agents
that search begin with it, and it is the first of their strategies. An agent that only walks a few
strategies which follow from the space has not found it, so it does not count for such a one, but
for `uniform` itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from amc.errors import UserError
from amc.evaluate.outcome import Outcome
from amc.registry import ONE_SHOT
from amc.runs.directory import Run

UNIFORM = "uniform"  # the phase of episode 0, and the agent that has no other


def own_lines(run: Run) -> list[dict[str, Any]]:
    """The lines of a run's journal that are its agent's own, measured or not."""
    name = run.config.agent["name"]
    lines = run.lines()
    if name == UNIFORM or not (name in ONE_SHOT or run.provenance["one_shot"]):
        return lines
    return [line for line in lines if line["phase"] != UNIFORM]


def counted(run: Run) -> list[dict[str, Any]]:
    """Of these the lines that can be the best: measured on all images, and within the budget."""
    return [line for line in own_lines(run) if Outcome.from_line(line).can_be_best]


def best_within(
    lines: Iterable[dict[str, Any]], metric: str, limit: float
) -> dict[str, Any] | None:
    """Of the lines that cost no more than a limit the one with the highest reward, of equal ones
    the cheapest; none where all cost more.
    """
    within = (line for line in lines if line[metric] <= limit)
    return max(within, key=lambda line: (line["reward"], -line[metric]), default=None)


def lines_to_compare(run: Run) -> list[dict[str, Any]]:
    """`own_lines`, of which at least one counts.

    Raises:
        UserError: none does.
    """
    lines = own_lines(run)
    if not any(Outcome.from_line(line).can_be_best for line in lines):
        raise UserError(
            f"{str(run.path)!r} has no episode of its agent's own yet that was measured on all "
            "images and within its budget"
        )
    return lines
