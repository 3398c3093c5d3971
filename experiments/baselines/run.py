"""Base networks for CIFAR-10, trained without the held-out images: README.md beside this file.

Trains the network of a preset or a file as its section `train` says, and keeps the weights that it
names. Goes on where it stopped.

python experiments/baselines/run.py cifar10_resnet20_channel_macs50 train.epochs=200
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from amc.base import built
from amc.compute import Compute
from amc.config import load_config
from amc.data.datasets import load_dataset
from amc.data.places import data_folder, find_file
from amc.data.splits import split
from amc.evaluate.measure import ImageSet, logits
from amc.files import write_json
from amc.progress import ConsoleReport, silent
from amc.runs.provenance import surroundings
from amc.training.distill import Objective
from amc.training.history import Progress
from amc.training.keeper import BEST, InFolder
from amc.training.lesson import Lesson
from amc.training.processes import joined
from amc.training.trainer import Trainer

HERE = Path(__file__).parent
RUNS = Path("runs/baselines")
HELDOUT, PROVENANCE = "cifar10_heldout_indices.npy", "provenance.json"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", help="a preset or a YAML file")
    parser.add_argument("overrides", nargs="*", help="train.epochs=200, say")
    chosen = parser.parse_args()
    config = load_config(chosen.config, chosen.overrides, trust=True)[1]
    if config.train is None or config.weights is None:
        raise SystemExit(f"{chosen.config} must say weights and train (train.epochs=200, say)")
    base = config.weights.removesuffix(".safetensors")
    name = f"{base}_{config.train.epochs}_s{config.seed}"
    folder = RUNS / name
    data = load_dataset("cifar10", data_folder(None))
    splits = split(data, None, None, heldout=find_file(HELDOUT, None))
    model = built(config, data.classes, data.input_shape[0])
    with joined(Compute.of()) as processes:
        if processes.first and not (folder / PROVENANCE).is_file():
            write_json(folder / PROVENANCE, {"processes": processes.size, **surroundings()})

        def log(progress: Progress) -> None:
            if processes.first:
                pd.DataFrame(progress.epochs).to_csv(folder / "log.csv", index=False)

        objective = Objective(model, config.train.label_smoothing)
        lesson = Lesson(objective, data, splits.train, splits.heldout, config.seed)
        report = ConsoleReport(Console(stderr=True)) if processes.first else silent
        trainer = Trainer(lesson, config.train, processes, InFolder(folder), name, report)
        progress = trainer.run(log)
    if not processes.first:
        return
    test = ImageSet.of(data, data.test, np.arange(len(data.test.labels)))
    correct = (logits(model, test, 500).argmax(1) == test.labels).float().mean()
    figures = {
        "heldout_accuracy": progress.best["heldout_accuracy"],
        "test_accuracy": float(correct),
        "best_epoch": progress.best["epoch"],
        "seconds": round(sum(row["seconds"] for row in progress.epochs)),
        "settings": config.train.model_dump(),
        **json.loads((folder / PROVENANCE).read_text()),
    }
    write_json(HERE / f"{base}.json", figures)
    shutil.copy(folder / "log.csv", HERE / f"{base}.csv")
    shutil.copy(folder / BEST, HERE / "weights" / f"{base}.safetensors")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
