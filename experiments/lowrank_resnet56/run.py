"""Half the MACs by ranks, by channels, and by both: ResNet-56 and VGG-16-BN on CIFAR-10.

    AMC_DATA_DIR=... AMC_WEIGHTS_DIR=... python experiments/lowrank_resnet56/run.py NETWORK [METHOD]

NETWORK is resnet56 or vgg16 (train_vgg16.py makes its weights). Searches, measures before and after
a short fine-tuning, and writes results.csv and accuracy.png beside this file. Everything is kept in
runs/lowrank: a stopped run goes on. With `latency` instead, milliseconds of some of the results.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pandas as pd
from amc.agents.vbmf import VBMFAgent
from amc.envs import ENV_ID
from matplotlib.figure import Figure
from rich.console import Console
from torch import nn

from amc.config import Config, load_config
from amc.device.reach import structure_of
from amc.device.runtimes import make_runtime, timed_in_turn
from amc.evaluate.measure import ImageSet, logits, score
from amc.evaluate.prepare import prepared
from amc.network.layers import example_input
from amc.problem import Problem
from amc.progress import ConsoleReport
from amc.search import resume, search
from amc.spaces.base import Strategy
from amc.spaces.bounding import Bounds
from amc.training.settings import TrainConfig
from amc.training.trainer import train

HERE = Path(__file__).parent
RUNS = Path("runs/lowrank")
COLUMNS = [
    "network",
    "method",
    "seed",
    "macs_ratio",
    "params_ratio",
    "search_accuracy",
    "test_accuracy",
    "finetuned_test_accuracy",
]
SEED = 0
FINETUNE = TrainConfig(epochs=1, lr=0.003)
FINETUNE_IMAGES = 8_000  # 63 updates
QUICK = ["evaluate.racing=0.9", "evaluate.images=2000", "evaluate.calibration_images=500"]
AS_THEN = [  # the presets have another agent now (experiments/agents), and fill the budget
    "budget.fill=false",
    "agent={name: ddpg, warmup_episodes: 100, warmup_spread: null, centred: false, sigma: 0.5, "
    "sigma_decay: 0.99, actor_lr: 1e-4, imitate: 0}",
    "space.min_ratio=0.2",
]
NETWORKS: dict[str, list[str]] = {
    "resnet56": [
        "weights=cifar10_resnet56_45k.safetensors",
        *QUICK,
        "agent.episodes=200",
        "agent.warmup_episodes=60",
        "agent.sigma_decay=0.98",
    ],
    "vgg16": [
        *QUICK,
        "model=cifar:vgg16_bn",
        f"weights={RUNS.absolute() / 'vgg16_bn.safetensors'}",
        "agent.episodes=80",
        "agent.warmup_episodes=30",
        "agent.sigma_decay=0.95",
        "agent.warmup_spread=0.15",
    ],
}
SPACES = {"channels": "channel", "ranks": "lowrank", "mixed": "mixed"}
METHODS = [
    "untouched",
    "uniform channels",
    "uniform ranks",
    "VBMF ranks, their own MACs",
    "VBMF ranks",
    "agent ranks",
    "agent channels",
    "uniform mixed",
    "agent mixed",
]


def config_of(network: str, method: str) -> Config:
    preset = f"cifar10_resnet56_{space_of(method)}_macs50"
    mixed = ["agent.warmup_spread=0.15"] if space_of(method) == "mixed" else []
    overrides = [*AS_THEN, *mixed, *NETWORKS[network], f"seed={SEED}"]
    return load_config(preset, overrides)[1]


def searched(network: str, method: str, report: ConsoleReport) -> Strategy:
    """The best strategy of the agent's own episodes, of those that racing did not stop if any."""
    name = f"{network}_{method.removeprefix('agent ')}"
    runs = sorted((RUNS / name).glob("s*"))
    if runs:
        run = resume(runs[-1], report=report).run
    else:
        run = search(config_of(network, method), out=RUNS, name=name, report=report).run
    own = run.lines()[1:]  # the first is the uniform strategy
    whole = [line for line in own if line["stopped_after"] is None]
    best: Strategy = max(whole or own, key=lambda line: line["reward"])["strategy"]
    return best


def chosen(problem: Problem, network: str, method: str, report: ConsoleReport) -> Strategy:
    """The strategy that a method comes to."""
    if method == "untouched":
        return {}
    if method.startswith("uniform"):
        return Bounds.of(problem.space, problem.budget).uniform()
    if method.startswith("agent"):
        return searched(network, method, report)
    env = gymnasium.make(ENV_ID, space=problem.space, budget=problem.budget, evaluate=print)
    proposals = VBMFAgent(env, len(problem.space.decisions)).proposals()
    ratios = proposals["vbmf_scaled" if method == "VBMF ranks" else "vbmf"]
    decisions = problem.space.decisions
    return {d.name: problem.space.decode(d, r) for d, r in zip(decisions, ratios, strict=True)}


