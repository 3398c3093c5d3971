"""The results' latency, and that of the same widths rounded to multiples of 8, all of a network
measured in turn: latency.csv.

python experiments/kinds/latency.py     after run.py, from the repository's root
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from run import AGENTS, NETWORKS, RATIOS, RUNS, Job

from amc.device.runtimes import make_runtime, timed_in_turn
from amc.network.copying import copied
from amc.network.layers import example_input
from amc.search import open_problem
from amc.spaces.base import Decision

HERE = Path(__file__).parent
STEP = 8  # channels that the runtime computes at once


def rounded(decision: Decision, choice: int) -> int:
    able = [one for one in decision.choices if one % STEP == 0 or one == decision.choices[-1]]
    return min(able, key=lambda one: abs(one - choice))


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for network in NETWORKS:
        models, facts = {}, []
        for job in [Job(network, ratio, agent) for ratio in RATIOS for agent in AGENTS]:
            run, problem = open_problem(sorted((RUNS / job.name).glob("s*"))[-1], trust=True)
            space, own = problem.space, run.best["strategy"]
            near = {one.name: rounded(one, own[one.name]) for one in space.decisions}
            models["untouched"] = copied(problem.network.model)
            for step, strategy in ((run.config.space["round_to"], own), (STEP, near)):
                cost = space.cost(strategy).ratios(space.cost({}))
                facts.append([network, job.ratio, job.agent, step, round(cost["macs"], 4)])
                models[str(facts[-1])] = space.apply(strategy)
        example = example_input(models["untouched"], problem.network.input_shape)
        times = timed_in_turn(make_runtime(), models, example, seconds=20.0)
        rows += [[*one, round(times[str(one)]["ratio"], 3)] for one in facts]
    columns = ["network", "budget", "agent", "round_to", "macs_ratio", "latency_ratio"]
    frame = pd.DataFrame(rows, columns=columns)
    frame.to_csv(HERE / "latency.csv", index=False)
    print(frame.to_string(index=False))


if __name__ == "__main__":
    main()
