"""What the searches found, measured again: on all held-out images, on test, and fine-tuned.

python experiments/agents/measure.py finalists     results.csv
python experiments/agents/measure.py rewards       rewards.csv: which measure chooses best
python experiments/agents/measure.py correlation   correlation.csv: before against after fine-tuning

Each goes on where it stopped, and adds what new searches have found since.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from run import ONCE, RUNS, Job, jobs
from scipy.stats import spearmanr

from amc.analysis.compare import Curve
from amc.analysis.own import counted, own_lines
from amc.data.places import find_file
from amc.evaluate.measure import ImageSet, logits, per_image
from amc.evaluate.outcome import Outcome
from amc.evaluate.prepare import prepared
from amc.evaluate.rewards import Score
from amc.files import write_json
from amc.problem import Problem
from amc.runs.directory import Run
from amc.search import open_problem
from amc.training.settings import TrainConfig
from amc.training.trainer import train

HERE = Path(__file__).parent
FINALISTS = 5
FINETUNE = TrainConfig(epochs=1, lr=0.01)
STRATEGIES = 24  # of the correlation
MEASURES = ("search_accuracy", "cross_entropy", "kl")


@cache
def problem_of(job: Job) -> Problem:
    """What a job's run works on; of all agents the same."""
    path = job.path
    assert path is not None
    return open_problem(path)[1]


@cache
def images_of(job: Job) -> dict[str, tuple[ImageSet, torch.Tensor]]:
    """Images with the untouched network's outputs: the search's own, the rest of the held-out ones,
    and test.
    """
    problem = problem_of(job)
    data, seen = problem.dataset, problem.splits.heldout
    every = np.load(find_file("cifar10_heldout_indices.npy", None))
    sets = {
        "seen": ImageSet.of(data, data.train, seen),
        "fresh": ImageSet.of(data, data.train, np.setdiff1d(every, seen)),
        "test": ImageSet.of(data, data.test, np.arange(len(data.test.labels))),
    }
    base = prepared(problem.network.model, problem.network)
    return {name: (images, logits(base, images, 100)) for name, images in sets.items()}


def measured(job: Job, strategy: dict[str, int], sets: Sequence[str]) -> dict[str, Score]:
    """Scores of a strategy without fine-tuning; kept in a file, so that none is measured twice."""
    name = "-".join(map(str, strategy.values()))
    path = RUNS / "measured" / job.network / f"{name}.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    missing = [part for part in sets if part not in known]
    if missing:
        shared = Job(job.network, 0.3, "uniform", 0)  # all seeds and budgets have its images
        problem = problem_of(shared)
        model = prepared(problem.space.apply(strategy), problem.network)
        for part in missing:
            images, reference = images_of(shared)[part]
            outputs = logits(model, images, 100)
            values = per_image(outputs, images.labels, reference).mean(0)
            known[part] = values.tolist()
        write_json(path, known)
    return {part: Score(*known[part]) for part in sets}


def all_heldout(job: Job, strategy: dict[str, int]) -> Score:
    """On the search's own images and on the rest, weighted by their numbers."""
    found = measured(job, strategy, ("seen", "fresh"))
    parts = [(found["seen"], 2000), (found["fresh"], 3000)]
    means = (
        sum(getattr(score, name) * count for score, count in parts) / 5000
        for name in ("accuracy", "cross_entropy", "kl")
    )
    return Score(*means)


def own_lines_of(job: Job) -> list[dict[str, Any]]:
    """The journal; of a hand-crafted policy its own strategy only."""
    assert job.path is not None
    return own_lines(Run.open(job.path))


def finalists(job: Job) -> list[dict[str, Any]]:
    """The different strategies with the highest rewards, measured on all images."""
    assert job.path is not None
    lines = counted(Run.open(job.path))
    by_strategy = {tuple(line["strategy"].values()): line for line in reversed(lines)}
    return sorted(by_strategy.values(), key=lambda line: -line["reward"])[:FINALISTS]