def space_of(method: str) -> str:
    """The action space of a method; the channel space for the untouched network."""
    return next((space for word, space in SPACES.items() if word in method), "channel")


def accuracies(problem: Problem, model: nn.Module) -> tuple[float, float]:
    """On all held-out images, and on the test images."""
    data, fast = problem.dataset, prepared(model, problem.network)
    sets = (
        ImageSet.of(data, data.train, problem.splits.heldout),
        ImageSet.of(data, data.test, np.arange(len(data.test.labels))),
    )
    found = [score(logits(fast, images, 100), images.labels).accuracy for images in sets]
    return found[0], found[1]


def row(network: str, method: str, report: ConsoleReport) -> dict[str, Any]:
    """One measurement; taken from the file where it was measured before."""
    kept = RUNS / "rows" / f"{network}_{method.replace(' ', '_').replace(',', '')}_s{SEED}.json"
    if kept.is_file():
        return dict(json.loads(kept.read_text()))
    config = config_of(network, method)
    whole = config.evaluate.model_copy(update={"images": 5000})
    problem = Problem.build(config.model_copy(update={"evaluate": whole}), report=report)
    strategy = chosen(problem, network, method, report)
    model = problem.space.apply(strategy)
    cost = problem.space.cost(strategy).ratios(problem.space.cost({}))
    values = [network, method, SEED, cost["macs"], cost["params"], *accuracies(problem, model)]
    if method != "untouched":
        start = time.time()
        images = problem.splits.train[:: len(problem.splits.train) // FINETUNE_IMAGES]
        train(model, problem.dataset, images[:FINETUNE_IMAGES], FINETUNE, SEED, report)
        print(f"fine-tuned in {time.time() - start:.0f} s")
        values.append(accuracies(problem, model)[1])
    values = [value if isinstance(value, str | int) else round(value, 4) for value in values]
    result = dict(zip(COLUMNS, values, strict=False))  # the untouched network has no last one
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(result))
    return result


def plot(table: pd.DataFrame) -> None:
    """Test accuracy of each method, before and after the fine-tuning."""
    names = list(dict.fromkeys(table["network"]))
    figure = Figure(figsize=(5.5 * len(names), 4), layout="constrained")
    for axes, network in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        rows = table[table["network"] == network]
        base = 100 * rows.loc[rows["method"] == "untouched", "test_accuracy"]
        rows = rows[rows["method"] != "untouched"][::-1]
        places = np.arange(len(rows))
        for shift, column, color in (
            (0.2, "test_accuracy", "#9aa5b1"),
            (-0.2, "finetuned_test_accuracy", "#2b6cb0"),
        ):
            label = "fine-tuned" if column.startswith("fine") else "not fine-tuned"
            bars = axes.barh(places + shift, 100 * rows[column], 0.38, color=color, label=label)
            axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=-24, color="white")
        axes.axvline(base.item(), color="#38a169", linestyle=":", label="before compression")
        axes.set_yticks(places, rows["method"], fontsize=8)
        axes.set(xlim=(0, 100), xlabel="test accuracy (%)", title=network)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(HERE / "accuracy.png", dpi=130)


def latencies(report: ConsoleReport) -> None:
    """Milliseconds of some of the networks, measured in turn; alone on the machine."""
    rows = []
    for network in NETWORKS:
        models = {}
        for method in ("untouched", "agent channels", "agent ranks", "uniform mixed"):
            problem = Problem.build(config_of(network, method))
            strategy = chosen(problem, network, method, report)
            models[method] = structure_of(problem.space, strategy)
        example = example_input(problem.network.model, problem.network.input_shape)
        for method, times in timed_in_turn(make_runtime(), models, example).items():
            rows.append({"network": network, "method": method, **times})
    table = pd.DataFrame(rows).round(3)
    table.to_csv(HERE / "latency.csv", index=False)
    print(table.to_string(index=False))


def main() -> None:
    report = ConsoleReport(Console())
    network, *methods = sys.argv[1:]
    if network == "latency":
        latencies(report)
        return
    for method in methods or METHODS:
        print(row(network, method, report), flush=True)
    rows = [json.loads(path.read_text()) for path in (RUNS / "rows").glob("*.json")]
    rows.sort(key=lambda r: (list(NETWORKS).index(r["network"]), METHODS.index(r["method"])))
    table = pd.DataFrame(rows, columns=COLUMNS)
    table.to_csv(HERE / "results.csv", index=False)
    plot(table)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
