"""What sequential repair takes of an episode, before and now: README.md beside this file.

    git worktree add /tmp/before a7feac5
    python experiments/speed/repair.py --before /tmp/before       # repair.csv: 10 minutes

Two processes, one of each version, measure the same strategies in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

HERE = Path(__file__).parent
CASES = (  # network, calibration images
    ("cifar:resnet20", 1000),
    ("cifar:resnet20", 100),
    ("cifar:resnet56", 1000),
    ("torchvision:resnet18", 256),  # random weights
)
PARTS = ("apply", "repair", "evaluate")
OUTCOME = ("accuracy", "kl")
RATIO = 0.3


def serve(network: str, calibration: int, images: int, strategies: int) -> None:
    """Measure the strategy whose number each line of the input is; the first is uniform. Seconds
    are of processor time: what else the machine does is in them only as far as it slows it down.
    """
    import time

    import numpy as np
    import torch

    from amc.config import load_config
    from amc.evaluate.outcome import Candidate
    from amc.network.models import build_model
    from amc.problem import Problem
    from amc.spaces.bounding import Bounds

    torch.set_num_threads(1)
    time.perf_counter = time.process_time
    overrides = [f"evaluate.images={images}", f"evaluate.calibration_images={calibration}"]
    overrides += [f"budget.ratio={RATIO}", "evaluate.precision=fp32", f"model={network}"]
    model = None
    if network.startswith("cifar:"):
        overrides.append(f"weights={network.replace(':', '10_')}_45k.safetensors")
    else:
        torch.manual_seed(0)
        model = build_model(network, 10, 3)
    config = load_config("cifar10_resnet20_channel_macs50", overrides)[1]
    problem = Problem.build(config, model)
    evaluator, bounds = problem.evaluator(), Bounds.of(problem.space, problem.budget)
    generator, names = np.random.default_rng(0), [d.name for d in problem.space.decisions]
    drawn = (generator.uniform(size=len(names)).tolist() for _ in range(strategies - 1))
    found = [bounds.uniform(), *(bounds.scaled(dict(zip(names, r, strict=True))) for r in drawn)]
    print("ready", flush=True)
    for line in sys.stdin:
        outcome = evaluator.measure(Candidate(found[int(line)], problem.budget)).outcome
        values = {part: outcome.profile[part] for part in PARTS}
        values |= {name: getattr(outcome.score, name) for name in OUTCOME}
        print(json.dumps(values), flush=True)


class Version:
    """A process that runs one version of amc."""

    def __init__(self, root: Path, arguments: list[str], links: Path) -> None:
        package = links / "amc"  # as an installed one has it
        package.mkdir()
        for part in (*(root / "amc").iterdir(), *(root / name for name in ("envs", "agents"))):
            (package / part.name).symlink_to(part.resolve())
        (package / "configs").symlink_to((root / "configs").resolve())
        (package / "weights").symlink_to((root / "experiments/baselines/weights").resolve())
        environment = {**os.environ, "PYTHONPATH": str(links), "PYTHONSAFEPATH": "1"}
        environment["OMP_NUM_THREADS"] = "1"
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.read()

    def read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a version has failed: see above")
        return line

    def measure(self, number: int) -> dict[str, float]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        values: dict[str, float] = json.loads(self.read())
        return values


@contextmanager
def versions(before: Path, arguments: list[str]) -> Iterator[dict[str, Version]]:
    with ExitStack() as stack:
        started = {}
        for name, root in (("before", before), ("now", HERE.parents[1])):
            links = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            started[name] = Version(root, arguments, links)
            stack.callback(started[name].process.kill)
        yield started


def rows_of(network: str, calibration: int, chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row a strategy; the first time of the first one, too, in which targets are computed."""
    arguments = [network, str(calibration), str(chosen.images), str(chosen.strategies)]
    with versions(chosen.before, arguments) as both:
        for turn, number in enumerate([0, *range(chosen.strategies)]):
            row: dict[str, Any] = {"network": network, "ratio": RATIO, "images": chosen.images}
            row |= {"calibration": calibration, "strategy": number, "first": turn == 0}
            values = {name: version.measure(number) for name, version in both.items()}
            for key in (*PARTS, *OUTCOME):
                digits = 3 if key in PARTS else 6
                row |= {f"{key}_{name}": round(values[name][key], digits) for name in both}
            print(*row.values(), flush=True)
            yield row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--before", type=Path, required=True, help="a checkout of the old version")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--strategies", type=int, default=5)
    parser.add_argument("--file", type=Path, default=HERE / "repair.csv")
    chosen = parser.parse_args()
    rows = [row for case in CASES for row in rows_of(*case, chosen)]
    table = pd.DataFrame(rows)
    table.to_csv(chosen.file, index=False)
    seconds = [f"{part}_{name}" for part in PARTS for name in ("before", "now")]
    print(table.groupby(["network", "calibration", "first"])[seconds].median().round(2).to_string())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], *map(int, sys.argv[3:]))
    else:
        main()
