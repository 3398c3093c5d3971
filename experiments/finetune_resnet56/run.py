"""ResNet-56 with fewer MACs, fine-tuned: README.md beside this file.

python experiments/finetune_resnet56/run.py search      the strategies, found with the 45k network
python experiments/finetune_resnet56/run.py finetune    the public network with them, trained
python experiments/finetune_resnet56/run.py results     results.csv

Each goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch

from amc.config import load_config
from amc.finetune import finetune
from amc.search import resume, search

HERE = Path(__file__).parent
RUNS = Path("runs/finetune_resnet56")
PUBLIC = "cifar10_resnet56.safetensors"  # trained on all 50,000 images
FAST = ["evaluate.images=2000", "evaluate.calibration_images=500", "evaluate.racing=0.9"]
SEARCH = {"uniform": [], "td3": ["agent.episodes=300"], "random": ["agent.episodes=300"]}
HALF, PART = 0.5, 0.278  # of the MACs; 3.6 times fewer
DISTILL = ["distill.soft=0.9", "distill.temperature=4"]


@dataclass(frozen=True)
class Search:
    """A strategy."""

    agent: str
    budget: float

    @property
    def name(self) -> str:
        return f"{self.agent}_{round(100 * self.budget)}"

    @property
    def path(self) -> Path | None:
        """Its run, where it has one."""
        found = sorted((RUNS / self.name).glob("s0-*"))
        return found[0] if found else None


@dataclass(frozen=True)
class Job:
    """A fine-tuning of a strategy."""

    search: Search
    distilled: bool
    epochs: int
    seed: int

    @property
    def folder(self) -> Path:
        how = "distilled" if self.distilled else "labels"
        return RUNS / "tuned" / f"{self.search.name}_{how}_{self.epochs}_s{self.seed}"

    @property
    def overrides(self) -> list[str]:
        # all images, and the last epoch: the public network has memorised the held-out ones
        own = [f"epochs={self.epochs}", f"seed={self.seed}", f"weights={PUBLIC}", "hold_out=false"]
        return [*own, *(DISTILL if self.distilled else [])]


def searches() -> list[Search]:
    return [Search(agent, budget) for budget in (HALF, PART) for agent in SEARCH]


def jobs() -> list[Job]:
    """All fine-tunings, the most important first."""
    td3, random, uniform = (Search(agent, HALF) for agent in ("td3", "random", "uniform"))
    return [
        Job(td3, False, 30, 0),
        Job(td3, True, 30, 0),
        Job(uniform, False, 30, 0),
        Job(uniform, True, 30, 0),
        Job(random, False, 30, 0),
        Job(random, True, 30, 0),
        Job(td3, True, 120, 0),
        Job(Search("td3", PART), True, 120, 0),
        *(Job(s, d, 30, 1) for s in (td3, uniform, random) for d in (False, True)),
        Job(td3, False, 120, 0),
        *(Job(Search(agent, PART), True, 120, 0) for agent in ("uniform", "random")),
        *(Job(s, True, 120, 0) for s in (uniform, random)),
    ]


def run_search(wanted: Search) -> str:
    torch.set_num_threads(1)
    if wanted.path is None:
        own = [f"agent.name={wanted.agent}", *SEARCH[wanted.agent], f"budget.ratio={wanted.budget}"]
        _, config = load_config("cifar10_resnet56_channel_macs50", [*own, *FAST])
        best = search(config, out=RUNS, name=wanted.name).best
    else:
        best = resume(wanted.path).best
    return f"{wanted.name}: {100 * best['search_accuracy']:.2f} kl {best['kl']:.4f}"


def run_finetune(job: Job, threads: int = 1) -> str:
    torch.set_num_threads(threads)
    if job.search.path is None or not (job.search.path / "best.json").is_file():
        return f"{job.folder.name}: its search has not ended"
    done = finetune(job.search.path, job.overrides, to=job.folder)
    return f"{job.folder.name}: {100 * done.metrics['finetuned_test_accuracy']:.2f} on test"


def write_results() -> None:
    rows = []
    for job in jobs():
        path = job.folder / "metrics.json"
        if path.is_file() and job.search.path is not None:
            found = json.loads(path.read_text())
            best = json.loads((job.search.path / "best.json").read_text())
            rows.append(
                {
                    "strategy": job.search.agent,
                    "distillation": " ".join(DISTILL) if job.distilled else "none",
                    "epochs": job.epochs,
                    "seed": job.seed,
                    "macs_ratio": best["cost_ratios"]["macs"],
                    "test_accuracy": found["test_accuracy"],
                    "finetuned_test_accuracy": found["finetuned_test_accuracy"],
                    "baseline_test_accuracy": found["baseline_test_accuracy"],
                    "seconds": found["seconds"],
                }
            )
    table = pd.DataFrame(rows)
    table.to_csv(HERE / "results.csv", index=False)
    print(table.to_string(index=False))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["search", "finetune", "results"])
    parser.add_argument("agents", nargs="*", help="whose strategies; all by default")
    parser.add_argument("--workers", type=int, default=2, help="of a thread each; 1: all threads")
    chosen = parser.parse_args()
    if chosen.what == "results":
        return write_results()
    run, todo = (run_search, searches()) if chosen.what == "search" else (run_finetune, jobs())
    if chosen.agents:
        todo = [item for item in todo if getattr(item, "search", item).agent in chosen.agents]
    if chosen.what == "finetune" and chosen.workers == 1:
        for job in todo:
            print(run_finetune(job, torch.get_num_threads()), flush=True)
        return None
    with ProcessPoolExecutor(chosen.workers, get_context("spawn")) as pool:
        for line in pool.map(run, todo):
            print(line, flush=True)


if __name__ == "__main__":
    main()
