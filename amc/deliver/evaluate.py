"""The accuracy and the costs of a run's best strategy, of an export, or of a fine-tuning."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from amc.cost.cost import Cost, cost_of
from amc.deliver.finetune import Finished, begun_episode, read_config
from amc.deliver.load import load, read_description
from amc.errors import UserError
from amc.network.models import load_weights
from amc.network.trace import trace
from amc.plugins import users_code
from amc.problem import Problem
from amc.progress import Report, silent
from amc.randomness import own_randomness
from amc.runs import names
from amc.runs.directory import Run
from amc.search import open_problem


@users_code()
@own_randomness()
def evaluate(
    path: str | Path, test: bool = False, report: Report = silent, trust: bool = False
) -> dict[str, Any]:
    """The accuracy of a run's best strategy before fine-tuning, or of an export or a fine-tuning in
    the run (``finetuned_...`` where it is fine-tuned): on the held-out images, and on the test
    images if asked; its costs, and its latency on this machine. ``trust``: import the code that a
    run names which you have not begun yourself (`amc.plugins`).

    Raises:
        UserError: the folder is none of these, lies in no run, or is damaged.
    """
    folder = Path(path)
    is_run = Run.is_at(folder)
    inner = folder / names.EXPORT
    if not is_run and (inner / names.STRATEGY).is_file():
        folder = inner  # of the folder of an episode
    if (folder / names.STRATEGY).is_file():
        problem, model, stage = _exported(folder, report, trust)
    elif not is_run and (folder / names.PROVENANCE).is_file() and read_config(folder) is not None:
        problem, model, stage = _finetuned(folder, report, trust)
    else:
        run, problem = open_problem(folder, report=report, trust=trust)
        model, stage = problem.applied(run.best["strategy"], run.path), ""
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


def _exported(folder: Path, report: Report, trust: bool) -> tuple[Problem, nn.Module, str]:
    description = read_description(folder)
    run = _run_around(folder, f"the run {description.run!r}" if description.run else "")
    made = description.model, description.space
    if made != (run.config.model, run.config.space["name"]):
        raise UserError(
            f"{str(folder)!r} is of the network {made[0]} and the space {made[1]!r}, not of "
            f"the run {str(run.path)!r} that it lies in"
        )
    problem = open_problem(run.path, report=report, weights=description.weights, trust=trust)[1]
    model = load(folder).float()  # measured as the search measures
    return problem, model, "finetuned_" if description.finetuned else ""


def _finetuned(folder: Path, report: Report, trust: bool) -> tuple[Problem, nn.Module, str]:
    tuned = Finished.of(folder)
    if tuned is None:
        raise UserError(
            f"the fine-tuning in {str(folder)!r} has not ended (`amc finetune` goes on with it)"
        )
    run = _run_around(folder, "a run, with --out")
    problem = open_problem(run.path, report=report, weights=tuned.settings.weights, trust=trust)[1]
    model = problem.applied(run.chosen(begun_episode(folder))["strategy"], run.path)
    load_weights(model, tuned.weights)
    return problem, model, "finetuned_"


def _run_around(folder: Path, of: str) -> Run:
    """The run that a folder lies in: directly, or in the folder of an episode.

    Raises:
        UserError: it lies in none.
    """
    for place in list(Path(os.path.abspath(folder)).parents)[:2]:
        if Run.is_at(place):
            return Run.open(place)
    made = f", but was made by {of}" if of else ""
    raise UserError(
        f"{str(folder)!r} lies in no run{made}: its data and its budget are known there only, so "
        "evaluate RUN/export or RUN/episode_N/export (of a fine-tuning elsewhere, `amc export RUN "
        "--finetuned FOLDER` makes one)"
    )


def cost_of_metal(problem: Problem, model: nn.Module) -> Cost:
    """What a network costs: of the metal, not of the paper."""
    return cost_of(trace(model, problem.dataset.input_shape), problem.space.latency)
