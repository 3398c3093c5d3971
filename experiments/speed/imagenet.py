"""Networks at 224 x 224 on folders of generated images, from end to end: seconds to bind a search,
seconds an episode, and the peak memory of a process that does nothing else.

    python experiments/speed/imagenet.py [NETWORK ...]

Weights are random and images are noise: what is measured is time and memory, not accuracy. Writes
imagenet.csv beside this file (rows of other networks stay), and prints it. Images are generated in
a temporary folder, 2,000 and 20,000 of them, of which 200 differ.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from amc.network.models import build_model
from amc.runs import names
from amc.search import search

HERE = Path(__file__).parent
NETWORKS = {"mobilenet_v2": False, "efficientnet_b0": True, "resnet50": False}
"""Name -> `space.coupled`: EfficientNet's gates couple nearly all channels."""
FOLDERS = 2_000, 20_000  # training images
HELDOUT, CALIBRATION, TEST = 64, 32, 100
CLASSES, DIFFERENT = 10, 200
EPISODES = 3  # random strategies of half the MACs


def generate(root: Path, count: int) -> None:
    """A folder of JPEG files as ImageNet is laid out."""
    generator = np.random.default_rng(0)
    source = root / "source"
    source.mkdir(parents=True)
    for number in range(DIFFERENT):
        coarse = generator.integers(0, 256, (20, 27, 3)).astype(np.uint8)
        picture = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
        picture.save(source / f"{number}.JPEG", quality=90)
    for part, images in (("train", count), ("val", TEST)):
        for number in range(images):
            place = root / part / f"n{number % CLASSES:08}"
            place.mkdir(parents=True, exist_ok=True)
            os.link(source / f"{number % DIFFERENT}.JPEG", place / f"{number}.JPEG")


def measure(name: str, root: Path) -> dict[str, float]:
    """A whole search, in a process of its own."""
    begin = time.perf_counter()
    torch.manual_seed(0)
    model = build_model(f"torchvision:{name}", CLASSES, 3)
    config = {
        "dataset": f"imagefolder:{root}",
        "data_dir": str(root.parent),
        "budget": {"ratio": 0.5},
        "space": {"name": "channel", "coupled": NETWORKS[name], "round_to": 8, "min_ratio": 0.1},
        "evaluate": {"images": HELDOUT, "calibration_images": CALIBRATION},
        "agent": {"name": "random", "episodes": EPISODES},
        "allow_untrained": True,
    }
    found = search(config, model=model, out=root.parent / "runs")
    whole = time.perf_counter() - begin
    lines = (found.run.path / names.JOURNAL).read_text().splitlines()
    episodes = [json.loads(line) for line in lines]
    later = episodes[1:]  # the first one also computes the targets of repair
    row = {"binding_s": whole - sum(one["seconds"] for one in episodes)}
    row["episode_s"] = sum(one["seconds"] for one in later) / len(later)
    for part in ("apply", "repair", "evaluate"):
        row[f"{part}_s"] = sum(one["profile"].get(part, 0.0) for one in later) / len(later)
    used = resource.getrusage(resource.RUSAGE_SELF)
    row["whole_cpu_s"] = used.ru_utime + used.ru_stime  # whatever else the machine does
    row["peak_mb"] = used.ru_maxrss / 1024
    return row


def main(networks: Sequence[str]) -> None:
    """Measure each network on each folder, and write what was found after each."""
    path = HERE / "imagenet.csv"
    rows = pd.read_csv(path).to_dict("records") if path.exists() else []
    with tempfile.TemporaryDirectory() as scratch:
        for count in FOLDERS:
            generate(Path(scratch) / str(count), count)
        for name in networks:
            for count in FOLDERS:
                command = [sys.executable, __file__, "--measure", name, f"{scratch}/{count}"]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                row = {"network": name, "folder_images": count}
                row |= json.loads(done.stdout.splitlines()[-1])
                rows = [
                    one for one in rows if (one["network"], one["folder_images"]) != (name, count)
                ]
                rows.append(row)
                pd.DataFrame(rows).round(2).to_csv(path, index=False)
                print(row, flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2], Path(sys.argv[3]))))
    else:
        main(sys.argv[1:] or list(NETWORKS))
