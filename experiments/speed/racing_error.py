"""What the confidence of racing is worth: README.md beside this file.

    python experiments/speed/racing_error.py measure FILE    strategies of ResNet-20: their images
    python experiments/speed/racing_error.py race FILE       racing_error.csv, and made-up ones

A race is wrong where a candidate is stopped whose reward on all images is the leader's or above.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import t

from amc.config import load_config
from amc.evaluate.outcome import Candidate
from amc.evaluate.racing import PIECE, is_hopeless, looks
from amc.evaluate.rewards import Score
from amc.problem import Problem
from amc.spaces.bounding import Bounds

HERE = Path(__file__).parent
CONFIDENCE = 0.9
RACES = 400
STRATEGIES = 41
REWARDS: dict[str, Callable[[Score], float]] = {
    "accuracy": lambda score: score.accuracy - 1,
    "cross_entropy": lambda score: -score.cross_entropy,
    "kl": lambda score: -score.kl,
}
COLUMNS = {name: column for column, name in enumerate(REWARDS)}
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Race:
    """Two candidates on the same images: (images, 3) each, and what counts."""

    candidate: Array
    leader: Array
    reward: str

    @property
    def differences(self) -> Array:
        """The candidate's reward less the leader's, of every image."""
        sign = 1 if self.reward == "accuracy" else -1
        return sign * (self.candidate - self.leader)[:, COLUMNS[self.reward]]

    def shuffled(self, generator: np.random.Generator) -> Race:
        order = generator.permutation(len(self.leader))
        return Race(self.candidate[order], self.leader[order], self.reward)


def pieces(race: Race, count: int) -> tuple[Array, float]:
    """The mean differences of pieces, and the factor of a finite population on their variance."""
    whole = race.differences[: count // PIECE * PIECE]
    return whole.reshape(-1, PIECE).mean(1), 1 - count / len(race.leader)


def student(race: Race, count: int, error: float) -> bool:
    """Student's t on pieces: amc's before."""
    found, left = pieces(race, count)
    spread = found.std(ddof=1) * math.sqrt(left / len(found))
    return bool(found.mean() + t.ppf(1 - error, len(found) - 1) * spread < 0)


def johnson(race: Race, count: int, error: float) -> bool:
    """Johnson's t (1978): the mean is moved by what the skewness of the pieces says."""
    found, left = pieces(race, count)
    mean, spread = found.mean(), found.std(ddof=1)
    if spread == 0:
        return bool(mean < 0)
    third = ((found - mean) ** 3).mean()
    moved = mean + third / (6 * spread**2 * len(found)) + third * mean**2 / (3 * spread**4)
    return bool(
        moved + t.ppf(1 - error, len(found) - 1) * spread * math.sqrt(left / len(found)) < 0
    )


def bootstrap(race: Race, count: int, error: float) -> bool:
    """Bootstrap-t on pieces, 1,000 resamples."""
    found, left = pieces(race, count)
    drawn = found[np.random.default_rng(0).integers(len(found), size=(1000, len(found)))]
    spreads = np.maximum(drawn.std(1, ddof=1), 1e-12)
    lowest = np.quantile((drawn.mean(1) - found.mean()) / spreads, error)
    return bool(found.mean() - lowest * found.std(ddof=1) * math.sqrt(left) < 0)


def bernstein(race: Race, count: int, error: float) -> bool:
    """Empirical Bernstein-Serfling (Bardenet & Maillard 2015, theorem 4.3) on images, told the
    range of all differences, which nobody can know.
    """
    seen, total = race.differences[:count], len(race.leader)
    rho = 1 - (count - 1) / total
    if count > total / 2:
        rho = (1 - count / total) * (1 + 1 / count)
    log = math.log(5 / error)
    spread = np.ptp(race.differences)
    width = seen.std() * math.sqrt(2 * rho * log / count)
    width += (7 / 3 + 3 / math.sqrt(2)) * spread * log / count
    return bool(seen.mean() + width < 0)


def betting(race: Race, count: int, error: float) -> bool:
    """amc's, whatever the error at a look: it holds at all of them."""
    reward = REWARDS[race.reward]
    candidate, leader = torch.from_numpy(race.candidate[:count]), torch.from_numpy(race.leader)
    return is_hopeless(candidate, leader, reward, reward, CONFIDENCE)


BOUNDS = (student, johnson, bootstrap, bernstein, betting)


def images_taken(race: Race, bound: Callable[[Race, int, float], bool]) -> int:
    """After how many a race is over."""
    counts = looks(len(race.leader))
    error = (1 - CONFIDENCE) / max(1, len(counts) - 1)
    return next((count for count in counts[:-1] if bound(race, count, error)), counts[-1])


def differences(member: str, count: int, generator: np.random.Generator) -> Array:
    """Of every image, with mean 0: how much better the candidate is."""
    rare = np.arange(count) < count // 100
    made = {
        "normal": lambda: generator.normal(size=count),
        "lognormal: few large gains": lambda: generator.lognormal(0, 1.5, count),
        "lognormal: few large losses": lambda: -generator.lognormal(0, 1.5, count),
        "1% gain 49.5, all others lose 0.5": lambda: np.where(rare, 49.5, -0.5),
        "1% lose 49.5, all others gain 0.5": lambda: np.where(rare, -49.5, 0.5),
        "1% gain 49.5, noise 1 on all": lambda: 50.0 * rare + generator.normal(size=count),
        "Student's t, 2 degrees of freedom": lambda: generator.standard_t(2, count),
    }[member]()
    return np.asarray(made - made.mean())


