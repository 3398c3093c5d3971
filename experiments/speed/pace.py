"""What the untouched network takes in each precision and batch size that amc tries, in turn, and
which it chooses.

    AMC_DATA_DIR=... python experiments/speed/pace.py [--compute cuda]      # pace.csv
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pandas as pd

from amc.config import load_config
from amc.evaluate import pace
from amc.problem import Problem

HERE = Path(__file__).parent
NETWORKS = "resnet20", "resnet56"
IMAGES, ROUNDS = 1000, 5


def rows_of(network: str, compute: str) -> list[dict[str, object]]:
    overrides = [f"compute={compute}", f"evaluate.images={IMAGES}", "space.repair=none"]
    problem = Problem.build(load_config(f"cifar10_{network}_channel_macs50", overrides)[1])
    evaluator = problem.evaluator()
    chosen, images = evaluator.pace, evaluator.images
    usual = problem.network.table.activations.batch_size()
    paces = [pace.Pace(precision, usual) for precision in pace.precisions(images)]
    times: dict[pace.Pace, list[float]] = {one: [] for one in pace.with_larger(paces, images)}
    for _ in range(ROUNDS):
        for one, taken in times.items():
            taken.append(pace.seconds(problem.network, images, one))
    return [
        {
            "network": network,
            "compute": problem.compute.hardware or problem.compute.name,
            "precision": one.precision,
            "batch_size": one.batch_size,
            "ms_an_image": round(1e3 * min(taken) / IMAGES, 4),
            "chosen": one == replace(chosen, note=""),
        }
        for one, taken in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compute", default="auto")
    asked = parser.parse_args()
    table = pd.DataFrame([row for name in NETWORKS for row in rows_of(name, asked.compute)])
    table.to_csv(HERE / "pace.csv", index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
