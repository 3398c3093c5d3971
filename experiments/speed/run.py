"""Seconds an episode: the way of AMC's released code against ours, with the same strategies and the
same independent repair, in one process, alternating.

    AMC_DATA_DIR=... AMC_WEIGHTS_DIR=... python experiments/speed/run.py [CASE ...]

CASE is a network and a number of images, as in `CASES`; all without one. Rows of other cases stay.
Writes results.csv, limits.csv and speed.png beside this file, and prints the table.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from amc.envs.compression import CompressionEnv
from generated import random_images
from matplotlib.figure import Figure
from reference import Reference

from amc.cost.budget import Budget
from amc.data.datasets import load_dataset
from amc.data.places import data_folder, find_file
from amc.data.splits import split
from amc.evaluate.evaluator import Evaluator
from amc.evaluate.measure import ImageSet
from amc.evaluate.rewards import accuracy
from amc.network.models import build_model, load_weights
from amc.network.trace import Network
from amc.repair.rows import Sampler
from amc.spaces.base import Strategy
from amc.spaces.bounding import Bounds
from amc.spaces.channel import ChannelSpace

HERE = Path(__file__).parent
ROWS = 30_000  # a layer
RIDGE = 1e-8  # all but none, as in the reference
STRATEGIES = 3  # uniform at half the MACs, then random ones within half the MACs
CASES = {
    "resnet56-5000": ("cifar:resnet56", 5000),
    "mobilenet_v2-256": ("torchvision:mobilenet_v2", 256),
    "resnet20-1000": ("cifar:resnet20", 1000),
    "resnet20-2500": ("cifar:resnet20", 2500),
    "resnet20-5000": ("cifar:resnet20", 5000),
    "resnet20-10000": ("cifar:resnet20", 10000),
}


@dataclass
class Case:
    """A network bound to its images, and the strategies both ways are timed on."""

    space: ChannelSpace
    images: ImageSet
    calibration: torch.Tensor
    sampler: Sampler
    budget: Budget

    @classmethod
    def of(cls, name: str) -> Case:
        model_name, count = CASES[name]
        if model_name.startswith("cifar:"):
            network, images, calibration = _cifar(model_name, count)
        else:
            network, images, calibration = random_images(model_name, count)
        options = {"coupled": False, "repair": "independent", "ridge": RIDGE}
        space = ChannelSpace(network, options, calibration)
        sampler = Sampler(len(calibration), positions=-(-ROWS // len(calibration)))
        space._sampler = sampler
        return cls(space, images, calibration, sampler, Budget.of("macs", space.cost({}), 0.5))

    def strategies(self) -> list[Strategy]:
        """One to warm up with, then those that are timed."""
        found = [self.space.uniform(0.6), Bounds.of(self.space, self.budget).uniform()]

        def record(strategy: Strategy, budget: Budget) -> Any:
            found.append(dict(strategy))
            return SimpleNamespace(reward=0.0)

        env = CompressionEnv(self.space, self.budget, record)
        generator = np.random.default_rng(0)
        while len(found) <= STRATEGIES:
            env.reset()
            done = False
            while not done:
                done = env.step(generator.uniform(0, 1, 1).astype(np.float32))[2]
        return found

    def evaluator(self) -> Evaluator:
        return Evaluator(self.space, self.images, self.budget, accuracy)


def _cifar(name: str, count: int) -> tuple[Network, ImageSet, torch.Tensor]:
    """A trained network; the images are those it was not trained on while there are enough."""
    folder = data_folder(None)
    dataset = load_dataset("cifar10", folder)
    heldout = find_file("cifar10_heldout_indices.npy", folder) if count <= 5000 else None
    splits = split(dataset, count, ROWS // 10, 0, heldout)
    model = build_model(name, 10, 3, False)
    file = f"cifar10_{name.removeprefix('cifar:')}_45k.safetensors"
    load_weights(model, data_folder(None, "weights_dir") / file)
    network = Network.of(model, dataset.input_shape, name)
    images = ImageSet.of(dataset, dataset.train, splits.heldout)
    calibration = ImageSet.of(dataset, dataset.train, splits.calibration)
    return network, images, calibration.normalised


def both_ways(name: str) -> dict[str, Any]:
    """Time every strategy the reference's way, then ours, in turn."""
    case = Case.of(name)
    evaluator = case.evaluator()
    print(name, "untouched", evaluator.baseline, flush=True)
    reference = Reference(case.space.network, case.calibration, case.sampler)
    rows = []
    for strategy in case.strategies():
        start = time.perf_counter()
        model = reference.apply(case.space.cuts(strategy))
        theirs = reference.accuracy(model, case.images)
        between = time.perf_counter()
        ours = evaluator(strategy)
        end = time.perf_counter()
        rows.append((between - start, end - between, theirs, ours.score.accuracy))
        print(name, *(f"{value:.4f}" for value in rows[-1]), dict(ours.profile), flush=True)
    seconds_reference, seconds_ours = (np.median([row[i] for row in rows[1:]]) for i in (0, 1))
    accuracies = [float(np.mean([row[i] for row in rows[1:]])) for i in (2, 3)]
    return {
        "seconds_reference": round(float(seconds_reference), 3),
        "seconds_ours": round(float(seconds_ours), 3),
        "ratio": round(float(seconds_reference / seconds_ours), 2),
        "accuracy_reference": round(accuracies[0], 4),
        "accuracy_ours": round(accuracies[1], 4),
    }


