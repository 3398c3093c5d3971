"""Pareto fronts: what every budget would have cost, from the journals of many runs.

A strategy is a point: a cost to be small, an accuracy to be large. The front of a run, or of
several, are the strategies to which no other is better in both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from amc.analysis.alike import Fact, doubts, must_agree, network_and_data
from amc.analysis.compare import labels_of
from amc.analysis.own import best_within, counted
from amc.analysis.statistics import Values, interval
from amc.cost.cost import METRICS, Metric
from amc.errors import UserError, shown, unknown
from amc.runs.directory import Run, runs_in

PICKS = 6  # of a run with a range of budgets
LARGEST_COST = 1000  # of a reference point, as a part of the original's


@dataclass(frozen=True)
class Point:
    """A strategy that was measured on all images and is within its run's budget."""

    agent: str
    seed: int
    run: str
    episode: int
    ratio: float  # of the original's cost, on the axis of the front
    search_accuracy: float
    costs: Mapping[str, float | None]
    strategy: Mapping[str, int]
    ratios: tuple[float, ...]  # the keep ratio of each decision


@dataclass(frozen=True)
class Pick:
    """What a run delivers within a budget: of its strategies the best one, by reward."""

    budget: str
    point: Point


@dataclass(frozen=True)
class Delivered:
    """What the runs of one agent within one budget delivered: their best strategies by reward, the
    mean over seeds and its 95% interval.
    """

    seeds: int
    ratio: float  # of the original's cost
    mean: float  # search accuracy
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """One agent over its budgets."""

    agent: str
    delivered: tuple[Delivered, ...]  # by ascending cost
    hypervolume: Values  # of each seed that has a run of every budget

    @property
    def mean_hypervolume(self) -> float:
        """Over these seeds; 0 where there is none."""
        return float(self.hypervolume.mean()) if len(self.hypervolume) else 0.0


@dataclass(frozen=True)
class Pareto:
    """Everything that `amc pareto` shows."""

    metric: Metric
    original: float  # what the uncompressed network costs
    accuracy: float  # and its search accuracy, the mean over runs
    reference: tuple[float, float]  # cost ratio and accuracy, the worst corner of the hypervolume
    points: tuple[Point, ...]
    picks: tuple[Pick, ...]
    warnings: tuple[str, ...] = ()  # what makes the runs less than comparable

    @property
    def front(self) -> tuple[Point, ...]:
        """The non-dominated strategies of all runs, by cost."""
        return tuple(non_dominated(self.points))

    def by_agent(self) -> dict[str, list[Point]]:
        found: dict[str, list[Point]] = {}
        for point in self.points:
            found.setdefault(point.agent, []).append(point)
        return found

    def curves(self) -> list[Curve]:
        """The agents, the largest hypervolume first."""
        curves = [self._curve(agent, points) for agent, points in self.by_agent().items()]
        return sorted(curves, key=lambda curve: -curve.mean_hypervolume)

    def _curve(self, agent: str, points: Sequence[Point]) -> Curve:
        budgets: dict[str, list[Point]] = {}
        for pick in self.picks:
            if pick.point.agent == agent:
                budgets.setdefault(pick.budget, []).append(pick.point)
        delivered = [_delivered(own) for own in budgets.values()]
        seeds = [
            seed
            for seed in sorted({p.seed for p in points})
            if all(any(p.seed == seed for p in own) for own in budgets.values())
        ]
        fronts = [non_dominated(p for p in points if p.seed == seed) for seed in seeds]
        volumes = np.array([hypervolume(front, self.reference) for front in fronts])
        return Curve(agent, tuple(sorted(delivered, key=lambda d: d.ratio)), volumes)


def _delivered(points: Sequence[Point]) -> Delivered:
    accuracies = np.array([[p.search_accuracy] for p in points])
    mean, low, high = (ends.item() for ends in interval(accuracies))
    ratio = float(np.mean([p.ratio for p in points]))
    return Delivered(len({p.seed for p in points}), ratio, mean, low, high)


def non_dominated(points: Iterable[Point]) -> list[Point]:
    """The points to which no other is better in cost and accuracy, by ascending cost."""
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.ratio, -p.search_accuracy, p.run, p.episode)):
        if not found or point.search_accuracy > found[-1].search_accuracy:
            found.append(point)
    return found


def hypervolume(front: Sequence[Point], reference: tuple[float, float]) -> float:
    """The area between a front and the reference point, which is worse than all that counts: cost
    ratio to its left, accuracy above it.
    """
    cost, accuracy = reference
    volume = 0.0
    for point in reversed(front):  # the right one reaches to the reference, others to the next
        if point.ratio < cost and point.search_accuracy > accuracy:
            volume += (cost - point.ratio) * (point.search_accuracy - accuracy)
            cost = point.ratio
    return volume


