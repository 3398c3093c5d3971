"""Pareto curves of ResNet-20 and ResNet-56: README.md beside this file.

    python experiments/pareto_resnet20/run.py search       every agent at every budget
    python experiments/pareto_resnet20/run.py finetune     what one seed found, an epoch each
    python experiments/pareto_resnet20/run.py results      results.csv, hypervolume.csv, pareto.png

With ``--network resnet56`` the other one, where one search of an agent serves all budgets. Each
goes on where it stopped; rows of results.csv stay whose runs are not here any more.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from amc.analysis.own import best_within, counted
from amc.analysis.pareto import Point, hypervolume, non_dominated, pareto
from amc.deliver.finetune import finetune
from amc.files import write_json
from amc.problem import Problem
from amc.registry import HANDCRAFTED
from amc.runs.directory import Run, runs_in
from amc.search import open_problem
from amc.sweep import Sweep, sweep

EXPERIMENTS = Path(__file__).parents[1]
RUNS = Path("runs/pareto")
BUDGETS = (0.3, 0.4, 0.5, 0.6, 0.7)
FAST = ["evaluate.images=2000", "evaluate.calibration_images=500"]
RACING = "evaluate.racing=0.9"
LEARNED = ["agent=td3,random", "agent.episodes=300", RACING]
# one search for the whole curve; of ResNet-20 with a third of the evaluations
ONE = {"resnet20": 500, "resnet56": 300}
RANGE = ["budget.ratio=[0.3,0.7]", RACING]
POLICIES = [f"agent={','.join(HANDCRAFTED)}"]
SEEDS = {"resnet20": (0, 1, 2), "resnet56": (0,)}
AGENTS = ("td3", "uniform", "td3, one search", "random", "shallow", "deep", "random, one search")
KEY = ["agent", "macs_budget", "seed"]
SHORT = ["epochs=1", "lr=0.01"]  # of fine-tuning


def preset(network: str) -> str:
    return f"cifar10_{network}_channel_macs50"


def folder(network: str) -> Path:
    """Where the runs of a sweep lie."""
    return RUNS / f"sweep_{preset(network)}"


# the searches


def listed(values: Sequence[float]) -> str:
    return ",".join(map(str, values))


def search(network: str, jobs: int) -> None:
    """Every agent at every budget; hand-crafted policies without races, which they would lose."""

    def show(found: Sweep) -> None:
        if len(found.ended) != told[0]:
            told[0] = len(found.ended)
            print(f"{told[0]} of {len(found.planned)} done", flush=True)

    told = [-1]
    run = partial(sweep, preset(network), out=RUNS, jobs=jobs, show=show)
    seeds, budgets = f"seed={listed(SEEDS[network])}", f"budget.ratio={listed(BUDGETS)}"
    # the preset of ResNet-20 has another base network now (experiments/baselines)
    own = [*FAST, f"weights=cifar10_{network}_45k.safetensors"]
    run([budgets, *POLICIES, *own, "seed=0"])
    one = [*RANGE, f"agent.episodes={ONE[network]}"]
    if network == "resnet56":
        run([seeds, "agent=td3,random", *one, *own])
    else:
        run([seeds, "agent=td3", *one, *own])
        run([seeds, budgets, *LEARNED, *own])


# what they found


@dataclass(frozen=True)
class Found:
    """The best strategy of a run within a budget."""

    run: Run
    network: str
    budget: float
    line: dict[str, Any]
    evaluations: int  # of the run

    @property
    def agent(self) -> str:
        name: str = self.run.config.agent["name"]
        return f"{name}, one search" if self.is_range else name

    @property
    def is_range(self) -> bool:
        return self.run.config.budget.is_range

    @property
    def seed(self) -> int:
        return self.run.config.seed

    @property
    def strategy(self) -> dict[str, int]:
        own: dict[str, int] = self.line["strategy"]
        return own

    @property
    def key(self) -> str:
        return "-".join(map(str, self.strategy.values()))

    @property
    def tuned(self) -> Path:
        return RUNS / "tuned" / self.network / self.key


def found(network: str) -> Iterator[Found]:
    """Of all runs that have ended."""
    for run in runs_in(folder(network)):
        if not run.has_ended:
            continue
        own, budget = counted(run), run.config.budget.ratio
        for limit in BUDGETS if isinstance(budget, tuple) else [float(budget or 1)]:
            most = limit * run.best["baseline"]["macs"] + 0.5
            best = best_within(own, "macs", most)
            if best is not None:
                yield Found(run, network, limit, best, len(run.lines()))


@cache
def problem_of(network: str) -> Problem:
    """All runs of a network have the same images."""
    return open_problem(next(found(network)).run.path)[1]


def test_accuracy(network: str, key: str, strategy: dict[str, int] | None) -> float:
    """Of a strategy before fine-tuning, of the untouched network without one; kept in a file."""
    path = RUNS / "measured" / network / f"{key}.json"
    if not path.is_file():
        problem = problem_of(network)
        model = problem.network.model if strategy is None else problem.space.apply(strategy)
        write_json(path, {"test_accuracy": problem.accuracy(model, test=True)})
    value: float = json.loads(path.read_text())["test_accuracy"]
    return value


def results(network: str) -> Path:
    return EXPERIMENTS / f"pareto_{network}" / "results.csv"


def earlier(network: str) -> pd.DataFrame:
    """The rows of results.csv whose runs are not here."""
    if not results(network).is_file():
        return pd.DataFrame(columns=[*KEY, "finetuned_test_accuracy"])
    table = pd.read_csv(results(network))
    here = {(one.agent, one.budget, one.seed) for one in found(network)}
    return table[[key not in here for key in table[KEY].itertuples(index=False, name=None)]]


def tune(network: str) -> None:
    """The same short training for what one seed of each agent found."""
    before = earlier(network)
    before = before[before.finetuned_test_accuracy.notna()]
    tuned = set(before[["agent", "macs_budget"]].itertuples(index=False, name=None))
    for one in sorted(found(network), key=lambda one: (one.seed, one.agent, one.budget)):
        if (one.agent, one.budget) in tuned:
            continue
        tuned.add((one.agent, one.budget))
        if not (one.tuned / "metrics.json").is_file():
            metrics = finetune(
                one.run.path, SHORT, episode=one.line["episode"], to=one.tuned
            ).metrics
            accuracy = f"{metrics['finetuned_test_accuracy']:.2%}"
            print(f"{one.agent} {one.budget}: {accuracy}", flush=True)


def row(one: Found) -> dict[str, Any]:
    tuned = one.tuned / "metrics.json"
    after = json.loads(tuned.read_text())["finetuned_test_accuracy"] if tuned.is_file() else None
    return {
        "agent": one.agent,
        "macs_budget": one.budget,
        "seed": one.seed,
        "macs_ratio": one.line["macs"] / one.run.best["baseline"]["macs"],
        "search_accuracy": one.line["search_accuracy"],
        "test_accuracy": test_accuracy(one.network, one.key, one.strategy),
        "finetuned_test_accuracy": after,
        "evaluations": one.evaluations,
        "kl": one.line["kl"],
    }


def write_results(network: str) -> None:
    here = results(network).parent
    table = pd.DataFrame([*earlier(network).to_dict("records"), *map(row, found(network))])
    table = table.sort_values(KEY)
    table.to_csv(results(network), index=False)
    measures = ["search_accuracy", "test_accuracy", "finetuned_test_accuracy", "kl"]
    means = table.groupby(["macs_budget", "agent"])[measures].mean()
    print(means.to_string())
    if "td3" in {agent for agent, _ in complete(network)}:
        volumes = hypervolumes(network)
        volumes.to_csv(here / "hypervolume.csv", index=False)
        print(volumes.to_string(index=False))
    draw(table, here / "pareto.png", network)


def complete(network: str) -> set[tuple[str, int]]:
    """Agent and seed of those that have searched every budget."""
    budgets: dict[tuple[str, int], set[float]] = {}
    for one in found(network):
        budgets.setdefault((one.agent, one.seed), set()).add(one.budget)
    return {key for key, own in budgets.items() if len(own) == len(BUDGETS)}


def hypervolumes(network: str) -> pd.DataFrame:
    """Of each agent, mean over the seeds that have searched every budget: of all its strategies, of
    those only that it delivers at the budgets, and of its first episodes, so many that the separate
    searches have together as many as the one search. With two reference points: the default, and
    one that leaves hardly more than what the agents can differ in.
    """
    whole = complete(network)
    delivered = {(one.agent, one.seed, one.key) for one in found(network)}
    groups: dict[tuple[str, str, int], list[Point]] = {}
    for point in pareto([folder(network)]).points:
        agent = point.agent.split()[0]
        agent = f"{agent}, one search" if " to " in point.agent else agent
        if (agent, point.seed) in whole:
            begun = " to " in point.agent or point.episode <= ONE[network] // len(BUDGETS)
            parts = {"all": True, "first": begun}
            key = "-".join(map(str, point.strategy.values()))
            parts["delivered"] = (agent, point.seed, key) in delivered
            for part in (name for name, chosen in parts.items() if chosen):
                groups.setdefault((part, agent, point.seed), []).append(point)
    rows = []
    for name, corner in (("default", (1.0, 0.1)), ("strict", (0.701, lowest(network)))):
        for (part, agent, seed), points in groups.items():
            volume = hypervolume(non_dominated(points), corner)
            rows.append(
                {"reference": name, "of": part, "agent": agent, "seed": seed, "volume": volume}
            )
    table = pd.DataFrame(rows).groupby(["reference", "of", "agent"])["volume"]
    result = table.agg(["count", "mean", "min", "max"]).rename(columns={"count": "seeds"})
    separate = result.xs("td3", level="agent")["mean"]
    result["of_td3"] = result["mean"] / separate.reindex(result.index.droplevel("agent")).to_numpy()
    return result.reset_index()


def lowest(network: str) -> float:
    """The search accuracy of the uniform strategy at the smallest budget."""
    own = [one for one in found(network) if one.agent == "uniform"]
    accuracy: float = min(own, key=lambda one: one.budget).line["search_accuracy"]
    return accuracy


def draw(table: pd.DataFrame, path: Path, network: str) -> None:
    """Test accuracy over MACs: means over seeds, bars from the worst to the best."""
    measures = ["test_accuracy", "finetuned_test_accuracy"]
    measures = [name for name in measures if table[name].notna().any()]
    figure = Figure(figsize=(6.5 * len(measures), 5), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(measures)))
    untouched = 100 * test_accuracy(network, "untouched", None)
    for axes, measure in zip(panels, measures, strict=True):
        for number, agent in enumerate(AGENTS):
            own = table[(table.agent == agent) & table[measure].notna()]
            if own.empty:
                continue
            groups = 100 * own.groupby("macs_budget")[[measure, "macs_ratio"]].mean()
            ends = 100 * own.groupby("macs_budget")[measure].agg(["min", "max"])
            mean = groups[measure]
            axes.errorbar(
                groups["macs_ratio"],
                mean,
                yerr=[mean - ends["min"], ends["max"] - mean],
                fmt="s--" if agent in HANDCRAFTED else "o-",
                linewidth=1.1 if agent in HANDCRAFTED else 1.8,
                markersize=4,
                capsize=3,
                color=f"C{number}",
                label=f"{agent} ({own.seed.nunique()} seeds)" if own.seed.nunique() > 1 else agent,
            )
        what = "an epoch of fine-tuning" if measure == measures[-1] and len(measures) > 1 else ""
        title = f"after {what}" if what else "before fine-tuning"
        axes.axhline(untouched, color="0.5", linestyle=":", label="untouched network")
        axes.set(xlabel="MACs (%)", ylabel="test accuracy (%)", title=f"{network}, {title}")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["search", "finetune", "results"])
    parser.add_argument("--network", choices=list(SEEDS), default="resnet20")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    chosen = parser.parse_args()
    if chosen.what == "search":
        search(chosen.network, chosen.jobs)
        return
    torch.set_num_threads(1)
    if chosen.what == "finetune":
        tune(chosen.network)
    else:
        write_results(chosen.network)


if __name__ == "__main__":
    main()
