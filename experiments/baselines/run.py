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

from amc.evaluate.data import data_folder, load_dataset
from amc.evaluate.inference import ImageSet, logits
from amc.files import write_json
from amc.network.models import build_model
from amc.progress import ConsoleReport
from amc.provenance import surroundings
from amc.training.distill import Objective
from amc.training.keeper import BEST, InFolder
from amc.training.processes import joined
from amc.training.settings import TrainConfig
from amc.training.trainer import Lesson, Progress, Trainer

HERE = Path(__file__).parent
RUNS = Path("runs/baselines")


def main() -> None:
    import torch
    from rich.console import Console

    parser = argparse.ArgumentParser()
    parser.add_argument("network", choices=["resnet20", "resnet56"])
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    config = TrainConfig(epochs=chosen.epochs, lr=0.1, weight_decay=5e-4, augment="shift")
    name = f"{chosen.network}_{chosen.epochs}_s{chosen.seed}"
    folder = RUNS / name
    data = load_dataset("cifar10", data_folder(None))
    heldout = np.load(data_folder(None) / "cifar10_heldout_indices.npy")
    rest = np.setdiff1d(np.arange(len(data.train.labels)), heldout)
    torch.manual_seed(chosen.seed)
    model = build_model(f"cifar:{chosen.network}", 10, 3)

    def log(progress: Progress) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(progress.epochs).to_csv(folder / "log.csv", index=False)

    with joined() as processes:
        lesson = Lesson(Objective(model), data, rest, heldout, chosen.seed)
        report = ConsoleReport(Console(stderr=True))
        keeper = InFolder(folder)
        progress = Trainer(lesson, config, processes, keeper, name, report).run(log)
    test = ImageSet.of(data, data.test, np.arange(len(data.test.labels)))
    correct = (logits(model, test, 500, False).argmax(1) == test.labels).float().mean()
    figures = {
        "heldout_accuracy": progress.best["heldout_accuracy"],
        "test_accuracy": float(correct),
        "best_epoch": progress.best["epoch"],
        "settings": config.model_dump(),
        **surroundings(),
    }
    write_json(HERE / f"cifar10_{chosen.network}_45k.json", figures)
    shutil.copy(folder / BEST, HERE / f"cifar10_{chosen.network}_45k.safetensors")
    shutil.copy(folder / "log.csv", HERE / f"cifar10_{chosen.network}_45k.csv")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
