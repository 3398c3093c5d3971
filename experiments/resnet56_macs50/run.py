"""The table of this experiment: uniform and searched strategies with every repair, on held-out and
test images.

    AMC_DATA_DIR=... AMC_WEIGHTS_DIR=... python experiments/resnet56_macs50/run.py RUN [RUN ...]

RUN are run directories of `amc search cifar10_resnet56_channel_macs50 [...]`. Writes results.csv
and one picture a run beside this file.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from amc.evaluate.measure import ImageSet, logits, score
from amc.evaluate.prepare import prepared
from amc.problem import Problem
from amc.progress import ConsoleReport
from amc.search import open_problem
from amc.spaces.base import Strategy
from amc.spaces.channel import ChannelSpace

HERE = Path(__file__).parent
REPAIRS = (
    "none",
    "independent",
    "sequential, own targets",
    "sequential",
    "sequential, 5000 images",
)


def space_with(problem: Problem, repair: str) -> ChannelSpace:
    """The problem's space with another repair.

    "own targets" is sequential repair that does not look at residual sums; "5000 images" has five
    times the calibration images.
    """
    options = {**problem.space.options.model_dump(), "repair": repair.split(",", maxsplit=1)[0]}
    calibration = problem.space.calibration
    if repair.endswith("images"):
        rest = np.random.default_rng(1).permutation(problem.splits.train)[:5000]
        calibration = ImageSet.of(problem.dataset, problem.dataset.train, rest).normalised
    space = ChannelSpace(problem.network, options, calibration)
    if repair.endswith("own targets"):
        space._targets.sums.clear()
    return space


def row(
    problem: Problem, method: str, repair: str, strategy: Strategy, episodes: int, seconds: float
) -> dict[str, Any]:
    space = space_with(problem, repair)
    model = space.apply(strategy)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.zeros(1, *problem.dataset.input_shape))
    macs = counter.get_total_flops() // 2
    assert macs == space.cost(strategy).macs <= problem.budget.limit, (
        "paper and metal must agree, within the budget"
    )
    fast = prepared(model, problem.network)
    data = problem.dataset
    heldout = ImageSet.of(data, data.train, problem.splits.heldout)
    test = ImageSet.of(data, data.test, np.arange(len(data.test.labels)))
    accuracies = [
        score(logits(fast, images, 250), images.labels).accuracy for images in (heldout, test)
    ]
    result = {
        "method": method,
        "repair": repair,
        "seed": problem.config.seed,
        "macs_ratio": round(macs / problem.network.table.macs, 4),
        "search_accuracy": round(accuracies[0], 4),
        "test_accuracy": round(accuracies[1], 4),
        "episodes": episodes,
        "seconds": round(seconds),
    }
    print(result, flush=True)
    return result


def rows_of(path: Path) -> list[dict[str, Any]]:
    run, problem = open_problem(path, report=ConsoleReport(Console()))
    kind = "coupled" if problem.space.options.model_dump()["coupled"] else "block-internal"
    reward = problem.config.reward
    lines = run.lines()
    uniform = lines[0]["strategy"]
    best = max((line for line in lines[1:] if line["feasible"]), key=lambda line: line["reward"])
    warmup = max(
        (line for line in lines if line["phase"] == "warmup"), key=lambda line: line["reward"]
    )
    seconds = sum(
        line["seconds"] for line in {str(line["strategy"]): line for line in lines}.values()
    )
    rows = []
    for repair in REPAIRS:
        rows.append(row(problem, f"uniform, {kind}", repair, uniform, 0, 0))
    for repair in REPAIRS:
        rows.append(
            row(
                problem,
                f"search, {kind}, reward {reward}",
                repair,
                best["strategy"],
                len(lines) - 1,
                seconds,
            )
        )
    rows.append(
        row(
            problem,
            f"best of warm-up, {kind}, reward {reward}",
            "sequential",
            warmup["strategy"],
            100,
            0,
        )
    )
    name = f"search_{kind.replace('-', '_')}_{reward}"
    shutil.copy(run.path / "search.png", HERE / f"{name}.png")
    table = pd.DataFrame(
        [
            {k: line[k] for k in ("episode", "phase", "search_accuracy", "kl", "macs", "reward")}
            for line in lines
        ]
    )
    table.to_csv(HERE / f"{name}.csv", index=False)
    return rows


def main() -> None:
    start = time.time()
    rows = [one for path in sys.argv[1:] for one in rows_of(Path(path))]
    table = pd.DataFrame(rows)
    table.to_csv(HERE / "results.csv", index=False)
    print(table.to_string(index=False))
    print(f"{time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
