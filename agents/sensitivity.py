"""Measured sensitivity: each decision alone at a few ratios, a knapsack over what that lost, and
further measurements around what it found. The simple method that every learning agent has to beat.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from itertools import pairwise, product
from typing import Literal

import numpy as np
from amc.agents.curves import Array, Curve, Interaction, places, spread
from amc.agents.knapsack import Losses, solve
from amc.agents.proposing import EpisodeOptions, Exactly, ProposingAgent, Ratios
from pydantic import Field

from amc.errors import UserError
from amc.spaces.bounding import Bounds

REACH = 0.35  # of the first round's steps: to 1 - REACH and 1 / (1 - REACH) times the ratio
LEAST = 0.05  # a round with smaller steps is the last
PARTS = (1.0, 0.5)  # of these steps, that a round's solutions may take

Batches = Generator[list[Exactly], None, list[float]]


class SensitivityOptions(EpisodeOptions):
    """The options of the agent."""

    episodes: int = Field(
        400,
        ge=1,
        le=1_000_000,
        description="evaluations, at most: it ends when a round of the smallest steps finds "
        "nothing better",
    )
    choices: int = Field(
        3, ge=1, le=100, description="keep ratios at which each decision is measured alone"
    )
    around: Literal["whole", "uniform"] = Field(
        "whole",
        description="what the other decisions are like then: the untouched network, or the uniform "
        "strategy within the budget",
    )
    pairs: bool = Field(
        False,
        description="measure every two neighbours together, too, at all pairs of these ratios",
    )


class SensitivityAgent(ProposingAgent):
    """Losses are taken to add up: of the decisions alone, and with ``pairs`` of what neighbours
    lose beyond that; then the best strategy within any budget is a knapsack's (a chain's: AOWS,
    Berman et al., CVPR 2020, who learn both terms from a supernet). What is left of the episodes
    goes to rounds around the best strategy: each decision a step up and down, and the knapsack over
    these losses; steps are halved where that finds nothing better.

    A loss is the reward of the untouched network, or of the strategy around which is measured,
    less the reward. Of a range of budgets every episode after the first measurements has the
    solution for its own.
    """

    Options = SensitivityOptions
    options: SensitivityOptions
    conditioned = True

    def begin(self) -> None:
        self._middle = self.bounds.of_episode(0)
        self._grid = [self._ratios_of(name) for name in self.bounds.decisions]
        if self.options.episodes < self.measurements + 1:
            raise UserError(
                f"agent.episodes is {self.options.episodes}: sensitivity measures "
                f"{self.measurements} strategies before it proposes one, so at least "
                f"{self.measurements + 1} are needed; fewer agent.choices need fewer"
            )
        self._batches = self._search()
        self.losses: Losses | None = None
        self.curves: list[Curve] = []

    def _ratios_of(self, name: str) -> list[float]:
        decision, floor = self.bounds.decisions[name], self.bounds.floor[name]
        pairs = zip(decision.choices, decision.ratios, strict=True)
        return spread([ratio for choice, ratio in pairs if choice >= floor], self.options.choices)

    @property
    def measurements(self) -> int:
        """How many there are before the first solution."""
        alone = sum(len(ratios) for ratios in self._grid)
        both = sum(len(a) * len(b) for a, b in pairwise(self._grid)) if self.options.pairs else 0
        return 1 + alone + both

    def propose(self) -> list[Exactly]:
        return next(self._batches, [])

    def solution(self, bounds: Bounds) -> Ratios:
        """The keep ratios (steps,) of the knapsack within a budget, once all is measured."""
        assert self.losses is not None
        found = solve(bounds, self.losses, bounds.uniform())
        return np.array(self.space.ratios(found))

    @property
    def lost(self) -> Array:
        """What each decision alone has lost at each of its ratios, smallest first, as a part of
        the largest such loss: (steps, choices); 0 where a decision has fewer ratios.
        """
        table = np.zeros((self.steps, self.options.choices))
        for row, ratios, curve in zip(table, self._grid, self.curves, strict=True):
            row[: len(ratios)] = [curve.points[ratio] for ratio in ratios]
        return np.asarray(np.clip(table / max(float(table.max()), 1e-12), 0.0, 1.0))

    def _search(self) -> Iterator[list[Exactly]]:
        yield from self._each_alone()
        if self.bounds.budget.least is None:
            yield from self._rounds()
            return
        while True:
            bounds = self.bounds.of_episode(len(self.walks))
            yield [Exactly(self.solution(bounds), "solve")]

    def _measured(self, strategies: Sequence[Ratios], phase: str = "measure") -> Batches:
        """The rewards of strategies, just as they are."""
        if not strategies:
            return []
        before = len(self.walks)
        yield [Exactly(ratios, phase) for ratios in strategies]
        return [walk.reward for walk in self.walks[before:]]

    def _each_alone(self) -> Generator[list[Exactly], None, None]:
        """Each decision alone, and neighbours."""
        around = np.ones(self.steps)
        if self.options.around == "uniform":
            around = np.array(self.space.ratios(self._middle.uniform()))
        moves = [{step: one} for step, own in enumerate(self._grid) for one in own]
        rewards = yield from self._measured([around, *(_moved(around, move) for move in moves)])
        self.curves = [Curve({float(ratio): 0.0}) for ratio in around]
        for move, reward in zip(moves, rewards[1:], strict=True):
            ((step, ratio),) = move.items()
            points = {**self.curves[step].points, ratio: rewards[0] - reward}
            self.curves[step] = Curve(points)
        together: list[Interaction] = []
        if self.options.pairs:
            together = yield from self._neighbours(around, rewards[0])
        self.losses = self._losses(self.curves, together)

    def _neighbours(
        self, around: Ratios, reward: float
    ) -> Generator[list[Exactly], None, list[Interaction]]:
        grid, curves = self._grid, self.curves
        moves = [
            {step: one, step + 1: other}
            for step in range(self.steps - 1)
            for one, other in product(grid[step], grid[step + 1])
        ]
        rewards = iter((yield from self._measured([_moved(around, move) for move in moves])))
        found = []
        for step in range(self.steps - 1):
            rows, columns = (sorted({*grid[at], float(around[at])}) for at in (step, step + 1))
            excess = np.zeros((len(rows), len(columns)))
            for one, other in product(grid[step], grid[step + 1]):
                alone = curves[step].points[one] + curves[step + 1].points[other]
                excess[rows.index(one), columns.index(other)] = reward - next(rewards) - alone
            found.append(Interaction(rows, columns, excess))
        return found

    def _losses(self, curves: Sequence[Curve], together: Sequence[Interaction] = ()) -> Losses:
        """At all choices."""
        ratios = [decision.ratios for decision in self.bounds.decisions.values()]
        alone = [curve(own) for curve, own in zip(curves, ratios, strict=True)]
        pairs = zip(together, ratios, ratios[1:], strict=False)
        return Losses(alone, [one(first, second) for one, first, second in pairs])

    def _rounds(self) -> Generator[list[Exactly], None, None]:
        """Further measurements around the best strategy."""
        now = self.solution(self.bounds)
        (reward,) = yield from self._measured([now], "solve")
        reach = REACH
        while reach >= LEAST:
            curves = yield from self._around(now, reward, reach)
            found = [self._within(now, curves, reach * part) for part in PARTS]
            rewards = yield from self._measured(found, "solve")
            best = int(np.argmax(rewards))
            if rewards[best] > reward:
                now, reward = found[best], rewards[best]
            else:
                reach /= 2

    def _around(
        self, now: Ratios, reward: float, reach: float
    ) -> Generator[list[Exactly], None, list[Curve]]:
        """The loss of each decision a step down and up, with the others as they are."""
        moves = []
        for step, ratio in enumerate(now):
            ends = {self._stepped(step, ratio, reach, sign) for sign in (-1, 1)} - {float(ratio)}
            moves += [{step: end} for end in sorted(ends)]
        rewards = yield from self._measured([_moved(now, move) for move in moves])
        points = [{float(ratio): 0.0} for ratio in now]
        for move, found in zip(moves, rewards, strict=True):
            ((step, ratio),) = move.items()
            points[step][ratio] = reward - found
        return [Curve(own) for own in points]

    def _stepped(self, step: int, ratio: float, reach: float, sign: int) -> float:
        """The keep ratio a step down or up: at least the next one, where there is one."""
        own = list(self.bounds.decisions.values())[step].ratios
        wanted = places([ratio], own)[0] - sign * np.log(1 - reach)
        beyond = [one for one in own if (one - ratio) * sign > 0]
        if not beyond:
            return float(ratio)
        return float(beyond[int(np.argmin(np.abs(places(beyond, own) - wanted)))])

    def _within(self, now: Ratios, curves: Sequence[Curve], reach: float) -> Ratios:
        """The best strategy no decision of which is further than a step away."""
        losses = self._losses(curves)
        decisions = list(self.bounds.decisions.values())
        for step, (alone, decision) in enumerate(zip(losses.alone, decisions, strict=True)):
            ends = [self._stepped(step, now[step], reach, sign) for sign in (-1, 1)]
            at = np.array(decision.ratios)
            alone[(at < ends[0] - 1e-9) | (at > ends[1] + 1e-9)] = np.inf
        names = list(self.bounds.decisions)
        around = {
            name: self.space.decode(self.bounds.decisions[name], ratio)
            for name, ratio in zip(names, now, strict=True)
        }
        return np.array(self.space.ratios(solve(self.bounds, losses, around)))


def _moved(ratios: Ratios, move: dict[int, float]) -> Ratios:
    """With some decisions at other keep ratios."""
    moved = ratios.copy()
    for step, ratio in move.items():
        moved[step] = ratio
    return moved