def ours_only(name: str) -> dict[str, Any]:
    """The peak resident memory of a process that does nothing but our episodes."""
    case = Case.of(name)
    evaluator = case.evaluator()
    for strategy in case.strategies():
        evaluator(strategy)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_rss_mb": round(peak / 1024)}


def limits(name: str) -> dict[str, Any]:
    """What the arithmetic alone must take: the convolutions of the compressed network at the rate
    of the processor's own large matrix products.
    """
    case = Case.of(name)
    strategy = case.strategies()[1]
    evaluator = case.evaluator()
    evaluator(case.strategies()[0])
    profile = evaluator(strategy).profile
    macs = case.space.cost(strategy).macs * len(case.images.labels)
    rates = {"fp32": _rate(torch.float32), "bf16": _rate(torch.bfloat16)}
    return {
        "gmacs": round(macs / 1e9, 1),
        **{f"gemm_{kind}_gmacs_s": round(rate / 1e9, 1) for kind, rate in rates.items()},
        "bound_fp32_s": round(macs / rates["fp32"], 3),
        **{f"{part}_s": round(seconds, 3) for part, seconds in profile.items()},
        "evaluate_gmacs_s": round(macs / profile["evaluate"] / 1e9, 1),
    }


def _rate(kind: torch.dtype, size: int = 2048) -> float:
    """Multiply-accumulates a second of a square matrix product."""
    a, b = torch.randn(2, size, size).to(kind)
    times = []
    for _ in range(8):
        start = time.perf_counter()
        _ = a @ b
        times.append(time.perf_counter() - start)
    return float(size**3 / min(times))


def plot(table: pd.DataFrame) -> None:
    """Both ways side by side, and the growth with the number of images."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    shown = table[table["network"] != "resnet20"]
    growth = table[table["network"] == "resnet20"]
    places = np.arange(len(shown))
    ways = (("reference", "#9aa5b1", -0.2), ("ours", "#2b6cb0", 0.2))
    for label, color, offset in ways:
        column = f"seconds_{label}"
        bars = left.bar(places + offset, shown[column], 0.38, color=color, label=label)
        left.bar_label(bars, [f"{value:.1f} s" for value in shown[column]])
        right.plot(growth["images"], growth[column], "o-", color=color, label=label)
    names = [f"{row.network}\n{row.images} images" for row in shown.itertuples()]
    left.set_xticks(places, names)
    left.set(ylabel="seconds an episode", title="The same strategies, both ways")
    left.margins(y=0.25)
    right.set(xlabel="images", ylabel="seconds an episode", ylim=(0, None))
    right.set_title("ResNet-20: growth with the images")
    left.legend()
    right.legend()
    figure.savefig(HERE / "speed.png", dpi=130)


def main() -> None:
    parts = {"both": both_ways, "ours": ours_only, "limits": limits}
    if sys.argv[1:2] and sys.argv[1] in parts:
        print(json.dumps(parts[sys.argv[1]](sys.argv[2])), flush=True)
        return
    for name in sys.argv[1:] or CASES:
        model, count = CASES[name]
        facts = {"network": model.partition(":")[2], "images": count}
        _keep("results.csv", {**facts, **_child("both", name), **_child("ours", name)})
        _keep("limits.csv", {**facts, **_child("limits", name)})
    for file in ("results.csv", "limits.csv"):
        print(pd.read_csv(HERE / file).to_string(index=False))
    plot(pd.read_csv(HERE / "results.csv"))


def _keep(file: str, row: dict[str, Any]) -> None:
    """Put a row into a table, in the place of the one of the same case."""
    path = HERE / file
    table = pd.read_csv(path) if path.is_file() else pd.DataFrame(columns=list(row))
    same = (table["network"] == row["network"]) & (table["images"] == row["images"])
    if same.any():
        table.loc[same, list(row)] = list(row.values())
    else:
        table.loc[len(table)] = row
    table.to_csv(path, index=False)


def _child(part: str, name: str) -> dict[str, Any]:
    """Run one part in a process of its own, so that peaks of memory do not mix."""
    command = [sys.executable, __file__, part, name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    print(done.stdout, end="", flush=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    main()
