"""The accuracy and the costs of a run's best strategy, or of an export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from amc.cost.cost import Cost, cost_of
from amc.deliver.load import load, read_description
from amc.network.trace import trace
from amc.problem import Problem
from amc.progress import Report, silent
from amc.runs import names
from amc.search import open_problem


def evaluate(path: str | Path, test: bool = False, report: Report = silent) -> dict[str, Any]:
    """The accuracy of a run's best strategy before fine-tuning, or of an export (``finetuned_...``
    where it is fine-tuned): on the held-out images, and on the test images if asked; its costs, and
    its latency on this machine.

    Raises:
        UserError: the folder is neither.
    """
    folder = Path(path)
    exported = (folder / names.STRATEGY).is_file()
    if exported:
        description = read_description(folder)
        run, problem = open_problem(folder.parent, report=report, weights=description["weights"])
        model, stage = load(folder), "finetuned_" if description["finetuned"] else ""
    else:
        run, problem = open_problem(folder, report=report)
        model, stage = problem.space.apply(run.best["strategy"]), ""
    result: dict[str, Any] = {"path": str(folder)}
    for key, on_test in (("search_accuracy", False), ("test_accuracy", True)):
        if test or not on_test:
            result[stage + key] = problem.accuracy(model, on_test)
            result[f"baseline_{key}"] = problem.accuracy(problem.network.model, on_test)
    result |= {
        **cost_of_metal(problem, model).as_dict(),
        "baseline": problem.space.cost({}).as_dict(),
    }
    result["measured_latency_ms"] = problem.measured_latency(model)
    return result


def cost_of_metal(problem: Problem, model: nn.Module) -> Cost:
    """What a network costs: of the metal, not of the paper."""
    return cost_of(trace(model, problem.dataset.input_shape), problem.space.latency)
