"""The share of torchvision's classification networks that is decided, without the checks of run.py.

    python experiments/zoo/decided.py                # all that decided.csv lacks
    python experiments/zoo/decided.py table          # its summary, by family

Weights, inputs and options are those of run.py. `macs_decided` is the part of the MACs that is of
layers, or of the rest, which some decision shrinks; `macs_touched` what the smallest strategy
removes of them (keep ratios of at least 0.3).
"""

from __future__ import annotations

import csv
import re
import sys
import time
from collections import defaultdict
from pathlib import Path

import networks
import torch
from checks import decided

from amc.network.trace import Network
from amc.spaces.channel import ChannelSpace

PATH = Path(__file__).parent / "decided.csv"
COLUMNS = (
    *("network", "input_size", "params", "macs", "decisions", "macs_decided", "macs_touched"),
    *("params_touched", "bind_s"),
)
LARGEST = 250_000_000  # parameters: more do not fit beside their copies into 10 GB


def params_of(name: str) -> int:
    """As torchvision says of its weights."""
    weights = networks.torchvision.models.get_model_weights(name.partition("/")[2])
    return int(next(iter(weights)).meta["num_params"])


def row_of(name: str) -> dict[str, object]:
    model = networks.build(name)
    size = networks.smallest_size(model)
    network = Network.of(model, (3, size, size), name)
    begin = time.process_time()
    space = ChannelSpace(network, {"repair": "none", "min_ratio": 0.3})
    least = space.cost(space.smallest).ratios(space.cost({}))
    return {
        "network": name.partition("/")[2],
        "input_size": size,
        "params": network.table.params,
        "macs": network.table.macs,
        "decisions": len(space.decisions),
        "macs_decided": f"{decided(space):.4f}",
        "macs_touched": f"{1 - (least['macs'] or 0.0):.4f}",
        "params_touched": f"{1 - (least['params'] or 0.0):.4f}",
        "bind_s": f"{time.process_time() - begin:.1f}",
    }


def read() -> dict[str, dict[str, str]]:
    if not PATH.is_file():
        return {}
    with PATH.open(newline="") as file:
        return {row["network"]: row for row in csv.DictReader(file)}


def table(rows: dict[str, dict[str, str]]) -> str:
    """By family: the name up to its first digit."""
    families: dict[str, list[dict[str, str]]] = defaultdict(list)
    for name, row in rows.items():
        families[re.split(r"[_]?\d|_[a-z]?$|_[stbl]_", name)[0].rstrip("_")].append(row)
    lines = ["| family | networks | MACs decided | removed by the smallest |", "|---|---|---|---|"]
    for family, own in sorted(families.items()):
        spans = []
        for key in ("macs_decided", "macs_touched"):
            values = sorted(float(row[key]) for row in own)
            least, most = f"{100 * values[0]:.1f}", f"{100 * values[-1]:.1f}"
            spans.append(f"{least}%" if least == most else f"{least} to {most}%")
        lines.append(f"| {family} | {len(own)} | {spans[0]} | {spans[1]} |")
    most = sum(float(row["macs_decided"]) >= 0.9 for row in rows.values())
    lines.append(f"\nAt least 90% of the MACs are decided in {most} of {len(rows)} networks.")
    return "\n".join(lines)


def main() -> None:
    rows = read()
    if sys.argv[1:] == ["table"]:
        print(table(rows))
        return
    torch.set_num_threads(1)
    names = (name for name in networks.names() if name.startswith("torchvision/"))
    sizes = {name: params_of(name) for name in names}
    for name in sorted(sizes, key=sizes.__getitem__):  # the small ones first
        if name.partition("/")[2] in rows:
            continue
        if sizes[name] > LARGEST:
            print(f"{name}: {sizes[name]:,} parameters, passed over", flush=True)
            continue
        row = {key: str(value) for key, value in row_of(name).items()}
        rows[row["network"]] = row
        print(row, flush=True)
        with PATH.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows.values())


if __name__ == "__main__":
    main()
