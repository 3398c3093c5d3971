"""Does repair help on images that it has not seen? Why not, where it does not, and what mends it.

    python experiments/repair/run.py        # repair.csv and a table; goes on with the next network

Networks at half of every decision's channels, repaired sequentially on few and on more calibration
images of CIFAR-10. Compared are the errors of the outputs (as a part of what varies between images)
before and after, on the calibration images, on other images and on noise; with the fixed ridge, and
with the ridge chosen on rows held back.
"""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from amc.data.datasets import load_dataset
from amc.data.places import find_file
from amc.evaluate.measure import ImageSet
from amc.network.layers import evaluating
from amc.network.models import build_model, load_weights
from amc.network.torchvision_compat import torchvision
from amc.network.trace import Network
from amc.repair import regression
from amc.spaces.channel import ChannelSpace
from amc.surgery.cut import cut

HERE = Path(__file__).parent
IMAGES = (64, 256, 1000)  # to calibrate
FRESH = 256
FIELDS = ["network", "weights", "images", "ridge", "on", "unrepaired", "repaired", "seconds"]


def trained(name: str) -> nn.Module:
    model = build_model(name, 10, 3)
    load_weights(model, find_file(f"{name.replace(':', '10_')}_base.safetensors", None))
    return model


def untrained(name: str) -> nn.Module:
    """With uneven BatchNorms, as the zoo has them."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, num_classes=10)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.uniform_(module.bias, -0.3, 0.3, generator=generator)
    return model


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "cifar:resnet20": lambda: trained("cifar:resnet20"),
    "cifar:resnet56": lambda: trained("cifar:resnet56"),
    "resnet18": lambda: untrained("resnet18"),
    "mobilenet_v2": lambda: untrained("mobilenet_v2"),
    "squeezenet1_1": lambda: untrained("squeezenet1_1"),
}


def error(model: nn.Module, images: Tensor, wanted: Tensor) -> float:
    with evaluating(model):
        outputs = torch.cat([model(part) for part in images.split(64)])
    return float((outputs - wanted).norm() / (wanted - wanted.mean(0)).norm())


def rows_of(name: str, chosen: bool) -> list[dict[str, object]]:
    """One network: all numbers of images, with the ridge fixed or chosen."""
    regression.ENOUGH = ENOUGH if chosen else 0
    data = load_dataset("cifar10", Path(os.environ["AMC_DATA_DIR"]))
    pool = ImageSet.of(data, data.train, torch.randperm(50000, generator=drawn()).numpy()[:2000])
    seen, fresh = pool.normalised[:1000], pool.normalised[-FRESH:]
    noise = torch.randn(fresh.shape, generator=drawn())
    network = Network.of(NETWORKS[name](), data.input_shape, name)
    found: list[dict[str, object]] = []
    for count in IMAGES:
        space = ChannelSpace(network, {"min_ratio": 0.3, "coupled": False}, seen[:count])
        strategy = space.uniform(0.5)
        plain = cut(network.model, space.cuts(strategy)).eval()
        start = time.perf_counter()
        repaired = space.apply(strategy)
        seconds = time.perf_counter() - start
        for on, images in (("calibration", seen[:count]), ("fresh", fresh), ("noise", noise)):
            with evaluating(network.model):
                wanted = torch.cat([network.model(part) for part in images.split(64)])
            errors = [round(error(model, images, wanted), 4) for model in (plain, repaired)]
            kind = "trained" if name.startswith("cifar") else "random"
            how = "chosen" if chosen else "fixed"
            row = [name, kind, count, how, on, *errors, round(seconds, 1)]
            found.append(dict(zip(FIELDS, row, strict=True)))
    return found


ENOUGH = regression.ENOUGH


def drawn() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def read() -> list[dict[str, object]]:
    path = HERE / "repair.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [dict(row) for row in csv.DictReader(file)]


def table(rows: list[dict[str, object]]) -> str:
    """Errors on images that repair has not seen: without, with the fixed and the chosen ridge."""
    head = ["network", "images", *[f"{on}, {what}" for on in ("others", "noise") for what in WHAT]]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    cells = {
        tuple(str(row[key]) for key in ("network", "images", "ridge", "on")): row for row in rows
    }
    for name, images in dict.fromkeys((key[0], key[1]) for key in cells):
        line = [name, images]
        for on in ("fresh", "noise"):
            fixed, chosen = (cells[name, images, how, on] for how in ("fixed", "chosen"))
            values = fixed["unrepaired"], fixed["repaired"], chosen["repaired"]
            line += [f"{float(str(value)):.2f}" for value in values]
        lines.append(f"| {' | '.join(line)} |")
    return "\n".join(lines)


WHAT = ("unrepaired", "fixed", "chosen")


def main() -> None:
    rows = read()
    for name in NETWORKS:
        if any(row["network"] == name for row in rows):
            continue
        rows += [row for chosen in (False, True) for row in rows_of(name, chosen)]
        with (HERE / "repair.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    print(table(rows))


if __name__ == "__main__":
    main()
