"""Keep an episode within its budget: AMC's action bounding (Algorithm 1), for any metric and space.

A choice is allowed when the budget is still met with all later decisions at their *floor*. By
induction the floor of the next decision is always allowed, so no episode can end over budget; for
that the cost need not be monotone. Where it is (MACs, parameters, memory) the floor is the smallest
choice. Latency is not: runtimes compute channels in blocks, and an odd width can be slower than a
larger one. There

- a choice is struck out, once, where a larger one is not slower by more than noise
  (`DOMINATED`): the lower envelope of the measured curve, so that what is left ascends;
- the floor is, of those, the fastest strategy that coordinate descent finds from the smallest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from amc.cost.budget import Budget
from amc.cost.cost import Metric
from amc.spaces.base import CompressionSpace, Decision, Strategy

DOMINATED = 0.01  # of what a decision can save at all
SMALLEST = 1e-3  # a keep ratio that is scaled: one of 0 would stay 0 whatever the budget
_PASSES = 3
_NAMED = 3  # layers, where a budget cannot be reached


@dataclass(frozen=True)
class Bounds:
    """What an episode in one space may do within one budget."""

    space: CompressionSpace
    budget: Budget
    floor: dict[str, int]  # decision -> the choice that later decisions can always fall back on
    decisions: dict[str, Decision]  # with only the choices that are worth taking

    @classmethod
    def of(cls, space: CompressionSpace, budget: Budget) -> Bounds:
        """Find the floor and the choices.

        Raises:
            UserError: the budget cannot be reached.
        """
        decisions = {decision.name: decision for decision in space.decisions}
        floor = space.smallest
        if budget.metric == "latency_ms":
            fastest, whole = _fastest(space), space.complete({})
            decisions = {d.name: _undominated(space, d, (whole, fastest)) for d in space.decisions}
            floor = {
                name: min(choice for choice in decisions[name].choices if choice >= least)
                for name, least in fastest.items()
            }
        why = _left_alone(space, floor, budget.metric)
        budget.check_reachable(space.cost(floor), space.cost({}), why)
        return cls(space, budget, floor, decisions)

    @property
    def choices(self) -> dict[str, tuple[int, ...]]:
        """Decision -> the choices worth taking, ascending."""
        return {name: decision.choices for name, decision in self.decisions.items()}

    def choose(self, so_far: Strategy, decision: Decision, ratio: float) -> int:
        """The largest choice that is not above the one nearest to ``ratio`` and keeps the budget
        within reach; the floor's where there is none.

        Args:
            so_far: the decisions before this one.
            decision: the next one.
            ratio: the keep ratio that is wanted.
        """
        floor = self.floor[decision.name]
        allowed = self.decisions[decision.name]
        wanted = self.space.decode(allowed, ratio)
        legal = [floor, *(choice for choice in allowed.choices if floor < choice <= wanted)]
        base = {**self.floor, **so_far}
        return self.budget.largest_feasible(
            legal, lambda choice: self.space.cost({**base, decision.name: choice})
        )

    def of_episode(self, number: int) -> Bounds:
        """Within the budget of one episode."""
        return replace(self, budget=self.budget.of_episode(number))

    def executed(self, ratios: Sequence[float]) -> dict[str, int]:
        """The strategy that an episode ends in, of keep ratios as they are wanted, in order."""
        wanted = dict(zip(self.decisions, ratios, strict=True))
        if self.budget.fill:
            return self.scaled(wanted)
        strategy: dict[str, int] = {}
        for decision in self.space.decisions:
            strategy[decision.name] = self.choose(strategy, decision, wanted[decision.name])
        return strategy

    def uniform(self) -> dict[str, int]:
        """The same keep ratio for every decision, as large as the budget allows."""
        return self.scaled(dict.fromkeys(self.decisions, 1.0))

    def scaled(self, ratios: Mapping[str, float]) -> dict[str, int]:
        """Given keep ratios, multiplied by a common factor as large as the budget allows; what
        rounding leaves over goes to single steps, in order, of what is not gone whole.

        Args:
            ratios: decision -> keep ratio; as of `SMALLEST`, where it is less.
        """
        ratios = {name: max(ratio, SMALLEST) for name, ratio in ratios.items()}
        steps = {step / ratios[name] for name, d in self.decisions.items() for step in d.ratios}
        factors = sorted(steps)
        index = self.budget.largest_feasible(
            range(len(factors)), lambda index: self.space.cost(self._times(factors[index], ratios))
        )
        strategy = self._times(factors[index], ratios)
        if not self.budget.allows(self.space.cost(strategy)):
            strategy = dict(self.floor)
        for name, choices in self.choices.items():
            larger = [choice for choice in choices if choice > strategy[name] > 0]
            if larger and self.budget.allows(self.space.cost({**strategy, name: larger[0]})):
                strategy[name] = larger[0]
        return strategy

    def _times(self, factor: float, ratios: Mapping[str, float]) -> dict[str, int]:
        return {
            name: self.space.decode(d, min(1.0, factor * ratios[name]))
            for name, d in self.decisions.items()
        }


def _left_alone(space: CompressionSpace, floor: Strategy, metric: Metric) -> str:
    """Which layers are not decided and why, those first that hold most of the smallest network's
    cost (its MACs for milliseconds, its parameters for memory).
    """
    held: dict[str, int] = defaultdict(int)
    for layer in space.resize(floor):
        held[layer.name.split("@")[0]] += (
            layer.macs if metric in ("macs", "latency_ms") else layer.params
        )
    alone = sorted(space.left_alone.items(), key=lambda item: -held[item[0]])
    if not alone:
        return ""
    named = ", ".join(f"{layer} ({' '.join(why.split())})" for layer, why in alone[:_NAMED])
    more = f" and {len(alone) - _NAMED} more" if len(alone) > _NAMED else ""
    count = "1 layer is" if len(alone) == 1 else f"{len(alone)} layers are"
    return f"{count} left alone: {named}{more}"


def _fastest(space: CompressionSpace) -> dict[str, int]:
    """A strategy whose latency no single decision can lower."""
    strategy = space.smallest
    for _ in range(_PASSES):
        before = dict(strategy)
        for decision in space.decisions:
            times = _latencies(space, decision, strategy)
            strategy[decision.name] = decision.choices[int(np.argmin(times))]
        if strategy == before:
            break
    return strategy


def _undominated(
    space: CompressionSpace, decision: Decision, references: tuple[Strategy, ...]
) -> Decision:
    """The decision with only the choices that are faster than every larger one, with the other
    decisions as in one of the references.
    """
    keep = {decision.choices[-1]}
    for reference in references:
        times = _latencies(space, decision, reference)
        noise = DOMINATED * float(np.ptp(times))
        fastest = times[-1]
        for choice, time in zip(decision.choices[-2::-1], times[-2::-1], strict=True):
            if time < fastest - noise:
                fastest = time
                keep.add(choice)
    kept = [pair for pair in zip(decision.choices, decision.ratios, strict=True) if pair[0] in keep]
    choices, ratios = zip(*kept, strict=True)
    return replace(decision, choices=choices, ratios=ratios)


def _latencies(space: CompressionSpace, decision: Decision, base: Strategy) -> list[float]:
    return [
        space.cost({**base, decision.name: choice})["latency_ms"] for choice in decision.choices
    ]
