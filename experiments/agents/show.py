"""What README.md beside this file shows of the searches.

python experiments/agents/show.py picture       curves.png
python experiments/agents/show.py tables        the tables, from results.csv, as Markdown
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from measure import done
from run import ONCE

from amc.analysis.compare import Comparison, Curve
from amc.analysis.statistics import interval
from amc.runs.directory import Run
from amc.views.axes import draw_curves

HERE = Path(__file__).parent
MEANS = {  # column of results.csv -> its heading, a factor, digits
    "best_search_accuracy": ("search accuracy", 100, 2),
    "best_search_kl": ("KL there", 1, 3),
    "heldout_accuracy": ("all 5,000 held out", 100, 2),
    "test_accuracy": ("test", 100, 2),
}
NAMES = {"ddpg_paper": "ddpg, paper", "random_paper": "random, paper's bounding"}
ORDER = ["td3", "random", "ddpg", "genetic", "tpe", "sac", "greedy", "ddpnas"]
COLORS = {name: f"C{number}" for number, name in enumerate(ORDER)} | {
    "ddpg, paper": "black",
    "random, paper's bounding": "0.5",
    "uniform": "0.3",
    "shallow": "C8",
    "deep": "C9",
}


def write_picture() -> None:
    """curves.png: the reward of the best so far over evaluations, a panel for each problem; without
    the other variants of td3.
    """
    ended = [job for job in done() if not job.agent.startswith("td3_")]
    problems = dict.fromkeys((j.network, j.budget) for j in ended if j.agent not in ONCE)
    figure = Figure(figsize=(6.5 * len(problems), 6.3), layout="constrained")
    for axes, (network, budget) in zip(
        figure.subplots(1, len(problems), squeeze=False)[0], problems, strict=True
    ):
        own = [job for job in ended if (job.network, job.budget) == (network, budget)]
        curves = [
            Curve.of(Run.open(job.path), NAMES.get(job.agent, job.agent), "reward")
            for job in own
            if job.path is not None
        ]
        draw_curves(axes, Comparison("reward", tuple(curves)), "evaluations", COLORS)
        axes.set_title(f"{network}, {100 * budget:.0f}% of the MACs")
        axes.set_ylabel("minus KL from the untouched network, best so far")
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3)
    figure.savefig(HERE / "curves.png", dpi=110)


def write_tables() -> None:
    """Markdown: a table for each problem, the smallest KL first."""
    results = pd.read_csv(HERE / "results.csv")
    headings = [heading for heading, _, _ in MEANS.values()]
    columns = ["agent", "seeds", *headings, "evaluations to random's best"]
    for (network, budget), problem in results.groupby(["network", "macs_budget"]):
        print(f"\n**{network}, {100 * budget:.0f}% of the MACs**\n\n| {' | '.join(columns)} |")
        print("|---" * len(columns) + "|")
        rows = {agent: own for agent, own in problem.groupby("agent")}
        for agent in sorted(rows, key=lambda agent: rows[agent]["best_search_kl"].mean()):
            print(f"| {' | '.join(table_row(agent, rows[agent]))} |")


def table_row(agent: str, own: pd.DataFrame) -> list[str]:
    """A table's row: one agent over its seeds; a hand-crafted policy does not depend on them."""
    own = own[:1] if agent in ONCE else own.sort_values("seed")
    row = [NAMES.get(agent, agent), "" if agent in ONCE else str(len(own))]
    for column, (_, factor, digits) in MEANS.items():
        mean, low, _ = (float(ends) for ends in interval(factor * own[column].to_numpy()))
        half = "" if np.isnan(low) else f" ± {mean - low:.{digits}f}"
        row.append(f"{mean:.{digits}f}{half}")
    reached = own["evaluations_to_random_best"]
    wanted = agent not in (*ONCE, "random")
    cells = ["never" if np.isnan(value) else f"{value:.0f}" for value in reached if wanted]
    return [*row, ", ".join(cells)]


if __name__ == "__main__":
    {"picture": write_picture, "tables": write_tables}[sys.argv[1]]()
