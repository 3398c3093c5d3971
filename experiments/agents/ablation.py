"""What made reinforcement learning pay: each part of the default agent added to AMC's, and taken
away again, on a model of the reward, since real searches of every variant and seed would take days.

    python experiments/agents/ablation.py     ablation.csv

The model predicts the KL of a ResNet-20 strategy at 30% of the MACs from its keep ratios and the
reconstruction errors of its layers; it is fitted to every strategy that run.py's searches measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pandas as pd
import torch
from amc.agents.td3 import TD3Agent
from amc.envs import ENV_ID
from measure import done, own_lines, problem_of
from run import ONCE, Job
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold, cross_val_predict

from amc.config import load_config
from amc.cost.budget import Budget
from amc.problem import Problem
from amc.registry import lookup

HERE = Path(__file__).parent
EPISODES, SEEDS = 300, 5
PENALTY = 1e-2  # of the ridge regression


class MoreUpdates(TD3Agent):
    """Four updates for each transition."""

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        super().train(4 * gradient_steps, batch_size)


class Ensemble(TD3Agent):
    """The smallest of five critics counts."""

    def _setup_model(self) -> None:
        self.policy_kwargs["n_critics"] = 5
        super()._setup_model()


class LateImitation(TD3Agent):
    """Imitates in the second half of the search only."""

    def _imitate(self, gradient_steps: int, batch_size: int) -> None:
        if 2 * self.episodes_done > self.options.episodes:
            super()._imitate(gradient_steps, batch_size)


@dataclass(frozen=True)
class Variant:
    """An agent with options; ``fill``: its strategies use the whole budget."""

    label: str
    agent: str = "td3"
    options: Mapping[str, Any] = field(default_factory=dict)
    fill: bool = True

    def less(self, label: str, **options: Any) -> Variant:
        return replace(self, label=label, options={**self.options, **options})


def variants() -> list[Variant]:
    """AMC's agent with one part after another, up to the default; the default without each of them;
    what was tried besides.
    """
    published = load_config("amc_paper")[1].agent
    noise = {key: published[key] for key in ("sigma", "sigma_decay")}
    warmup = {key: published[key] for key in ("warmup_episodes", "warmup_spread", "start")}
    rest = {key: published[key] for key in ("imitate", "actor_lr")}
    paper = Variant("ddpg as in the paper", "ddpg", {**noise, **warmup, **rest}, False)
    default = Variant("+ td3 instead of ddpg: the default")
    return [
        Variant("uniform", "uniform", fill=False),
        Variant("random, bounded one by one", "random", fill=False),
        Variant("random", "random"),
        paper,
        replace(paper, label="+ whole budget", fill=True),
        Variant("+ less noise, slower decay", "ddpg", {**warmup, **rest}),
        Variant("+ begun at uniform", "ddpg", rest),
        Variant("+ faster actor", "ddpg", {"imitate": 0}),
        Variant("+ imitation", "ddpg"),
        default,
        replace(default, label="- whole budget", fill=False),
        default.less("- less noise, slower decay", **noise),
        default.less("- begun at uniform", **warmup),
        default.less("- faster actor", actor_lr=1e-4),
        default.less("- imitation", imitate=0),
        default.less("Monte-Carlo targets", gamma=1e-9),
        replace(default, label="imitation in the second half only", agent="ablation:LateImitation"),
        replace(default, label="four updates a transition", agent="ablation:MoreUpdates"),
        replace(default, label="five critics", agent="ablation:Ensemble"),
        Variant("sac", "sac"),
        Variant("genetic", "genetic"),
        Variant("tpe", "tpe"),
    ]


@dataclass(frozen=True)
class Model:
    """Predicts the KL of a strategy of one problem."""

    problem: Problem
    errors: tuple[tuple[float, ...], ...]
    regression: Ridge

    def kl(self, strategy: Mapping[str, int]) -> float:
        row = features(self.problem, self.errors, strategy)
        return float(np.exp(self.regression.predict(row[None])[0]))


def features(
    problem: Problem, errors: tuple[tuple[float, ...], ...], strategy: Mapping[str, int]
) -> np.ndarray:
    """Keep ratios and layers' errors, with roots, logarithms, and products of two errors."""
    space = problem.space
    ratios = np.array(space.ratios(strategy))
    error = np.array(
        [
            table[d.choices.index(strategy[d.name])]
            for d, table in zip(space.decisions, errors, strict=True)
        ]
    )
    products = [first * second for first, second in combinations(error, 2)]
    return np.hstack([error, np.sqrt(error), ratios, np.log(ratios), products])


@cache
def fitted() -> Model:
    """The model, and on the way what it is worth on strategies that it was not fitted to."""
    torch.set_num_threads(1)
    problem = problem_of(Job("resnet20", 0.3, "uniform", 0))
    tables = [problem.space.layer_errors(decision) for decision in problem.space.decisions]
    errors = tuple(table for table in tables if table is not None)
    found: dict[tuple[int, ...], dict[str, Any]] = {}
    for job in done("resnet20"):
        if job.budget == 0.3 and job.agent not in ONCE:
            found |= {tuple(line["strategy"].values()): line for line in own_lines(job)}
    rows = np.array([features(problem, errors, line["strategy"]) for line in found.values()])
    target = np.log([line["kl"] for line in found.values()])
    predicted = cross_val_predict(
        Ridge(PENALTY), rows, target, cv=KFold(10, shuffle=True, random_state=0)
    )
    good = target < np.log(0.75)
    for label, part in (("all", slice(None)), ("KL below 0.75", good)):
        r2 = np.corrcoef(predicted[part], target[part])[0, 1] ** 2
        print(f"model, {label}: {len(target[part])} strategies, R2 {r2:.3f} in 10-fold validation")
    return Model(problem, errors, Ridge(PENALTY).fit(rows, target))


@dataclass(frozen=True)
class Predicted:
    """What the environment wants to know of a strategy."""

    reward: float


def kls(variant: Variant, seed: int) -> np.ndarray:
    """The predicted KL of every episode, the uniform strategy first."""
    model = fitted()
    seen: list[float] = []

    def evaluate(strategy: Mapping[str, int], budget: Budget) -> Predicted:
        seen.append(model.kl(strategy))
        return Predicted(-seen[-1])

    budget = replace(model.problem.budget, fill=variant.fill)
    space = model.problem.space
    env = gymnasium.make(ENV_ID, space=space, budget=budget, evaluate=evaluate)
    agent = lookup("agent", variant.agent)
    episodes = {} if variant.agent in ONCE else {"episodes": EPISODES}
    options = agent.Options(**variant.options, **episodes)
    evaluate(env.get_wrapper_attr("bounds").uniform(), budget)  # a search begins with it
    agent(env, len(space.decisions), options, seed).run()
    return np.array(seen)


def row(variant: Variant) -> dict[str, Any]:
    curves = [np.minimum.accumulate(kls(variant, seed)) for seed in range(SEEDS)]
    after = {n: [curve[min(n, len(curve)) - 1] for curve in curves] for n in (50, 100, 200, 300)}
    return {
        "variant": variant.label,
        "seeds": SEEDS,
        **{f"best_kl_{n}": float(np.mean(values)) for n, values in after.items()},
        "deviation_300": float(np.std(after[300], ddof=1)),
    }


def main() -> None:
    rows = []
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        for found in pool.map(row, variants()):
            rows.append(found)
            print(found, flush=True)
    pd.DataFrame(rows).to_csv(HERE / "ablation.csv", index=False, float_format="%.4f")


if __name__ == "__main__":
    main()
