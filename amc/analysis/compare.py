"""Runs against each other: what each search algorithm had found after how many evaluations and
seconds, over seeds.

Only runs of one problem are compared: the same network and weights, data, action space, budget and
way of measuring. What is left to differ is the agent and the seed, and what follows from the seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import pandas as pd

from amc.analysis.alike import Fact, doubts, heldout_images, must_agree, network_and_data
from amc.analysis.own import lines_to_compare
from amc.analysis.statistics import Values, interval, rank_sum_p, welch
from amc.errors import UserError, unknown
from amc.evaluate.outcome import Outcome
from amc.runs import names
from amc.runs.directory import Run

Measure = Literal["search_accuracy", "reward"]
Axis = Literal["evaluations", "seconds"]

POINTS = 200  # of a curve over seconds


@dataclass(frozen=True)
class Curve:
    """What one run would have delivered, evaluation by evaluation."""

    label: str
    seed: int
    best: Values  # (evaluations,): of the best strategy so far
    seconds: Values  # (evaluations,): passed by then

    @classmethod
    def of(cls, run: Run, label: str, measure: Measure) -> Curve:
        """The best is the one with the highest reward among those of the agent's own
        (`amc.analysis.own`) that were measured on all images and keep the budget; nan before the
        first of them.

        Raises:
            UserError: the run has no such episode yet.
        """
        lines = lines_to_compare(run)
        best, leader, value = [], -np.inf, np.nan
        for line in lines:
            if Outcome.from_line(line).can_be_best and line["reward"] > leader:
                leader, value = line["reward"], float(line[measure])
            best.append(value)
        took = [line["seconds"] + line["profile"].get("agent", 0.0) for line in lines]
        return cls(label, run.config.seed, np.array(best), np.cumsum(took))

    def evaluations_to(self, value: float) -> int | None:
        """The first evaluation, counted from 1, whose best is at least ``value``."""
        reached = np.flatnonzero(self.best >= value)
        return int(reached[0]) + 1 if len(reached) else None


@dataclass(frozen=True)
class Band:
    """One algorithm's curves: their mean over seeds and its 95% interval, to draw."""

    label: str
    seeds: int
    evaluations: int  # the fewest of its runs
    x: Values  # (points,)
    mean: Values
    low: Values
    high: Values


@dataclass(frozen=True)
class Standing:
    """One algorithm over its seeds."""

    label: str
    seeds: int
    evaluations: int  # the fewest of its runs
    mean: float
    low: float  # of the 95% interval of the mean (Student's t); of one seed there is none
    high: float
    seconds: float


@dataclass(frozen=True)
class Pair:
    """Two algorithms against each other, by what their runs found in the end.

    Where both have two or more seeds in common, the difference is the mean of the differences seed
    by seed, of these seeds alone, and so is its interval (Student's t). Else it is that of the
    means of all runs, with Welch's interval; nan where one has a single run. Effect and p are of
    all runs, whatever their seeds.
    """

    first: str
    second: str
    difference: float  # first - second
    low: float  # of its 95% interval
    high: float
    paired: bool  # seed by seed
    seeds: int  # that both have, where it is; else 0
    effect: float  # Cliff's delta in [-1, 1]: how much more often a run of the first is better
    p: float  # Wilcoxon's rank sum (Mann-Whitney), exact with ties too, two-sided


@dataclass(frozen=True)
class Comparison:
    """Everything that `amc compare` shows."""

    measure: Measure
    curves: tuple[Curve, ...]
    warnings: tuple[str, ...] = ()  # what makes the runs less than comparable

    @property
    def by_label(self) -> dict[str, list[Curve]]:
        """Algorithm -> its curves; the best first."""
        found: dict[str, list[Curve]] = {}
        for curve in self.curves:
            found.setdefault(curve.label, []).append(curve)
        order = sorted(found, key=lambda label: -np.mean([c.best[-1] for c in found[label]]))
        return {label: found[label] for label in order}

    def bands(self, over: Axis) -> list[Band]:
        """The best first; over as many evaluations or seconds as all runs of the algorithm have."""
        return [_band(label, curves, over) for label, curves in self.by_label.items()]

    def standings(self) -> list[Standing]:
        """The best first."""
        return [_standing(label, curves) for label, curves in self.by_label.items()]

    def pairs(self) -> list[Pair]:
        """Every two algorithms, the better first."""
        return [_pair(*first, *second) for first, second in combinations(self.by_label.items(), 2)]


def compare(paths: Sequence[str | Path], measure: Measure = "search_accuracy") -> Comparison:
    """Read runs.

    Args:
        paths: run directories.
        measure: what is compared of the best strategy, which has the highest reward.

    Raises:
        UserError: one is not a run, or two are not of the same problem, weights and images.
    """
    runs = [Run.open(Path(path)) for path in paths]
    for run in runs:
        if run.config.budget.is_range:
            raise UserError(
                f"{str(run.path)!r} has no best strategy to be compared, but one for each budget "
                f"from {run.config.budget.label}: see amc pareto"
            )
    must_agree(runs, [_problem(run) for run in runs], "only the agent and the seed may")
    labels = labels_of(runs)
    curves = [Curve.of(run, label, measure) for run, label in zip(runs, labels, strict=True)]
    return Comparison(measure, tuple(curves), doubts(runs))