def done(network: str | None = None) -> list[Job]:
    """Jobs whose search has ended."""
    found = [job for job in jobs() if network in (None, job.network)]
    return [job for job in found if job.path and (job.path / "best.json").is_file()]


def random_best(job: Job, ended: Iterable[Job]) -> float | None:
    """What random search found in the end, by its reward, on the same problem and images."""
    same = [
        other
        for other in ended
        if other.agent == "random"
        and (other.network, other.budget, other.seed) == (job.network, job.budget, job.seed)
    ]
    if not same or same[0].path is None:
        return None
    return float(Curve.of(Run.open(same[0].path), "random", "reward").best[-1])


def result(job: Job, ended: Sequence[Job]) -> dict[str, Any]:
    """The row of one search."""
    assert job.path is not None
    run = Run.open(job.path)
    lines, best = run.lines(), finalists(job)
    heldout = [all_heldout(job, line["strategy"]) for line in best]
    chosen = int(np.argmin([score.kl for score in heldout]))
    curve, target = Curve.of(run, job.agent, "reward"), random_best(job, ended)
    reached = None if target is None or job.agent in ONCE else curve.evaluations_to(target)
    return {
        "network": job.network,
        "macs_budget": job.budget,
        "agent": job.agent,
        "seed": job.seed,
        "evaluations": 1 if job.agent in ONCE else len(lines),
        "best_search_accuracy": best[0]["search_accuracy"],
        "best_search_kl": best[0]["kl"],
        "heldout_accuracy": heldout[0].accuracy,
        "heldout_kl": heldout[0].kl,
        "test_accuracy": measured(job, best[0]["strategy"], ["test"])["test"].accuracy,
        "finalist_heldout_accuracy": heldout[chosen].accuracy,
        "finalist_test_accuracy": measured(job, best[chosen]["strategy"], ["test"])[
            "test"
        ].accuracy,
        "evaluations_to_random_best": reached,
        "seconds": round(curve.seconds[-1], 1),
    }


def write_results() -> None:
    """results.csv."""
    ended, rows = done(), []
    for number, job in enumerate(ended):
        rows.append(result(job, ended))
        print(f"{number + 1}/{len(ended)} {rows[-1]}", flush=True)
    pd.DataFrame(rows).to_csv(HERE / "results.csv", index=False)


def pool(job: Job, count: int) -> list[dict[str, Any]]:
    """The strategies of all agents of one problem and seed that were measured on all the search's
    images and are among the best ``count`` by any measure.
    """
    lines: dict[tuple[int, ...], dict[str, Any]] = {}
    for other in done(job.network):
        if (other.budget, other.seed) == (job.budget, job.seed):
            for line in own_lines_of(other):
                if Outcome.from_line(line).can_be_best:
                    lines.setdefault(tuple(line["strategy"].values()), line)
    chosen: dict[tuple[int, ...], dict[str, Any]] = {}
    for measure in MEASURES:
        sign = -1 if measure == "search_accuracy" else 1
        ranked = sorted(lines.items(), key=lambda item: sign * item[1][measure])
        chosen |= dict(ranked[:count])
    return list(chosen.values())


def write_rewards() -> None:
    """rewards.csv: every strategy of the pool, by each measure on the search's images, on fresh
    images, and on test. Prints what each measure chooses.
    """
    job = Job("resnet20", 0.3, "uniform", 0)
    rows = []
    for line in pool(job, 25):
        found = measured(job, line["strategy"], ("seen", "fresh", "test"))
        rows.append(
            {
                f"{part}_{name}": getattr(score, name)
                for part, score in found.items()
                for name in ("accuracy", "cross_entropy", "kl")
            }
        )
        print(f"{len(rows)} {rows[-1]}", flush=True)
    table = pd.DataFrame(rows)
    table.to_csv(HERE / "rewards.csv", index=False)
    print(choices(table).to_string(index=False))


