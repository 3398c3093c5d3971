"""ResNet-56 with fewer MACs, fine-tuned: README.md beside this file.

python experiments/finetune_resnet56/run.py search      the strategies, found with the 45k network
python experiments/finetune_resnet56/run.py finetune    the public network with them, trained
python experiments/finetune_resnet56/run.py results     results.csv
python experiments/finetune_resnet56/run.py apart       apart.csv: each two trained networks

Each goes on where it stopped; rows of the tables stay whose trainings are not here any more.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from scipy.stats import binomtest
from torch import Tensor

from amc.analysis.own import best_within, counted
from amc.compute import Compute
from amc.data.datasets import load_dataset
from amc.data.places import data_folder
from amc.deliver.finetune import FinetuneResult, finetune
from amc.evaluate.measure import ImageSet, logits
from amc.progress import ConsoleReport, Report, silent
from amc.runs.directory import Run, runs_in
from amc.sweep import Sweep, sweep
from amc.training.processes import joined

HERE = Path(__file__).parent
RUNS = Path("runs/finetune_resnet56")
PRESET = "cifar10_resnet56_channel_macs50"
PUBLIC = "cifar10_resnet56.safetensors"  # trained on all 50,000 images
UNSEEN = "cifar10_resnet56_45k.safetensors"  # without the held-out images
HALF, PART = 0.5, 0.278  # of the MACs; 3.6 times fewer
FAST = ["evaluate.images=2000", "evaluate.calibration_images=500"]
LEARNED = ["agent=td3,random", "agent.episodes=300", "evaluate.racing=0.9"]
# those within half the MACs are of experiments/pareto_resnet56: one search for 30 to 70%
SEARCHES = {HALF: Path("runs/pareto"), PART: RUNS}
DISTILL = ["distill.soft=0.9", "distill.temperature=4"]
PEAK = {30: 0.05, 60: 0.05, 120: 0.01}  # learning rate for so many epochs
APART = ["first", "second", "only_first_right", "only_second_right", "p"]
KEY = ["strategy", "distillation", "lr", "epochs", "seed", "macs_ratio"]


@dataclass(frozen=True)
class Strategy:
    """The best one that an agent found within a budget."""

    agent: str
    budget: float

    @property
    def name(self) -> str:
        return f"{self.agent}_{round(100 * self.budget)}"

    @cached_property
    def found(self) -> tuple[Run, dict[str, Any]] | None:
        """The run, and the line of its journal; none as long as the search has not ended."""
        folder = SEARCHES[self.budget] / f"sweep_{PRESET}"
        for run in runs_in(folder) if folder.is_dir() else []:
            budget = run.config.budget
            serves = budget.is_range or budget.ratio == self.budget
            if run.has_ended and serves and run.config.agent["name"] == self.agent:
                most = self.budget * run.best["baseline"]["macs"] + 0.5
                best = best_within(counted(run), "macs", most)
                return None if best is None else (run, best)
        return None


@dataclass(frozen=True)
class Job:
    """A fine-tuning of a strategy."""

    strategy: Strategy
    distilled: bool
    epochs: int
    seed: int

    @property
    def folder(self) -> Path:
        how = f"{'distilled' if self.distilled else 'labels'}_lr{PEAK[self.epochs]:g}"
        return RUNS / "tuned" / f"{self.strategy.name}_{how}_{self.epochs}_s{self.seed}"

    @property
    def overrides(self) -> list[str]:
        # all images, and the last epoch: the public network has memorised the held-out ones
        own = [f"epochs={self.epochs}", f"lr={PEAK[self.epochs]}", f"seed={self.seed}"]
        own += [f"weights={PUBLIC}", "hold_out=false"]
        return [*own, *(DISTILL if self.distilled else [])]

    def train(self, report: Report = silent) -> FinetuneResult | None:
        """Or what it came to, where it has ended; None as long as the search has not."""
        if self.strategy.found is None:
            return None
        run, best = self.strategy.found
        return finetune(
            run.path, self.overrides, episode=best["episode"], to=self.folder, report=report
        )

    def row(self) -> dict[str, Any] | None:
        """None as long as it has not ended."""
        path = self.folder / "metrics.json"
        if not path.is_file() or self.strategy.found is None:
            return None
        metrics, (run, line) = json.loads(path.read_text()), self.strategy.found
        one = ", one search" if run.config.budget.is_range else ""
        return {
            "strategy": self.strategy.agent + one,
            "distillation": " ".join(DISTILL) if self.distilled else "none",
            "lr": PEAK[self.epochs],
            "epochs": self.epochs,
            "seed": self.seed,
            "macs_ratio": line["macs"] / run.best["baseline"]["macs"],
            "test_accuracy": metrics["test_accuracy"],
            "finetuned_test_accuracy": metrics["finetuned_test_accuracy"],
            "baseline_test_accuracy": metrics["baseline_test_accuracy"],
            "seconds": metrics["seconds"],
        }


def jobs() -> list[Job]:
    """All fine-tunings, the most important first."""
    td3, random, uniform = (Strategy(agent, HALF) for agent in ("td3", "random", "uniform"))
    return [
        Job(td3, True, 30, 0),
        Job(td3, False, 30, 0),
        Job(uniform, True, 30, 0),
        Job(uniform, False, 30, 0),
        Job(random, True, 30, 0),
        Job(random, False, 30, 0),
        *(Job(Strategy(agent, PART), True, 60, 0) for agent in ("td3", "uniform", "random")),
        Job(td3, True, 120, 0),
        *(Job(s, d, 30, 1) for s in (td3, uniform, random) for d in (True, False)),
        Job(td3, False, 120, 0),
        *(Job(s, True, 120, 0) for s in (uniform, random)),
    ]


def search() -> None:
    """The strategies at 3.6 times fewer MACs."""

    def show(found: Sweep) -> None:
        if len(found.ended) != told[0]:
            told[0] = len(found.ended)
            print(f"{told[0]} of {len(found.planned)} done", flush=True)

    told = [-1]
    own = [f"weights={UNSEEN}", f"budget.ratio={PART}", *FAST, "seed=0"]
    sweep(PRESET, ["agent=uniform", *own], out=RUNS, show=show)
    sweep(PRESET, [*LEARNED, *own], out=RUNS, show=show)


def tune(names: list[str]) -> None:
    """One training after the other, all processes at each."""
    with joined(Compute.of()) as processes:
        for job in jobs():
            if names and not job.folder.name.startswith(tuple(names)):
                continue
            done = job.train(ConsoleReport(Console(stderr=True)))
            line = "its search has not ended"
            if done is not None:
                line = f"{100 * done.metrics['finetuned_test_accuracy']:.2f} on test"
            if processes.first:
                print(f"{job.folder.name}: {line}", flush=True)


def write_results() -> None:
    _write("results.csv", [row for job in jobs() if (row := job.row()) is not None], KEY)


def write_apart() -> None:
    """On how many test images only one of two networks is right, and how often chance alone gives
    so much or more (McNemar's exact test).
    """
    data = load_dataset("cifar10", data_folder(None))
    images = ImageSet.of(data, data.test, np.arange(len(data.test.labels)))
    right: dict[str, Tensor] = {}
    for job in jobs():
        if job.row() is not None and (done := job.train()) is not None:
            outputs = logits(done.model, images, 500)
            right[job.folder.name] = outputs.argmax(1) == images.labels
    rows = []
    for (first, ours), (second, theirs) in combinations(right.items(), 2):
        only = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
        p = binomtest(only[0], sum(only)).pvalue if sum(only) else 1.0
        rows.append(dict(zip(APART, (first, second, *only, round(p, 4)), strict=True)))
    _write("apart.csv", rows, APART[:2])


def _write(name: str, rows: list[dict[str, Any]], key: list[str]) -> None:
    path = HERE / name
    before = pd.read_csv(path).to_dict("records") if path.is_file() else []
    table = pd.DataFrame([*before, *rows]).drop_duplicates(key, keep="last")
    table.to_csv(path, index=False)
    print(table.to_string(index=False))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["search", "finetune", "results", "apart"])
    parser.add_argument("names", nargs="*", help="trainings whose names begin so; all by default")
    chosen = parser.parse_args()
    if chosen.what == "search":
        search()
    elif chosen.what == "finetune":
        tune(chosen.names)
    elif chosen.what == "results":
        write_results()
    else:
        write_apart()


if __name__ == "__main__":
    main()
