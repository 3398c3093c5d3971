"""A model of the reward, for what would take days of real searches: of ResNet-20 at 30% of the
MACs, a Gaussian process over the logarithms of the keep ratios, fitted to every strategy that the
searches of run.py have measured.

    python experiments/agents2/model.py    model.csv: variants of the agents on it; goes on where it
                                           stopped (remove the file where there are new searches)
"""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pandas as pd
import torch
from amc.envs import ENV_ID
from numpy.typing import NDArray
from run import RUNS, Job
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.model_selection import KFold

from amc.cost.budget import Budget
from amc.plugins import allow
from amc.registry import lookup
from amc.search import open_problem

HERE = Path(__file__).parent
EPISODES, SEEDS = 300, 5
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("random", {}),
    "sensitivity": ("sensitivity", {}),
    "sensitivity around uniform": ("sensitivity", {"around": "uniform"}),
    "genetic": ("genetic", {"screened": 1}),
    "genetic from sensitivity": ("genetic", {"screened": 1, "start": "sensitivity"}),
    "tpe": ("tpe", {}),
    "tpe from sensitivity": ("tpe", {"start": "sensitivity"}),
    "td3, executed": ("td3", {}),
    "td3, wanted": ("wanted:WantedAgent", {}),
    "td3 from sensitivity, executed": ("td3", {"start": "sensitivity"}),
    "td3 from sensitivity, wanted": ("wanted:WantedAgent", {"start": "sensitivity"}),
    "td3 from sensitivity, 10 warm-up": ("td3", {"start": "sensitivity", "warmup_episodes": 10}),
    "td3 from sensitivity, their features": (
        "td3",
        {"start": "sensitivity", "sensitivities": True},
    ),
    "td3 from sensitivity, less noise": (
        "td3",
        {"start": "sensitivity", "sigma": 0.1, "warmup_spread": 0.08},
    ),
}

Array = NDArray[np.float64]


def known() -> tuple[Array, Array]:
    """Logarithms of keep ratios (n, decisions), and the logarithm of the KL."""
    found = {}
    for path in RUNS.glob("resnet20_30_*/**/episodes.jsonl"):
        for text in path.read_text().splitlines():
            line = json.loads(text)
            if line["failed"] is None:  # of those that racing stopped: its estimate
                found[tuple(line["ratios"])] = line["kl"]
    return np.log(np.array(list(found))), np.log(np.array(list(found.values())) + 1e-3)


@cache
def model() -> GaussianProcessRegressor:
    x, y = known()
    lengths = np.full(x.shape[1], 2.0)
    kernel = ConstantKernel(1.0) * Matern(lengths, nu=1.5) + WhiteKernel(0.05)
    made = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
    return made.fit(x, y)


def quality() -> tuple[int, float]:
    """How many strategies it knows, and R2 of the better ones in a five-fold validation."""
    x, y = known()
    guesses = np.zeros_like(y)
    for train, test in KFold(5, shuffle=True, random_state=0).split(x):
        fitted = GaussianProcessRegressor(model().kernel_, optimizer=None, normalize_y=True)
        guesses[test] = fitted.fit(x[train], y[train]).predict(x[test])
    good = (y > 0.0) & (y < np.quantile(y, 0.3))  # the better ones within the budget
    return len(y), 1 - np.var((guesses - y)[good]) / np.var(y[good])


def one(variant: str, seed: int) -> dict[str, Any]:
    """A search of the model."""
    torch.set_num_threads(1)
    allow([name for name, _ in VARIANTS.values()])
    path = Job("resnet20", "30", "uniform", 0).path
    assert path is not None
    space = open_problem(path)[1].space
    name, options = VARIANTS[variant]
    rewards: list[float] = []

    class Outcome:
        def __init__(self, strategy: dict[str, int], budget: Budget) -> None:
            ratios = np.log(np.array(space.ratios(strategy)))[None]
            self.reward = 1e-3 - float(np.exp(model().predict(ratios)[0]))
            within = budget.allows(space.cost(strategy))
            rewards.append(self.reward if within else -np.inf)

    budget = Budget.of("macs", space.cost({}), 0.3, fill=True)
    env = gymnasium.make(ENV_ID, space=space, budget=budget, evaluate=Outcome)
    found = lookup("agent", name)
    found(env, len(space.decisions), found.Options(episodes=EPISODES, **options), seed).run()
    best = np.maximum.accumulate(rewards)
    after = {f"kl_{count}": -best[min(count, len(best)) - 1] for count in (40, 60, 100, 200, 300)}
    return {"variant": variant, "seed": seed, "evaluations": len(best), **after}


def main() -> None:
    count, r2 = quality()
    print(f"{count} strategies, R2 {r2:.3f}", flush=True)
    path = HERE / "model.csv"
    rows = pd.read_csv(path).to_dict("records") if path.is_file() else []
    there = {(row["variant"], row["seed"]) for row in rows}
    tasks = [(v, seed) for v in VARIANTS for seed in range(SEEDS) if (v, seed) not in there]
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        for row in pool.map(one, *zip(*tasks, strict=True)):
            rows.append(row)
            pd.DataFrame(rows).round(4).to_csv(path, index=False)
            print(*row.values(), flush=True)


if __name__ == "__main__":
    main()
