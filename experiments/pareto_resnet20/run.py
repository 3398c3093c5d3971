"""Pareto curves of ResNet-20 and ResNet-56: README.md beside this file.

    python experiments/pareto_resnet20/run.py search        the searches
    python experiments/pareto_resnet20/run.py search --network resnet56

Goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path

from amc.sweep import Sweep, sweep

RUNS = Path("runs/pareto")
BUDGETS = (0.3, 0.4, 0.5, 0.6, 0.7)
FAST = ["evaluate.images=2000", "evaluate.calibration_images=500"]
RACING = "evaluate.racing=0.9"
LEARNED = ["agent=td3,random", "agent.episodes=300", RACING]
# one search for the whole curve, with a third of the evaluations
RANGE = ["budget.ratio=[0.3,0.7]", "agent=td3", "agent.episodes=500", RACING]
HANDCRAFTED = ["agent=uniform,shallow,deep"]
SEEDS = {"resnet20": (0, 1, 2), "resnet56": (0,)}


def listed(values: tuple[float, ...]) -> str:
    return ",".join(map(str, values))


def show(found: Sweep) -> None:
    """A line when a run ends."""
    done = len(found.ended)
    if getattr(show, "done", None) != done:
        print(f"{done} of {len(found.planned)} done", flush=True)
        show.done = done  # type: ignore[attr-defined]


def search(network: str, jobs: int) -> None:
    """Every agent at every budget."""
    preset, seeds = f"cifar10_{network}_channel_macs50", f"seed={listed(SEEDS[network])}"
    run = partial(sweep, preset, out=RUNS, jobs=jobs, show=show)
    budgets = f"budget.ratio={listed(BUDGETS)}"
    run([budgets, *HANDCRAFTED, *FAST, "seed=0"])
    run([seeds, *RANGE, *FAST])
    run([seeds, budgets, *LEARNED, *FAST])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["search"])
    parser.add_argument("--network", choices=list(SEEDS), default="resnet20")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    chosen = parser.parse_args()
    search(chosen.network, chosen.jobs)


if __name__ == "__main__":
    main()