def measure_of(name: str) -> Measure:
    """A measure by its name.

    Raises:
        UserError: there is no such measure.
    """
    if name not in get_args(Measure):
        raise unknown("measure", name, get_args(Measure))
    return cast(Measure, name)


def _band(label: str, curves: Sequence[Curve], over: Axis) -> Band:
    count = min(len(curve.best) for curve in curves)
    x: Values = np.arange(1.0, count + 1)
    values = np.array([curve.best[:count] for curve in curves])
    if over == "seconds":
        start = max(curve.seconds[0] for curve in curves)
        end = min(curve.seconds[count - 1] for curve in curves)
        x = np.linspace(start, max(start, end), POINTS)
        by_then = [np.searchsorted(curve.seconds, x, side="right") - 1 for curve in curves]
        values = np.array([c.best[i] for c, i in zip(curves, by_then, strict=True)])
    return Band(label, len(curves), count, x, *interval(values))


def _standing(label: str, curves: Sequence[Curve]) -> Standing:
    mean, low, high = interval(np.array([[curve.best[-1]] for curve in curves]))
    evaluations = min(len(curve.best) for curve in curves)
    seconds = float(np.mean([curve.seconds[-1] for curve in curves]))
    ends = mean.item(), low.item(), high.item()
    return Standing(label, len(curves), evaluations, *ends, seconds)


def _pair(first: str, ours: Sequence[Curve], second: str, theirs: Sequence[Curve]) -> Pair:
    a, b = (np.array([curve.best[-1] for curve in curves]) for curves in (ours, theirs))
    by_seed = _by_seed(ours), _by_seed(theirs)
    shared = sorted(by_seed[0].keys() & by_seed[1].keys())
    paired = len(shared) > 1
    if paired:
        differences = np.array([[by_seed[0][seed] - by_seed[1][seed]] for seed in shared])
        difference, low, high = (ends.item() for ends in interval(differences))
    else:
        difference, low, high = welch(a, b)
    effect = float(np.sign(a[:, None] - b[None]).mean())
    seeds = len(shared) if paired else 0
    return Pair(first, second, difference, low, high, paired, seeds, effect, rank_sum_p(a, b))


def _by_seed(curves: Sequence[Curve]) -> dict[int, float]:
    """Seed -> what its run found in the end; the mean where it has several."""
    found: dict[int, list[float]] = {}
    for curve in curves:
        found.setdefault(curve.seed, []).append(float(curve.best[-1]))
    return {seed: float(np.mean(ends)) for seed, ends in found.items()}


def _way_of(run: Run) -> dict[str, Any]:
    """What may differ, but for the seed: the agent, what it sees, and whether it uses the whole
    budget.
    """
    config = run.config
    return {"fill": config.budget.fill, "observation": config.observation, **config.agent}


def _problem(run: Run) -> list[Fact]:
    """What must be the same in all runs."""
    config = run.config.model_dump()
    for key in ("agent", "observation", "seed", "data_dir", "weights_dir", "finetune"):
        del config[key]
    del config["budget"]["fill"]
    costly = [(row.name, row.macs, row.params) for row in run.layers() if row.macs]
    facts = [Fact(key, value) for key, value in config.items()]
    network = Fact(names.LAYERS, costly)  # one that was given from Python has no name
    return [*facts, network, *network_and_data(run), *heldout_images(run)]


def labels_of(runs: Sequence[Run]) -> list[str]:
    """The agent's name of each run; where agents of that name differ, with as few options as tell
    them apart.
    """
    ways, labels = [_way_of(run) for run in runs], []
    for way in ways:
        alike = [other for other in ways if other["name"] == way["name"]]
        keys = _telling_apart(alike)
        labels.append(" ".join([way["name"], *(f"{key}={way[key]}" for key in keys)]))
    return labels


def _telling_apart(ways: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The fewest options in which all ways that differ do differ."""
    keys = [key for key in ways[0] if any(way[key] != ways[0][key] for way in ways)]
    different = len({str(way) for way in ways})
    for count in range(len(keys) + 1):
        for chosen in combinations(keys, count):
            if len({str([way[key] for key in chosen]) for way in ways}) == different:
                return chosen
    return tuple(keys)


def tables(comparison: Comparison) -> dict[str, pd.DataFrame]:
    """Name -> table: curves (a row an evaluation), standings, pairs."""
    curves = [
        pd.DataFrame(
            {
                "agent": curve.label,
                "seed": curve.seed,
                "evaluation": np.arange(len(curve.best)) + 1,
                "seconds": curve.seconds.round(3),
                comparison.measure: curve.best,
            }
        )
        for curve in comparison.curves
    ]
    return {
        "curves": pd.concat(curves),
        "standings": pd.DataFrame(comparison.standings()),
        "pairs": pd.DataFrame(comparison.pairs()),
    }
