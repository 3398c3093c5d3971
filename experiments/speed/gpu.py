"""What a GPU takes for what two cores take: the same strategies in turn on both, repair and
measuring apart, an epoch of training, and the share of what the GPU could do at most.

    python experiments/speed/gpu.py                 # on a GPU: gpu.csv, limits, and what failed
    python experiments/speed/gpu.py --compute cpu --part resnet56 --images 200 --to FILE.csv

Ends with status 1 where both computes disagree by more than `POINTS`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from generated import generated, images
from training import epoch_seconds

from amc.base import built, weights_file
from amc.compute import HOST, Compute
from amc.config import parse_config
from amc.data.datasets import IMAGENET_MEAN, IMAGENET_STD, Dataset
from amc.data.places import data_folder
from amc.errors import UserError
from amc.evaluate.evaluator import Evaluator
from amc.evaluate.outcome import Candidate, Outcome
from amc.evaluate.pace import Pace
from amc.network.layers import evaluating
from amc.network.models import load_weights
from amc.parallel.packing import packed, unpacked
from amc.problem import Problem
from amc.spaces.base import Strategy
from amc.spaces.bounding import Bounds

HERE = Path(__file__).parent
WEIGHTS = "cifar10_resnet56_45k.safetensors"
POINTS = 0.1  # of accuracy: so much may computes differ
MATRIX, COPY = 8192, 2**31  # rows and columns, bytes: of what tells a GPU's limits
THREADS = 2  # of the processor, beside the GPU
FIGURES = {"resnet56": 0.5, "resnet50": 5.0}  # seconds an episode that are to be reached
FASTER = 15  # times the processor
EPOCHS = {"resnet56": 3.0}  # seconds an epoch of training that are to be reached
TEACHER = 1.5  # times an epoch, with a teacher


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    images: int
    calibration: int
    strategies: int  # on the GPU
    beside: int  # of them on the processor, too


SIZES = {"resnet56": Sizes(5000, 1000, 4, 2), "resnet50": Sizes(2000, 200, 3, 1)}


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    part: str
    network: str
    compute: str
    hardware: str
    precision: str
    batch_size: int
    images: int
    seconds: float  # an episode, or an epoch; the median
    apply: float = 0.0
    repair: float = 0.0
    evaluate: float = 0.0
    accuracy: float = 0.0  # of the last strategy that ran on both
    times_faster: float = 0.0  # than the processor
    share: float = 0.0  # of the rate of matrix products, while measuring
    note: str = ""


def problem_of(network: str, compute: str, sizes: Sizes) -> Problem:
    """ResNet-56 as it comes with the package, on CIFAR-10, where that is there, else on random
    images, which are of the class that it says; ResNet-50 with random weights.
    """
    values = {
        "compute": compute,
        "budget": {"ratio": 0.5},
        "evaluate": {"images": sizes.images, "calibration_images": sizes.calibration},
        "allow_untrained": True,
    }
    if network == "resnet50":
        every = sizes.images, max(64, sizes.calibration)
        return Problem.build(
            parse_config(values), *generated("torchvision:resnet50", *every, branches=0.2)
        )
    values |= {"model": "cifar:resnet56", "weights": WEIGHTS}
    if (data_folder(None) / "cifar10.npz").is_file():
        heldout = {"heldout": "cifar10_heldout_indices.npy", "dataset": "cifar10"}
        return Problem.build(parse_config({**values, **heldout}))
    pixels, _ = images(sizes.images + sizes.calibration + 200, 32)
    config = parse_config(values)
    model = built(config, 10, 3)
    load_weights(model, weights_file(config))
    parts = torch.from_numpy(pixels).permute(0, 3, 1, 2).split(500)
    mean, std = (torch.tensor(one).view(1, 3, 1, 1) for one in (IMAGENET_MEAN, IMAGENET_STD))
    with evaluating(model):
        said = torch.cat([model((part / 255 - mean) / std).argmax(1) for part in parts]).numpy()
    arrays = pixels, said, pixels[:100], said[:100]
    dataset = Dataset.from_arrays("random", *arrays, IMAGENET_MEAN, IMAGENET_STD)
    return Problem.build(config, dataset=dataset)


def strategies(problem: Problem, count: int) -> list[Strategy]:
    """The uniform one at about half the MACs, then random ones within."""
    space, budget = problem.space, problem.budget
    draws = np.random.default_rng(0)
    found: list[Strategy] = [Bounds.of(space, budget).uniform()]
    while len(found) < count:
        ratios = {d.name: space.decode(d, draws.uniform(0.2, 1.0)) for d in space.decisions}
        if budget.allows(space.cost(ratios)):
            found.append(ratios)
    return found


def timed(evaluator: Evaluator, strategy: Strategy, problem: Problem) -> tuple[float, Outcome]:
    evaluator.clock.take()
    start = time.perf_counter()
    outcome = evaluator.measure(Candidate(strategy, problem.budget)).outcome
    if outcome.failed is not None:
        raise SystemExit(f"an episode failed: {outcome.failed}\n{outcome.trace}")
    return time.perf_counter() - start, outcome


def episodes(network: str, compute: Compute, sizes: Sizes, rate: float) -> list[Row]:
    """The same strategies here and on the processor, in turn."""
    start = time.perf_counter()
    problem = problem_of(network, compute.name, sizes)
    there = problem.evaluator()
    binding = time.perf_counter() - start
    here = unpacked(packed(there), HOST)
    here.pace = Pace("fp32", problem.network.table.activations.batch_size())
    timed(there, problem.space.uniform(0.6), problem)  # libraries set themselves up
    found: dict[str, list[tuple[float, Outcome]]] = {"there": [], "here": []}
    for number, strategy in enumerate(strategies(problem, sizes.strategies)):
        found["there"].append(timed(there, strategy, problem))
        if number < sizes.beside:
            found["here"].append(timed(here, strategy, problem))
            for key, all_ in found.items():
                print(network, number, key, f"{all_[-1][0]:.3f} s", all_[-1][1].score, flush=True)
    macs = np.median([o.cost.macs for _, o in found["there"]]) * sizes.images
    evaluate = np.median([o.profile["evaluate"] for _, o in found["there"]])
    last = sizes.beside - 1
    rows = []
    for evaluator, key in ((there, "there"), (here, "here")):
        mine = found[key]
        place = evaluator.images.compute
        parts = {
            part: float(np.median([outcome.profile.get(part, 0.0) for _, outcome in mine]))
            for part in ("apply", "repair", "evaluate")
        }
        rows.append(
            Row(
                "episode",
                network,
                place.name,
                place.hardware or f"{THREADS} threads",
                evaluator.pace.precision,
                evaluator.pace.batch_size,
                sizes.images,
                float(np.median([seconds for seconds, _ in mine])),
                **parts,
                accuracy=mine[last][1].score.accuracy,
                note=f"bound in {binding:.1f} s" if key == "there" else "",
            )
        )
    faster = rows[1].seconds / rows[0].seconds
    share = 2 * float(macs / evaluate) / rate
    return [dataclasses.replace(rows[0], times_faster=faster, share=share), rows[1]]


def epochs(network: str, compute: Compute, images: int, updates: int) -> list[Row]:
    """An epoch of training, alone and with a teacher."""
    rows = []
    for teacher in (False, True):
        found = epoch_seconds(network, teacher, compute, images, updates)
        rows.append(
            Row(
                "epoch" + " with a teacher" * teacher,
                network,
                compute.name,
                compute.hardware,
                found.precision,
                128,
                images,
                found.seconds_epoch,
                note="graph" if found.graph else "",
            )
        )
    return rows


def limits(compute: Compute) -> tuple[list[Row], dict[str, float]]:
    """What this GPU can do: matrix products, copies."""
    rates, rows = {}, []
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)):
        size = MATRIX if compute.is_accelerator else MATRIX // 8
        a, b = (compute.put(torch.randn(size, size)).to(dtype) for _ in range(2))
        seconds = _best(compute, lambda a=a, b=b: a @ b)
        rates[name] = 2 * size**3 / seconds
        text = f"{rates[name] / 1e12:.1f} TFLOP/s"
        rows.append(_limit(compute, f"matrix product {name}", name, seconds, text))
    size = COPY if compute.is_accelerator else COPY // 32
    source = torch.zeros(size, dtype=torch.uint8, device=compute.device)
    target = torch.empty_like(source)
    seconds = _best(compute, lambda: target.copy_(source))
    text = f"{2 * size / seconds / 1e9:.0f} GB/s, read and written"
    return [*rows, _limit(compute, "copy", "", seconds, text)], rates


def _limit(compute: Compute, part: str, precision: str, seconds: float, note: str) -> Row:
    return Row(part, "", compute.name, compute.hardware, precision, 0, 0, seconds, note=note)


def _best(compute: Compute, work: Callable[[], object]) -> float:
    times = []
    for _ in range(8):
        compute.wait()
        start = time.perf_counter()
        work()
        compute.wait()
        times.append(time.perf_counter() - start)
    return min(times[2:])


def failures(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """What is wrong, and what is slower than it was to be."""
    wrong, slow = [], []
    for one, other in pairwise(rows):
        if one.part == other.part == "episode" and one.network == other.network:
            points = 100 * abs(one.accuracy - other.accuracy)
            if points > POINTS:
                wrong.append(f"{one.network}: accuracies differ by {points:.2f} points")
            if one.seconds > FIGURES[one.network]:
                slow.append(f"{one.network}: {one.seconds:.2f} s, to be {FIGURES[one.network]}")
            if one.times_faster < FASTER:
                slow.append(f"{one.network}: {one.times_faster:.1f} times faster, to be {FASTER}")
        if one.part == "epoch" and other.part == "epoch with a teacher":
            if one.network in EPOCHS and one.seconds > EPOCHS[one.network]:
                slow.append(f"{one.network}: an epoch in {one.seconds:.2f} s, to be {EPOCHS}")
            if other.seconds > TEACHER * one.seconds:
                times = other.seconds / one.seconds
                slow.append(f"{one.network}: {times:.2f} times with a teacher, to be {TEACHER}")
    return wrong, slow


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compute", default="cuda")
    parser.add_argument("--part", choices=["resnet56", "resnet50", "epoch"], action="append")
    parser.add_argument("--images", type=int, help="of each part, instead of `SIZES`")
    parser.add_argument("--updates", type=int, default=700, help="timed, of an epoch of training")
    parser.add_argument("--minutes", type=float, default=7, help="no part begins later")
    parser.add_argument("--to", type=Path, default=HERE / "gpu.csv")
    asked = parser.parse_args(arguments)
    try:
        compute = Compute.of(asked.compute)
    except UserError as error:
        print(f"gpu.py: {error}", file=sys.stderr)
        return 2
    torch.set_num_threads(THREADS)
    begun, parts = time.monotonic(), asked.part or ["resnet56", "epoch", "resnet50"]
    rows, rates = limits(compute)
    for part in parts:
        if time.monotonic() - begun > 60 * asked.minutes:
            print(f"{part}: not begun, for the time is over", flush=True)
            continue
        if part == "epoch":
            images = asked.images or 45_000
            for network in ("resnet56", "resnet20"):
                rows += epochs(network, compute, images, asked.updates)
        else:
            sizes = SIZES[part]
            if asked.images:
                sizes = dataclasses.replace(sizes, images=asked.images, calibration=asked.images)
            rows += episodes(part, compute, sizes, rates["bf16"])
        pd.DataFrame(map(dataclasses.asdict, rows)).round(4).to_csv(asked.to, index=False)
    print(pd.DataFrame(map(dataclasses.asdict, rows)).round(3).to_string(index=False))
    wrong, slow = failures(rows)
    for text in slow:
        print(f"not reached: {text}")
    for text in wrong:
        print(f"WRONG: {text}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
