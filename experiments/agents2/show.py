"""What the searches found, measured again on all held-out images and on test.

python experiments/agents2/show.py results    results.csv; adds what is new
python experiments/agents2/show.py picture    curves.png
python experiments/agents2/show.py tables     the tables of README.md, as Markdown
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from run import Job, jobs

from amc.analysis.compare import Comparison, Curve
from amc.analysis.own import own_lines
from amc.data.places import find_file
from amc.evaluate.measure import ImageSet, logits, score
from amc.evaluate.outcome import Outcome
from amc.evaluate.prepare import prepared
from amc.evaluate.rewards import Score
from amc.problem import Problem
from amc.runs.directory import Run
from amc.search import open_problem
from amc.views.axes import draw_curves

HERE = Path(__file__).parent
SHORT = 120  # evaluations
BEFORE = [  # of the version before: a copy of its tree ran them (README.md)
    Job("resnet20", "30", agent, seed)
    for agent in ("td3_before", "random", "genetic")
    for seed in (0, 1, 2)
]


def done() -> list[Job]:
    """Jobs whose search has ended."""
    return [job for job in dict.fromkeys([*jobs(), *BEFORE]) if job.ended]


@cache
def problem_of(network: str, budget: str) -> Problem:
    """What all searches of one budget work on."""
    path = next(job.path for job in done() if (job.network, job.budget) == (network, budget))
    assert path is not None
    return open_problem(path, trust=True)[1]


@cache
def images_of(network: str, budget: str) -> dict[str, tuple[ImageSet, Any]]:
    """All held-out images, and test, with the untouched network's outputs."""
    problem = problem_of(network, budget)
    data = problem.dataset
    every = np.load(find_file("cifar10_heldout_indices.npy", None))
    sets = {
        "heldout": ImageSet.of(data, data.train, every),
        "test": ImageSet.of(data, data.test, np.arange(len(data.test.labels))),
    }
    base = prepared(problem.network.model, problem.network)
    return {name: (images, logits(base, images, 100)) for name, images in sets.items()}


def measured(job: Job, strategy: dict[str, int]) -> dict[str, Score]:
    problem = problem_of(job.network, job.budget)
    model = prepared(problem.space.apply(strategy), problem.network)
    return {
        name: score(logits(model, images, 100), images.labels, reference)
        for name, (images, reference) in images_of(job.network, job.budget).items()
    }


def best_after(job: Job, count: int) -> dict[str, Any]:
    """The best line of a journal's first evaluations."""
    assert job.path is not None
    lines = [one for one in own_lines(Run.open(job.path))[: count + 1]]
    able = [line for line in lines if Outcome.from_line(line).can_be_best]
    return max(able, key=lambda line: line["reward"])


def to_reach(job: Job, reward: float) -> int | None:
    """Evaluations until a reward is reached."""
    assert job.path is not None
    return Curve.of(Run.open(job.path), job.agent, "reward").evaluations_to(reward)


def target(job: Job, agent: str) -> float | None:
    """The mean reward that an agent has found in the end, on the same problem."""
    same = [one for one in done() if one.agent == agent and one.network == job.network]
    same = [one for one in same if one.budget == job.budget]
    found = [best_after(one, 300)["reward"] for one in same]
    return float(np.mean(found)) if found else None


def row(job: Job) -> dict[str, Any]:
    assert job.path is not None
    run = Run.open(job.path)
    agent, lines, best = run.config.agent, run.lines(), best_after(job, 10**6)
    found = measured(job, best["strategy"])
    goals = {name: target(job, name) for name in ("random", "td3_before")}
    return {
        "network": job.network,
        "budget": job.budget,
        "agent": job.agent,
        "start": agent.get("start"),
        "observation": run.config.observation,
        "pretrained": agent.get("pretrained"),
        "seed": job.seed,
        "evaluations": len(lines),
        "kl_120": best_after(job, SHORT)["kl"],
        "best_search_accuracy": best["search_accuracy"],
        "best_search_kl": best["kl"],
        "heldout_accuracy": found["heldout"].accuracy,
        "heldout_kl": found["heldout"].kl,
        "test_accuracy": found["test"].accuracy,
        **{
            f"evaluations_to_{name}_best": None if goal is None else to_reach(job, goal)
            for name, goal in goals.items()
        },
        "seconds": round(sum(line["seconds"] for line in lines), 1),
    }


def write_results() -> None:
    path = HERE / "results.csv"
    keys = ["network", "budget", "agent", "seed"]
    known = pd.read_csv(path, dtype={"budget": str}) if path.is_file() else pd.DataFrame()
    rows = known.to_dict("records")
    there = {tuple(str(one[key]) for key in keys) for one in rows}
    for job in done():
        if (job.network, job.budget, job.agent, str(job.seed)) not in there:
            rows.append(row(job))
            pd.DataFrame(rows).sort_values(keys).to_csv(path, index=False)
            print(job.name, job.seed, flush=True)


def write_picture() -> None:
    """curves.png: the reward of the best so far over evaluations, a panel for each problem."""
    problems = dict.fromkeys((job.network, job.budget) for job in done())
    figure = Figure(figsize=(7 * len(problems), 6.5), layout="constrained")
    panels = figure.subplots(1, len(problems), squeeze=False)[0]
    for axes, problem in zip(panels, problems, strict=True):
        own = [job for job in done() if (job.network, job.budget) == problem]
        runs = [(Run.open(job.path), job.agent) for job in own if job.path is not None]
        curves = [Curve.of(run, agent, "reward") for run, agent in runs if agent != "uniform"]
        draw_curves(axes, Comparison("reward", tuple(curves)), "evaluations")
        what = "of the latency" if problem[1].startswith("l") else "of the MACs"
        axes.set_title(f"{problem[0]}, {problem[1].removeprefix('l')}% {what}")
        axes.set_ylabel("minus KL from the untouched network, best so far")
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3)
    figure.savefig(HERE / "curves.png", dpi=90)


def tables() -> Iterator[str]:
    """A table for each problem, a row an agent, the best first: means over seeds and, of more than
    one, the seeds' own values of the KL.
    """
    results = pd.read_csv(HERE / "results.csv", dtype={"budget": str})
    for (network, budget), own in results.groupby(["network", "budget"]):
        what = "latency" if budget.startswith("l") else "MACs"
        yield f"\n**{network}, {budget.removeprefix('l')}% of the {what}**\n"
        heads = ("agent", "evaluations", "KL after 120", "KL at the end", "search", "held out")
        yield f"| {' | '.join(heads)} | test |"
        yield "|---|---|---|---|---|---|---|"
        for agent, rows in sorted(
            own.groupby("agent"), key=lambda item: item[1]["best_search_kl"].mean()
        ):
            each = {
                name: ", ".join(f"{value:.3f}" for value in rows[name])
                for name in ("kl_120", "best_search_kl")
            }
            percents = [
                f"{100 * rows[name].mean():.2f}"
                for name in ("best_search_accuracy", "heldout_accuracy", "test_accuracy")
            ]
            counts = ", ".join(str(count) for count in sorted(set(rows["evaluations"])))
            cells = [agent, counts, each["kl_120"], each["best_search_kl"], *percents]
            yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    chosen = sys.argv[1]
    if chosen == "results":
        write_results()
    elif chosen == "picture":
        write_picture()
    else:
        print("\n".join(tables()))
