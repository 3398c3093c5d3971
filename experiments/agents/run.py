"""Every search algorithm on ResNet-20 and ResNet-56, at equal evaluations: README.md beside this
file.

    python experiments/agents/run.py search [AGENT ...]     the searches; goes on where it stopped
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from amc.config import load_config
from amc.search import resume, search

HERE = Path(__file__).parent
RUNS = Path("runs/agents")
FAST = ["evaluate.images=2000", "evaluate.calibration_images=500", "evaluate.racing=0.9"]
SPACE = ["space.min_ratio=0.1"]  # with the presets' 0.2 nearly everything is forced at 30%
EPISODES = 300


ONCE = ("uniform", "shallow", "deep")
VARIANTS = {
    "td3_never": ["agent={name: td3, imitate: 0}"],
    # AMC's own way: bounded one by one, not scaled to the budget
    "random_paper": ["agent.name=random", "budget.fill=false"],
    "ddpg_paper": [f"agent={json.dumps(load_config('amc_paper')[1].agent)}", "budget.fill=false"],
}
PAPER = ("random_paper", "ddpg_paper")
MAIN = ("td3", "random")
OTHERS = ("ddpg", "genetic", "tpe", "sac", "greedy", "ddpnas")


@dataclass(frozen=True)
class Job:
    """One search."""

    network: str
    budget: float
    agent: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.network}_{round(100 * self.budget)}_{self.agent}"

    @property
    def path(self) -> Path | None:
        """Its run, where it has one."""
        found = sorted((RUNS / self.name).glob(f"s{self.seed}-*"))
        return found[0] if found else None

    @property
    def overrides(self) -> list[str]:
        agent = VARIANTS.get(self.agent, [f"agent.name={self.agent}"])
        # racing against the uniform strategy would leave an estimate of the only one there is
        once = self.agent in ONCE
        own = ["evaluate.racing=null"] if once else [f"agent.episodes={EPISODES}"]
        # the preset of ResNet-20 has another base network now (experiments/baselines)
        own.append(f"weights=cifar10_{self.network}_45k.safetensors")
        return [*agent, f"budget.ratio={self.budget}", f"seed={self.seed}", *SPACE, *FAST, *own]


def jobs() -> list[Job]:
    """All searches, the most important first."""
    everything = ("shallow", "deep", *OTHERS, *PAPER)
    order = [
        ("resnet20", 0.3, ("uniform", *MAIN), (0, 1, 2)),
        ("resnet56", 0.3, ("uniform", *MAIN), (0, 1)),
        ("resnet20", 0.5, ("uniform", *MAIN), (0, 1, 2)),
        ("resnet20", 0.3, MAIN, (3, 4)),
        ("resnet20", 0.3, everything, (0,)),
        ("resnet20", 0.3, ("td3_never",), (0, 1, 2)),
        ("resnet20", 0.5, everything, (0,)),
        ("resnet20", 0.3, everything, (1,)),
        ("resnet56", 0.3, ("genetic", "ddpg_paper", "tpe"), (0,)),
        ("resnet56", 0.3, ("genetic", "ddpg_paper", "tpe"), (1,)),
        ("resnet20", 0.3, MAIN, range(5, 12)),
        ("resnet20", 0.3, everything, (2,)),
        ("resnet20", 0.5, everything, (1, 2)),
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
        _, config = load_config(f"cifar10_{job.network}_channel_macs50", job.overrides)
        best = search(config, out=RUNS, name=job.name).best
    elif not (job.path / "best.json").is_file():
        best = resume(job.path).best
    else:
        best = json.loads((job.path / "best.json").read_text())
    return f"{job.name} s{job.seed}: {100 * best['search_accuracy']:.2f} kl {best['kl']:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["search"])
    parser.add_argument("agents", nargs="*")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--network")
    parser.add_argument("--seeds", type=int, default=99)
    chosen = parser.parse_args()
    todo = [
        job
        for job in jobs()
        if (not chosen.agents or job.agent in chosen.agents)
        and chosen.network in (None, job.network)
        and job.seed < chosen.seeds
    ]
    with ProcessPoolExecutor(chosen.workers, get_context("spawn")) as pool:
        for line in pool.map(run, todo):
            print(line, flush=True)


if __name__ == "__main__":
    main()
