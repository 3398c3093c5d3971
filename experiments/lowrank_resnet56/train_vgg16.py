"""Train the base VGG-16-BN of this experiment, without the held-out images.

AMC_DATA_DIR=... python experiments/lowrank_resnet56/train_vgg16.py FILE.safetensors [EPOCHS]
"""

from __future__ import annotations

import sys
import time

import torch
from rich.console import Console
from safetensors.torch import save_file

from amc.data.datasets import load_dataset
from amc.data.places import data_folder, find_file
from amc.data.splits import split
from amc.network.models import build_model
from amc.progress import ConsoleReport
from amc.training.settings import TrainConfig
from amc.training.trainer import train


def main() -> None:
    start = time.time()
    path, epochs = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 6
    folder = data_folder(None)
    dataset = load_dataset("cifar10", folder, 32)
    splits = split(dataset, 5000, 1000, 0, find_file("cifar10_heldout_indices.npy", folder))
    torch.manual_seed(0)
    model = build_model("cifar:vgg16_bn", dataset.classes, dataset.input_shape[0])
    config = TrainConfig(epochs=epochs)
    train(model, dataset, splits.train, config, report=ConsoleReport(Console()))
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    print(f"{epochs} epochs in {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