def choices(table: pd.DataFrame) -> pd.DataFrame:
    """For each measure and set of images that could choose: how it ranks against test accuracy, and
    what its ten first come to.
    """
    rows = []
    table = table.assign(
        **{
            f"all_{name}": (2 * table[f"seen_{name}"] + 3 * table[f"fresh_{name}"]) / 5
            for name in ("accuracy", "cross_entropy", "kl")
        }
    )
    for images in ("seen", "fresh", "all"):
        for name in ("accuracy", "cross_entropy", "kl"):
            values = table[f"{images}_{name}"] * (1 if name == "accuracy" else -1)
            first = table.loc[values.sort_values(ascending=False).index[:10]]
            rows.append(
                {
                    "images": {"seen": 2000, "fresh": 3000, "all": 5000}[images],
                    "measure": name,
                    "rank_correlation_with_test": spearmanr(values, table["test_accuracy"])[0],
                    "test_accuracy_of_first": first["test_accuracy"].iloc[0],
                    "test_accuracy_of_first_ten": first["test_accuracy"].mean(),
                    "search_accuracy_of_first": first["seen_accuracy"].iloc[0],
                    "search_accuracy_of_first_ten": first["seen_accuracy"].mean(),
                }
            )
    return pd.DataFrame(rows)


def spread(job: Job) -> list[dict[str, Any]]:
    """Strategies at equal steps of search accuracy, over all agents of one problem."""
    lines = {
        tuple(line["strategy"].values()): line
        for other in done(job.network)
        if (other.budget, other.seed) == (job.budget, job.seed)
        for line in own_lines_of(other)
    }
    found = list(lines.values())
    accuracies = np.array([line["search_accuracy"] for line in found])
    chosen = []
    for wanted in np.linspace(accuracies.min(), accuracies.max(), STRATEGIES):
        nearest = int(np.argmin(np.abs(accuracies - wanted)))
        chosen.append(found[nearest])
        accuracies[nearest] = np.inf  # none twice
    return chosen


def write_correlation() -> None:
    """correlation.csv. The chosen strategies are kept: later searches do not change them."""
    job = Job("resnet20", 0.3, "uniform", 0)
    path = RUNS / "correlation.json"
    if not path.is_file():
        write_json(path, [{"strategy": line["strategy"]} for line in spread(job)])
    rows = json.loads(path.read_text())
    problem = problem_of(job)
    test, _ = images_of(job)["test"]
    for row in rows:
        if "finetuned_test_accuracy" not in row:
            start = time.perf_counter()
            score = measured(job, row["strategy"], ("seen", "test"))
            model = problem.space.apply(row["strategy"])
            train(model, problem.dataset, problem.splits.train, FINETUNE)
            outputs = logits(prepared(model, problem.network), test, 100)
            row["network"] = job.network
            cost = problem.space.cost(row["strategy"])
            row["macs_ratio"] = cost.macs / problem.space.cost({}).macs
            row["search_accuracy"] = score["seen"].accuracy
            row["search_kl"] = score["seen"].kl
            row["test_accuracy"] = score["test"].accuracy
            row["finetuned_test_accuracy"] = float(
                (outputs.argmax(1) == test.labels).float().mean()
            )
            row["seconds"] = round(time.perf_counter() - start, 1)
            write_json(path, rows)
        print({key: value for key, value in row.items() if key != "strategy"}, flush=True)
    table = pd.DataFrame(rows).drop(columns="strategy")
    table.to_csv(HERE / "correlation.csv", index=False)
    for measure in ("search_accuracy", "search_kl", "test_accuracy"):
        print(measure, spearmanr(table[measure], table["finetuned_test_accuracy"]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    {
        "finalists": write_results,
        "rewards": write_rewards,
        "correlation": write_correlation,
    }[sys.argv[1]]()
