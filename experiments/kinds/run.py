"""Searches of a vision transformer and a ConvNeXt, exported and measured: README.md has the rest.

python experiments/kinds/run.py     from the repository's root; goes on where it stopped
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console

from amc.config import load_config
from amc.deliver.export import export
from amc.problem import Problem
from amc.progress import ConsoleReport
from amc.search import SearchResult, resume, search
from amc.surgery.cut import cut
from amc.surgery.verify import cut_is_mask

HERE = Path(__file__).parent
RUNS = Path("runs/kinds")
RESULTS = HERE / "results.csv"
NETWORKS, RATIOS, AGENTS = ("vit", "convnext"), (0.5, 0.3), ("uniform", "random", "td3")
KEYS = ["network", "budget", "agent"]


@dataclass(frozen=True)
class Job:
    """One search."""

    network: str
    ratio: float
    agent: str

    @property
    def name(self) -> str:
        return f"{self.network}_{100 * self.ratio:.0f}_{self.agent}"

    @property
    def key(self) -> tuple[str, float, str]:
        return self.network, self.ratio, self.agent

    def run(self) -> SearchResult:
        """Search, or go on with a search, or take it as it ended."""
        report = ConsoleReport(Console(stderr=True))
        found = sorted((RUNS / self.name).glob("s*"))
        if found:
            return resume(found[-1], report=report, trust=True)
        overrides = [f"budget.ratio={self.ratio}", f"agent.name={self.agent}"]
        config = load_config(str(HERE / f"{self.network}.yaml"), overrides, trust=True)[1]
        return search(config, out=RUNS, name=self.name, report=report)


def row(job: Job) -> dict[str, Any]:
    """Of results.csv."""
    result = job.run()
    lines = result.run.lines()
    found = export(result, ("safetensors", "onnx"), trust=True)
    measured = found["measured_latency_ms"]
    return {
        **dict(zip(KEYS, job.key, strict=True)),
        "metric": result.run.config.budget.metric,
        "seed": result.run.config.seed,
        "evaluations": len(lines),
        "macs_ratio": round(found["cost_ratios"]["macs"], 4),
        "params_ratio": round(found["cost_ratios"]["params"], 4),
        "search_accuracy": result.best["search_accuracy"],
        "search_kl": round(result.best["kl"], 4),
        "test_accuracy": found["test_accuracy"],
        "baseline_test_accuracy": found["baseline_test_accuracy"],
        "latency_ratio": round(measured["ratio"], 3),
        "baseline_ms": round(measured["baseline"], 3),
        "runtime": f"{measured['runtime']}, threads {measured['threads']}",
        "cut_is_mask": is_mask(result.problem, result.best["strategy"]),
        "onnx_max_abs_diff": found["onnx_max_abs_diff"],
        "onnx_top1_agreement": found["onnx_top1_agreement"],
        "seconds": round(sum(line["seconds"] for line in lines), 1),
    }


def is_mask(problem: Problem, strategy: dict[str, int]) -> bool:
    """Whether the cut network, before repair, gives the outputs of the masked one."""
    cuts = problem.space.cuts(strategy)  # type: ignore[attr-defined]
    return cut_is_mask(problem.network, cut(problem.network.model, cuts), cuts)


def main() -> None:
    torch.set_num_threads(1)
    rows = pd.read_csv(RESULTS).to_dict("records") if RESULTS.is_file() else []
    there = {tuple(one[key] for key in KEYS) for one in rows}
    jobs = [Job(*one) for one in ((n, r, a) for n in NETWORKS for r in RATIOS for a in AGENTS)]
    for job in jobs:
        if job.key not in there:
            rows.append(row(job))
            pd.DataFrame(rows).to_csv(RESULTS, index=False)
            print(job.name, rows[-1], flush=True)


if __name__ == "__main__":
    main()
