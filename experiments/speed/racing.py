"""What racing has cost: the strategies that a raced search stopped are measured on all images.

    python experiments/speed/racing.py RUN [COUNT]

Writes racing.csv beside this file, one row a strategy: those that looked best first, as many as
COUNT (all without it).
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from rich.console import Console

from amc.evaluate.evaluator import Evaluator
from amc.evaluate.outcome import Outcome
from amc.progress import ConsoleReport
from amc.registry import lookup
from amc.search import open_problem

HERE = Path(__file__).parent


def main(path: str, count: int | None = None) -> None:
    report = ConsoleReport(Console(stderr=True))
    run, problem = open_problem(path, report=report)
    images = problem.evaluator("fp32").images
    reward = lookup("reward", problem.config.reward)
    whole = Evaluator(problem.space, images, problem.budget, reward, "fp32")
    best = run.best
    lines = run.lines()
    stopped = [line for line in lines if not Outcome.from_line(line).can_be_best]
    stopped.sort(key=lambda line: -line["reward"])
    total, stopped = len(stopped), stopped[:count]
    rows = []
    for number, line in enumerate(stopped):
        measured = whole(line["strategy"])
        rows.append(
            {
                "episode": line["episode"],
                "stopped_after": line["stopped_after"],
                "estimated_reward": line["reward"],
                "reward": measured.reward,
                "estimated_accuracy": line["search_accuracy"],
                "accuracy": measured.score.accuracy,
                "best_reward": best["reward"],
            }
        )
        table = pd.DataFrame(rows)
        table.to_csv(HERE / "racing.csv", index=False)
        report("measuring what was stopped", number + 1, len(stopped))
    leaders = [line for line in lines if Outcome.from_line(line).can_be_best]
    then = [
        max(line["reward"] for line in leaders if line["episode"] < episode)
        for episode in table["episode"]
    ]
    print(f"{total} stopped, {len(leaders)} measured on all {len(images.labels)} images at once")
    print(f"measured again: {len(table)}")
    print(f"better than the leader when they were stopped: {(table['reward'] > then).sum()}")
    print(f"better than the run's best: {(table['reward'] > best['reward']).sum()}")
    error = (table["estimated_reward"] - table["reward"]).abs().mean()
    print(f"mean |estimate - reward|: {error:.4f}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)
