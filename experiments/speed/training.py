"""Seconds an epoch of training takes: ResNet-20 and ResNet-56, alone and under a teacher.

    python experiments/speed/training.py                            # on a GPU: whole epochs
    python experiments/speed/training.py --compute cpu --updates 10 # of each; an epoch is reckoned
    python experiments/speed/training.py --before DIR               # an older checkout beside this

Images are random: time does not depend on what they show. The last form is for the processor:
both versions train in turn, in processes of their own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch

from amc.compute import Compute
from amc.data.datasets import Dataset
from amc.deliver.finetune import teacher_of
from amc.network.models import build_model
from amc.network.trace import Network
from amc.training.distill import Distillation, Objective
from amc.training.keeper import InFolder
from amc.training.lesson import Lesson
from amc.training.processes import joined
from amc.training.settings import DistillConfig, FinetuneConfig
from amc.training.trainer import Trainer

NETWORKS = ("resnet20", "resnet56")
BATCH, HELDOUT = 128, 5000
WARM = 20  # updates that are not timed; on a processor 2
ROUNDS = 5  # of both versions


@dataclass(frozen=True)
class EpochTime:
    """A line of the table."""

    network: str
    teacher: bool
    compute: str
    precision: str
    graph: bool  # whether an update was launched as a graph
    seconds_epoch: float
    images: int


class _Timed(Exception):
    """Enough updates were timed."""


def epoch_seconds(
    network: str, teacher: bool, compute: Compute, images: int = 45_000, updates: int | None = None
) -> EpochTime:
    """Time updates, and reckon an epoch.

    Args:
        network: ``resnet20`` or ``resnet56``.
        teacher: whether a network of the same size teaches by its outputs.
        compute: where.
        images: in an epoch.
        updates: that are timed; none: an epoch's, with what is done at its end (held-out accuracy,
            weights and checkpoint).
    """
    each = images // BATCH
    updates = updates or each
    warm = WARM if compute.is_accelerator else 2
    times: list[float] = []

    def report(_what: str, done: int, _total: int) -> None:
        if done in (warm, warm + updates):
            compute.wait()
            times.append(time.perf_counter())
        if done == warm + updates:
            raise _Timed

    settings = FinetuneConfig(
        epochs=-(-(warm + updates) // each),
        batch_size=BATCH,
        distill=DistillConfig(soft=0.5 if teacher else 0.0),
    )
    with TemporaryDirectory() as folder, joined(compute) as processes:
        keeper, lesson = InFolder(Path(folder)), _lesson(network, settings, compute, images)
        trainer = Trainer(lesson, settings, processes, keeper, network, report)
        with suppress(_Timed):
            trainer.run()
    seconds = (times[1] - times[0]) * each / updates
    precision = "bf16" if trainer.update.bf16 else "fp32"
    return EpochTime(
        network, teacher, compute.name, precision, trainer.graphed, round(seconds, 3), images
    )


def _lesson(network: str, settings: FinetuneConfig, compute: Compute, images: int) -> Lesson:
    torch.manual_seed(0)
    student, wise = (build_model(f"cifar:{network}", 10, 3, False) for _ in range(2))
    generator = np.random.default_rng(0)
    count = images + HELDOUT
    pixels = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    labels = generator.integers(0, 10, count)
    dataset = Dataset.from_arrays("random", pixels, labels, pixels[:100], labels[:100])
    objective = Objective(student)
    traced = Network.of(wise, dataset.input_shape, network)
    if (teacher := teacher_of(traced, settings, compute)) is not None:
        objective = Distillation(student, teacher, dataset.input_shape, settings.distill)
    return Lesson(objective, dataset, np.arange(images), np.arange(images, count))


TRAIN = """
import sys, time
import numpy as np, torch
from amc.data.datasets import Dataset
from amc.network.models import build_model
from amc.training.settings import TrainConfig
from amc.training.trainer import train

torch.set_num_threads(int(sys.argv[3]))
updates = int(sys.argv[2])
pixels = np.random.default_rng(0).integers(0, 256, (128 * updates, 32, 32, 3)).astype(np.uint8)
labels = np.arange(len(pixels)) % 10
data = Dataset.from_arrays("random", pixels, labels, pixels[:100], labels[:100])
model = build_model("cifar:" + sys.argv[1], 10, 3, False)
for part in (256, len(pixels)):
    start = time.process_time()  # others may work beside
    train(model, data, np.arange(part), TrainConfig(epochs=1))
print(time.process_time() - start)
"""


def in_turn(before: Path, network: str, updates: int) -> Iterator[tuple[float, float]]:
    """Processor seconds of the same training with an older checkout and with this one."""
    here = Path(__file__).parents[2]
    for _ in range(ROUNDS):
        found = []
        for root in (before, here):
            environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONSAFEPATH": "1"}
            arguments = [network, str(updates), str(torch.get_num_threads())]
            command = [sys.executable, "-c", TRAIN, *arguments]
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=True, cwd=root
            )
            found.append(float(done.stdout))
        yield found[0], found[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compute", default="auto")
    parser.add_argument("--images", type=int, default=45_000)
    parser.add_argument("--updates", type=int)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--before", type=Path)
    chosen = parser.parse_args()
    if chosen.before is not None:
        for network in chosen.networks:
            pairs = list(in_turn(chosen.before, network, chosen.updates or 20))
            ratio = statistics.median(new / old for old, new in pairs)
            print(network, [f"{old:.2f} -> {new:.2f} s" for old, new in pairs], f"{ratio:.3f}")
        return
    compute = Compute.of(chosen.compute)
    rows = [
        epoch_seconds(network, teacher, compute, chosen.images, chosen.updates)
        for network in chosen.networks
        for teacher in (False, True)
    ]
    print(pd.DataFrame(map(asdict, rows)).to_string(index=False))


if __name__ == "__main__":
    main()
