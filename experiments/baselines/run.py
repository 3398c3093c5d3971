"""Base networks for CIFAR-10, trained without the held-out images: README.md beside this file.

python experiments/baselines/run.py resnet20 --epochs 200     goes on where it stopped
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.console import Console

from amc.compute import Compute
from amc.data.datasets import load_dataset
from amc.data.places import data_folder, find_file
from amc.data.splits import split
from amc.evaluate.measure import ImageSet, logits
from amc.files import write_json
from amc.network.models import build_model
from amc.progress import ConsoleReport, silent
from amc.runs.provenance import surroundings
from amc.training.distill import Objective
from amc.training.history import Progress
from amc.training.keeper import BEST, InFolder
from amc.training.lesson import Lesson
from amc.training.processes import joined
from amc.training.settings import TrainConfig
from amc.training.trainer import Trainer

HERE = Path(__file__).parent
RUNS = Path("runs/baselines")
HELDOUT, PROVENANCE = "cifar10_heldout_indices.npy", "provenance.json"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("network", choices=["resnet20", "resnet56"])
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    config = TrainConfig(epochs=chosen.epochs, lr=0.1, weight_decay=5e-4, augment="shift")
    name = f"{chosen.network}_{chosen.epochs}_s{chosen.seed}"
    folder = RUNS / name
    data = load_dataset("cifar10", data_folder(None))
    splits = split(data, None, None, heldout=find_file(HELDOUT, None))
    torch.manual_seed(chosen.seed)
    model = build_model(f"cifar:{chosen.network}", 10, 3)
    with joined(Compute.of()) as processes:
        if processes.first and not (folder / PROVENANCE).is_file():
            write_json(folder / PROVENANCE, {"processes": processes.size, **surroundings()})

        def log(progress: Progress) -> None:
            if processes.first:
                pd.DataFrame(progress.epochs).to_csv(folder / "log.csv", index=False)

        lesson = Lesson(Objective(model), data, splits.train, splits.heldout, chosen.seed)
        report = ConsoleReport(Console(stderr=True)) if processes.first else silent
        trainer = Trainer(lesson, config, processes, InFolder(folder), name, report)
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
        "settings": config.model_dump(),
        **json.loads((folder / PROVENANCE).read_text()),
    }
    base = f"cifar10_{chosen.network}_base"
    write_json(HERE / f"{base}.json", figures)
    shutil.copy(folder / "log.csv", HERE / f"{base}.csv")
    shutil.copy(folder / BEST, HERE / "weights" / f"{base}.safetensors")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