def pareto(
    paths: Sequence[str | Path], metric: str = "macs", reference: tuple[float, float] | None = None
) -> Pareto:
    """Read runs, or folders of runs.

    Args:
        paths: directories.
        metric: the cost on the axis: macs (alias flops), params, memory_bytes or latency_ms.
        reference: cost ratio and accuracy of the hypervolume's reference point; by default the
            uncompressed network's cost, and the accuracy of guessing.

    Raises:
        UserError: there is no run, two are not of one network, weights and data, one does not know
            its latency, or the reference point makes no sense.
    """
    if reference is not None:
        _check_reference(reference)
    metric = "macs" if metric == "flops" else metric
    if metric not in METRICS:
        raise unknown("cost axis", metric, [*METRICS, "flops"])
    runs = [run for path in paths for run in runs_in(Path(path)) if run.has_best]
    if not runs:
        raise UserError(f"no finished run in {', '.join(repr(str(path)) for path in paths)}")
    networks = [_network(run, metric) for run in runs]
    must_agree(runs, networks, "fronts are of one network")
    original = runs[0].best["baseline"][metric]
    accuracy = float(np.mean([run.best["baseline"]["search_accuracy"] for run in runs]))
    if reference is None:
        reference = 1.0, 1.0 / (runs[0].provenance["classes"] or math.inf)
    points: list[Point] = []
    picks: list[Pick] = []
    for run, label in zip(runs, labels_of(runs), strict=True):
        budget = run.config.budget
        agent = f"{label}, {budget.label}" if budget.is_range else label
        lines = counted(run)
        own = [_point(run, agent, line, metric, original) for line in lines]
        points += own
        picks += _picks(run, lines, own)
    if not points:
        raise UserError(
            f"no strategy of {str(runs[0].path)!r} counts: none was measured within its budget"
        )
    found = tuple(points), tuple(picks)
    return Pareto(metric, original, accuracy, reference, *found, doubts(runs))


def _check_reference(reference: tuple[float, float]) -> None:
    cost, accuracy = reference
    if not (0 < cost <= LARGEST_COST and 0 <= accuracy <= 1):
        raise UserError(
            f"the reference point is {shown(reference)}: a cost ratio above 0 and at most "
            f"{LARGEST_COST} and an accuracy from 0 to 1 are expected"
        )


def _network(run: Run, metric: str) -> list[Fact]:
    """What must be the same in all runs. (Seeds may have held-out images of their own.)"""
    baseline = run.best["baseline"]
    if baseline[metric] is None:
        raise UserError(f"{str(run.path)!r} has no {metric}: it was searched without a device")
    keys = dict.fromkeys(("macs", "params", "memory_bytes", metric))
    config = run.config
    return [
        Fact("model", config.model),
        Fact("dataset", config.dataset),
        *(Fact(key, baseline[key]) for key in keys),
        *network_and_data(run),
    ]


def _point(run: Run, agent: str, line: Mapping[str, Any], metric: str, original: float) -> Point:
    return Point(
        agent,
        run.config.seed,
        run.path.name,
        line["episode"],
        line[metric] / original,
        line["search_accuracy"],
        {name: line[name] for name in METRICS},
        line["strategy"],
        tuple(line["ratios"]),
    )


def _picks(run: Run, lines: Sequence[dict[str, Any]], points: Sequence[Point]) -> Iterator[Pick]:
    """Within the run's budget; where that is a range, within several of it."""
    budget = run.config.budget
    limits = {budget.label: float("inf")}
    if isinstance(budget.ratio, tuple):
        whole = run.best["baseline"][budget.metric]
        ratios = np.linspace(*budget.ratio, PICKS + 1)[1:]  # hardly any is within the least
        limits = {f"{ratio:.3g}": float(ratio * whole) for ratio in ratios}
    by_episode = {point.episode: point for point in points}
    for label, limit in limits.items():
        best = best_within(lines, budget.metric, limit)
        if best is not None:
            yield Pick(f"{budget.metric} {label}", by_episode[best["episode"]])


def tables(found: Pareto) -> dict[str, pd.DataFrame]:
    """Name -> table: pareto (the front of all runs), curves, hypervolume."""
    front = [
        {
            "agent": p.agent,
            "seed": p.seed,
            "run": p.run,
            "episode": p.episode,
            f"{found.metric}_ratio": p.ratio,
            "search_accuracy": p.search_accuracy,
            **p.costs,
        }
        for p in found.front
    ]
    curves = found.curves()
    rows = [
        {
            "agent": curve.agent,
            "seeds": part.seeds,
            f"{found.metric}_ratio": part.ratio,
            "search_accuracy": part.mean,
            "low": part.low,
            "high": part.high,
        }
        for curve in curves
        for part in curve.delivered
    ]
    return {
        "pareto": pd.DataFrame(front),
        "curves": pd.DataFrame(rows),
        "hypervolume": pd.DataFrame([asdict(row) for row in standings(curves)]),
    }


@dataclass(frozen=True)
class Standing:
    """The hypervolume of one agent over its seeds."""

    agent: str
    seeds: int
    hypervolume: float
    low: float  # of the 95% interval of the mean; of one seed there is none
    high: float
    relative: float  # to the largest


def standings(curves: Sequence[Curve]) -> list[Standing]:
    """The largest first; of agents with a seed that has a run of every budget."""
    whole = [curve for curve in curves if len(curve.hypervolume)]
    best = max((curve.mean_hypervolume for curve in whole), default=0.0)
    rows = []
    for curve in whole:
        column: NDArray[np.float64] = curve.hypervolume[:, None]
        mean, low, high = (ends.item() for ends in interval(column))
        rows.append(Standing(curve.agent, len(curve.hypervolume), mean, low, high, mean / best))
    return rows
