"""How long a channel space takes to bind: probing a network, verifying and settling its decisions.

    python experiments/speed/asking.py                      # the networks below, into asking.csv
    python experiments/speed/asking.py resnet50 vit_b_16    # others of torchvision's

Random weights, without repair, on one thread. Seconds are of the process, which had a core of its
own or not; `wall` says how long that took beside other work.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

import torch

import amc
from amc.network.torchvision_compat import torchvision
from amc.network.trace import Network
from amc.spaces.channel import ChannelSpace

HERE = Path(__file__).parent
NAMES = ("resnet50", "efficientnet_b0", "swin_t", "convnext_tiny", "densenet121")
COLUMNS = ("version", "network", "input_size", "gmacs", "decisions", "trace_s", "bind_s", "wall_s")


def bound(name: str, size: int) -> dict[str, object]:
    """A row for one network."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    begin = time.process_time()
    network = Network.of(model, (3, size, size), name)
    traced, wall = time.process_time(), time.perf_counter()
    space = ChannelSpace(network, {"repair": "none"})
    decisions = len(space.decisions)
    return {
        "network": name,
        "input_size": size,
        "gmacs": f"{network.table.macs / 1e9:.2f}",
        "decisions": decisions,
        "trace_s": f"{traced - begin:.1f}",
        "bind_s": f"{time.process_time() - traced:.1f}",
        "wall_s": f"{time.perf_counter() - wall:.1f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--version", default=amc.__version__, help="in the first column")
    parser.add_argument("--out", type=Path, default=HERE / "asking.csv")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    is_new = not chosen.out.is_file()
    for name in chosen.names:
        row = {"version": chosen.version, **bound(name, chosen.size)}
        print(row, flush=True)
        with chosen.out.open("a", newline="") as file:
            table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            if is_new:
                table.writeheader()
            table.writerow(row)
        is_new = False


if __name__ == "__main__":
    main()