MADE_UP = (
    "normal",
    "lognormal: few large gains",
    "lognormal: few large losses",
    "1% gain 49.5, all others lose 0.5",
    "1% lose 49.5, all others gain 0.5",
    "1% gain 49.5, noise 1 on all",
    "Student's t, 2 degrees of freedom",
)
CORRECT = {"accuracy: 20% differ": 0.2, "accuracy: 3% differ": 0.03}


def made_up(member: str, count: int, ahead: float, generator: np.random.Generator) -> Race:
    """A race whose candidate is exactly as good as its leader, or ``ahead`` by that part of a
    standard deviation.
    """
    candidate, leader = np.zeros((count, 3)), np.zeros((count, 3))
    if member in CORRECT:
        lost = round(CORRECT[member] * count / 2)
        won = lost + round(ahead * math.sqrt(CORRECT[member]) * count)
        leader[won:, 0] = generator.random(count - won) < 0.8
        leader[won : won + lost, 0], candidate[:, 0] = 1, leader[:, 0]
        candidate[:won, 0], candidate[won : won + lost, 0] = 1, 0
        return Race(candidate, leader, "accuracy").shuffled(generator)
    difference = differences(member, count, generator)
    difference += ahead * difference.std()
    # no divergence is negative: the leader's is at least what the candidate gains
    leader[:, 2] = np.maximum(difference, 0) + generator.exponential(0.1, count)
    candidate[:, 2] = leader[:, 2] - difference
    return Race(candidate, leader, "kl").shuffled(generator)


@dataclass(frozen=True)
class Row:
    """Of races of one kind, under one bound."""

    races: str
    images: int
    candidate: str  # not worse, or worse
    bound: str
    count: int
    stopped: float  # part of the races
    images_taken: float  # mean


def row(what: str, candidate: str, bound: Callable[..., bool], races: list[Race]) -> Row:
    taken = np.array([images_taken(race, bound) for race in races])
    images = len(races[0].leader)
    stopped = float((taken < images).mean())
    return Row(what, images, candidate, bound.__name__, len(races), stopped, float(taken.mean()))


def of_made_up() -> Iterator[Row]:
    generator = np.random.default_rng(0)
    for member in (*MADE_UP, *CORRECT):
        for images in (2000, 5000):
            for ahead in (0.0, 0.02):
                drawn = [made_up(member, images, ahead, generator) for _ in range(RACES)]
                candidate = f"ahead by {ahead} standard deviations" if ahead else "equal"
                yield from (row(member, candidate, bound, drawn) for bound in BOUNDS)


def of_real(values: Array) -> Iterator[Row]:
    """All pairs, each in a random order."""
    generator = np.random.default_rng(0)
    for reward, column in COLUMNS.items():
        means = values[:, :, column].mean(1) * (1 if reward == "accuracy" else -1)
        best = set(np.argsort(means)[-3:].tolist())
        kinds: dict[str, list[Race]] = {"not worse": [], "worse": [], "worse than one of three": []}
        for one in range(len(values)):
            for other in set(range(len(values))) - {one}:
                race = Race(values[one], values[other], reward).shuffled(generator)
                kinds["worse" if means[one] < means[other] else "not worse"].append(race)
                if means[one] < means[other] and other in best:
                    kinds["worse than one of three"].append(race)
        for candidate, races in kinds.items():
            name = f"ResNet-20, {reward}"
            yield from (row(name, candidate, bound, races) for bound in BOUNDS)


def measure(path: Path) -> None:
    """Of each image what `per_image` gives: uniform, random strategies, and changes of the best."""
    overrides = ["evaluate.images=2000", "evaluate.calibration_images=500", "budget.ratio=0.3"]
    overrides += ["space.min_ratio=0.1", "weights=cifar10_resnet20_45k.safetensors"]
    problem = Problem.build(load_config("cifar10_resnet20_channel_macs50", overrides)[1])
    evaluator, bounds = problem.evaluator(), Bounds.of(problem.space, problem.budget)
    decisions, generator = [d.name for d in problem.space.decisions], np.random.default_rng(0)
    found: dict[tuple[int, ...], tuple[float, Array, Array]] = {}
    while len(found) < STRATEGIES:
        ratios = generator.uniform(size=len(decisions)) if found else np.full(len(decisions), 0.5)
        if len(found) > STRATEGIES // 2:
            parents = sorted(found.values(), key=lambda one: -one[0])[:5]
            kept = generator.random(len(decisions)) < 0.75
            ratios = np.where(kept, parents[generator.integers(5)][1], np.maximum(ratios, 0.1))
        strategy = bounds.scaled(dict(zip(decisions, ratios.tolist(), strict=True)))
        if (key := tuple(strategy.values())) not in found:
            measured = evaluator.measure(Candidate(strategy, problem.budget))
            own = np.array(problem.space.ratios(strategy))
            found[key] = measured.outcome.reward, own, measured.values.numpy()
    np.save(path, np.array([values for _, _, values in found.values()]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["measure", "race"])
    parser.add_argument("file", type=Path)
    chosen = parser.parse_args()
    if chosen.what == "measure":
        return measure(chosen.file)
    rows: list[Row] = []
    for one in chain(of_real(np.load(chosen.file)), of_made_up()):
        rows.append(one)
        print(one, flush=True)
    pd.DataFrame([asdict(one) for one in rows]).to_csv(
        HERE / "racing_error.csv", index=False, float_format="%.4g"
    )
    race = made_up("normal", 5000, 0.0, np.random.default_rng(0))
    start = time.perf_counter()
    for _ in range(100):
        betting(race, 4000, 0.1)
    print(f"a look at 4,000 of 5,000 images: {10 * (time.perf_counter() - start):.2f} ms")


if __name__ == "__main__":
    main()
