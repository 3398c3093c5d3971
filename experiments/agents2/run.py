"""What agents start from, see and carry over, at equal evaluations: README.md beside this file.

python experiments/agents2/run.py search [AGENT ...]   the searches; goes on where it stopped
python experiments/agents2/run.py finetune [AGENT ...] with soft targets, five epochs (--epochs)
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from amc.config import load_config
from amc.deliver.finetune import finetune
from amc.runs.directory import Run
from amc.search import resume, search

HERE = Path(__file__).parent
RUNS = Path("runs/agents2")
FAST = ["evaluate.images=2000", "evaluate.calibration_images=500", "evaluate.racing=0.9"]
EPISODES = 300
WEIGHTS = {
    "resnet20": "cifar10_resnet20_45k_200.safetensors",
    "resnet56": "cifar10_resnet56_45k.safetensors",
    "vgg16_bn": "cifar10_vgg16_45k.safetensors",  # experiments/lowrank_resnet56/train_vgg16.py
}
LATENCY = ["device=xeon_onnxruntime_1thread", "budget.metric=latency_ms"]
VARIANTS: dict[str, list[str]] = {
    "uniform": ["agent.name=uniform"],
    # learns from what was wanted instead of what was executed: the other way out
    "td3_wanted": ["agent.name=wanted:WantedAgent"],
    "td3_sensitivity": ["agent={name: td3, start: sensitivity}"],
    "td3_features": ["agent={name: td3, start: sensitivity, sensitivities: true}"],
    "td3_graph": ["agent.name=td3", "observation=graph"],
    "genetic_sensitivity": ["agent={name: genetic, start: sensitivity}"],
    "sensitivity_uniform": ["agent={name: sensitivity, around: uniform}"],
    "sensitivity_pairs": ["agent={name: sensitivity, pairs: true}"],
}
TUNED = ("best", "sensitivity", "random", "uniform")
TUNING = ["lr=0.02", "distill.soft=0.9", "distill.temperature=4"]


@dataclass(frozen=True)
class Job:
    """One search."""

    network: str
    budget: str  # per cent, of MACs or, with an l before it, of milliseconds
    agent: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.network}_{self.budget}_{self.agent}"

    @property
    def path(self) -> Path | None:
        """Its run, where it has one."""
        found = sorted((RUNS / self.name).glob(f"**/s{self.seed}-*"))
        return found[0] if found else None

    @property
    def ended(self) -> bool:
        return self.path is not None and (self.path / "best.json").is_file()

    @property
    def overrides(self) -> list[str]:
        agent = VARIANTS.get(self.agent, [f"agent.name={self.agent}"])
        if self.agent == "td3_transferred":
            other = "resnet56" if self.network == "resnet20" else "resnet20"  # whose policy
            source = Job(other, self.budget, "td3_sensitivity", self.seed).path
            agent = ["agent.name=td3", f"agent.pretrained={json.dumps(str(source))}"]
        own = [] if self.agent == "uniform" else [f"agent.episodes={EPISODES}"]
        ratio = int(self.budget.removeprefix("l")) / 100
        metric = LATENCY if self.budget.startswith("l") else []
        weights = f"weights={WEIGHTS[self.network]}"
        network = f"model=cifar:{self.network}"
        problem = [network, weights, *metric, f"budget.ratio={ratio}", "space.min_ratio=0.1", *FAST]
        return [*agent, *own, *problem, f"seed={self.seed}"]


def jobs() -> list[Job]:
    """All searches, the most important first. `td3_before` and its companions are of the version
    before (README.md), so they are not started here.
    """
    order: list[tuple[str, str, Sequence[str], Sequence[int]]] = [
        ("resnet20", "30", ("uniform", "sensitivity", "td3_sensitivity", "td3", "td3_wanted"), [0]),
        ("resnet20", "30", ("td3_sensitivity", "td3", "td3_wanted"), [1, 2]),
        ("resnet56", "30", ("sensitivity", "td3_sensitivity", "random"), [0]),
        ("resnet20", "30", ("td3_graph", "genetic_sensitivity", "td3_features"), [0]),
        ("resnet20", "50", ("sensitivity", "td3_sensitivity", "random", "td3"), [0]),
        ("resnet20", "l50", ("sensitivity", "td3_sensitivity", "random", "td3"), [0]),
        ("resnet56", "30", ("td3", "td3_transferred", "sensitivity_uniform"), [0]),
        ("resnet20", "30", ("td3_transferred", "td3_graph", "random", "genetic"), [0, 1, 2]),
        ("resnet20", "30", ("sensitivity_uniform", "sensitivity_pairs"), [0]),
        ("resnet20", "50", ("td3_sensitivity", "random", "td3"), [1, 2]),
        ("resnet20", "l50", ("td3_sensitivity", "random", "td3"), [1, 2]),
        ("resnet56", "30", ("td3_sensitivity", "random", "td3", "td3_graph"), [1]),
        ("vgg16_bn", "30", ("td3", "td3_sensitivity", "td3_transferred"), [0]),
    ]
    found = [
        Job(network, budget, agent, seed)
        for network, budget, agents, seeds in order
        for seed in seeds
        for agent in agents
    ]
    return list(dict.fromkeys(found))


def run(job: Job) -> str:
    """Search, or go on with a search."""
    torch.set_num_threads(1)
    if job.path is None:
        _, config = load_config("cifar10_resnet20_channel_macs50", job.overrides)
        best = search(config, out=RUNS, name=job.name).best
    elif not job.ended:
        best = resume(job.path).best
    else:
        best = Run.open(job.path).best
    return f"{job.name} s{job.seed}: {100 * best['search_accuracy']:.2f} kl {best['kl']:.4f}"


def tune(agent: str, epochs: int) -> str:
    """Fine-tune what a search at 30% of ResNet-20 found: of its seeds the best by reward; ``best``:
    of all searches.
    """
    torch.set_num_threads(1)
    ended = [job for job in jobs() if job.ended and (job.network, job.budget) == ("resnet20", "30")]
    own = [job for job in ended if agent in ("best", job.agent)]
    runs = [Run.open(job.path) for job in own if job.path is not None]
    best = max(runs, key=lambda one: one.best["reward"])
    folder = RUNS / "tuned" / f"{agent}_{epochs}"
    finetune(best.path, [*TUNING, f"epochs={epochs}"], to=folder)
    found = json.loads((folder / "metrics.json").read_text())
    keys = ("search_accuracy", "test_accuracy", "finetuned_test_accuracy", "seconds")
    return f"{agent}, {best.path}: {' '.join(str(found[key]) for key in keys)}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["search", "finetune"])
    parser.add_argument("agents", nargs="*")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--network")
    parser.add_argument("--budget")
    parser.add_argument("--seeds", type=int, default=99)
    parser.add_argument("--epochs", type=int, default=5)
    chosen = parser.parse_args()
    todo = [
        job
        for job in jobs()
        if (not chosen.agents or job.agent in chosen.agents)
        and chosen.network in (None, job.network)
        and chosen.budget in (None, job.budget)
        and job.seed < chosen.seeds
    ]
    with ProcessPoolExecutor(chosen.workers, get_context("spawn")) as pool:
        if chosen.what == "search":
            lines = pool.map(run, todo)
        else:
            tuned = [agent for agent in TUNED if agent in (chosen.agents or TUNED)]
            lines = pool.map(tune, tuned, [chosen.epochs] * len(tuned))
        for line in lines:
            print(line, flush=True)


if __name__ == "__main__":
    main()
