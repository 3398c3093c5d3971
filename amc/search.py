"""The composition root: from a config to a searched run. The only module that sees everything.

- `search`   a new run
- `resume`   go on with a run, exactly as if it had never stopped
"""

from __future__ import annotations

import copy
import hashlib
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from amc.analysis.pareto import pareto
from amc.base import weights_file
from amc.config import load_config, parse_config
from amc.data.datasets import Dataset
from amc.device.profile import DeviceProfile
from amc.errors import UserError, whole_number
from amc.evaluate.evaluator import Evaluator
from amc.files import check_same, folder_name, write_bytes
from amc.kept import files_of, provenance_of
from amc.network.rewriting import restored
from amc.parallel.measurers import LocalMeasurers, RayMeasurers
from amc.plugins import allow, users_code
from amc.problem import Problem, check_trained
from amc.progress import Report, silent
from amc.randomness import own_randomness
from amc.runs import names
from amc.runs.directory import SCHEMA, Run, claim, layers_csv
from amc.runs.lock import writing
from amc.runs.policy import Policy
from amc.runs.stopping import stoppable
from amc.sections import Config
from amc.views.pictures import plot_range, plot_search
from amc.walk import taken_up

MOST_JOBS = 1024  # strategies that are measured side by side


@dataclass(frozen=True)
class SearchResult:
    """A run that has ended, or was stopped."""

    run: Run
    problem: Problem
    best: dict[str, Any]


@users_code()
@own_randomness()
def search(
    config: Config | Mapping[str, Any] | str,
    *,
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
    out: str | Path = "runs",
    name: str | None = None,
    jobs: int = 1,
    ray: str | None = None,
    report: Report = silent,
    trust: bool = False,
) -> SearchResult:
    """Search for the best strategy within the budget.

    Args:
        config: a configuration, a mapping of its keys, or a preset's name.
        model: your own network, instead of the config's; it is not modified. Needs no registration.
        dataset: your own data (`Dataset.from_arrays`), instead of the config's.
        out: the folder for runs; the run's directory is made in it.
        name: of the folder in it; the preset's by default. What no folder's name can hold becomes
            an underscore.
        jobs: strategies that are measured side by side, of agents that propose several at once;
            they divide torch's threads between them. The journal does not depend on it.
        ray: a Ray cluster's address (local: one on this machine) to measure on; none: processes.
        report: of progress.
        trust: where ``config`` is a file, import the code that it names (`amc.plugins`).

    Raises:
        UserError: before the search, where something cannot work.
        Stopped: by Ctrl-C, once there is a run to go on with.
    """
    jobs = whole_number(jobs, "jobs", 1, MOST_JOBS)
    if isinstance(config, str):
        preset, config = load_config(config, trust=trust)
        name = name or preset
    elif isinstance(config, Config):
        allow(config.model_dump())  # the user's, or read with their trust
    else:
        config = parse_config(copy.deepcopy(dict(config)))
    name = folder_name(name or config.model or type(model).__name__)
    started = time.strftime("%Y%m%d-%H%M%S")
    policy = Policy.wanted_by(config)  # refused before anything long begins
    problem = Problem.build(config, model, dataset, report)
    evaluator = problem.evaluator()
    check_trained(config, evaluator.baseline.accuracy, evaluator.images.labels)
    provenance = provenance_of(problem)
    path = claim(Path(out) / name / f"s{config.seed}-{started}")
    files = files_of(problem, model is not None, policy)
    for key, file in (("base_sha256", names.BASE), ("policy_sha256", names.POLICY)):
        if file in files:
            provenance[key] = hashlib.sha256(files[file]).hexdigest()
    with stoppable(path), writing(path):
        run = Run.create(path, config, provenance, files)
        return _continue(run, problem, evaluator, jobs, ray, report)


@users_code()
@own_randomness()
def resume(
    path: str | Path,
    *,
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
    jobs: int = 1,
    ray: str | None = None,
    repair: bool = False,
    report: Report = silent,
    trust: bool = False,
) -> SearchResult:
    """Go on with a run. Its journal will be what it would have been without the stop.

    Args:
        path: of the run.
        model: the network, where it was given from Python.
        dataset: likewise.
        jobs: as `search` has it.
        ray: likewise.
        repair: where the journal is damaged, go on from the whole episodes before that. What is cut
            off is kept in a file beside it.
        report: of progress.
        trust: import the code of a run that you have not begun yourself (`amc.plugins`).

    Raises:
        Busy: another process goes on with it just now.
        UserError: the folder is not a run, its config was changed, its journal is damaged, it names
            code that the user has not named, or an earlier version began it.
    """
    jobs = whole_number(jobs, "jobs", 1, MOST_JOBS)
    if Run.open(Path(path)).provenance["schema"] != SCHEMA:  # before the problem is built
        raise UserError(
            f"{str(path)!r} was begun by an earlier version, whose searches cannot be gone on "
            "with: evaluate or export it as it is, or start again with "
            f"`amc search {path}/config.yaml`"
        )
    with stoppable(Path(path)), writing(Path(path)):
        if repair and (done := Run.open(Path(path)).repair()):
            logging.getLogger("amc").warning("repaired: %s", done)
        run, problem = open_problem(path, model, dataset, report, trust=trust)
        if not (run.path / names.LAYERS).is_file():  # of a run that an earlier version began
            write_bytes(run.path / names.LAYERS, layers_csv(problem.network.table))
        steps = run.provenance["prepared_steps"]
        if steps is not None:
            problem.network.trusted.steps = steps
        evaluator = _as_it_began(run, problem)
        return _continue(run, problem, evaluator, jobs, ray, report)


@users_code()
@own_randomness()
def open_problem(
    run: SearchResult | str | Path,
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
    report: Report = silent,
    weights: str | None = None,
    trust: bool = False,
) -> tuple[Run, Problem]:
    """A run and what it works on, as it was when the run started; with other ``weights`` of the
    same network, if they are named. Of a search's result, model and dataset are known. With
    ``trust`` the code that the run names is imported (`amc.plugins`).
    """
    if isinstance(run, SearchResult):
        if weights is None:
            return run.run, run.problem
        dataset = run.problem.dataset
        if run.problem.config.model is None:
            model = restored(run.problem.network.model)
        path = run.run.path
    else:
        path = Path(run)
    if trust:
        allow(Run.open(path).config.model_dump())
    return _reopened(path, model, dataset, report, weights)


def _reopened(
    path: Path,
    model: nn.Module | None,
    dataset: Dataset | None,
    report: Report,
    weights: str | None,
) -> tuple[Run, Problem]:
    run = Run.open(path)
    config = run.config
    if config.model is None and model is None:
        raise UserError(
            f"the network of {str(path)!r} was given from Python: resume with "
            "amc.resume(path, model=...)"
        )
    base = run.path / names.BASE if (run.path / names.BASE).is_file() else None
    if weights is not None:
        base = weights_file(config.model_copy(update={"weights": weights}))
    elif base is not None:
        check_same(base, run.provenance["base_sha256"])
    if base is None and config.weights is None:
        raise UserError(
            f"{str(path)!r} has no {names.BASE}: it stopped before its network was trained; "
            "start it again"
        )
    device = None
    if (run.path / names.DEVICE).is_file():
        device = DeviceProfile.read(run.path / names.DEVICE)
    return run, Problem.build(config, model, dataset, report, base, device)


def _continue(
    run: Run, problem: Problem, evaluator: Evaluator, jobs: int, ray: str | None, report: Report
) -> SearchResult:
    """The episodes that are left, the journal, the checkpoints, and what is derived from them."""
    for doubt in run.provenance["device_doubts"]:
        logging.getLogger("amc").warning("warning: the device profile: %s", doubt)
    trusted = problem.network.trusted
    evaluator.fell_back = lambda: run.update_provenance(
        prepared=trusted.note,
        prepared_steps=trusted.steps,
        batch_size=evaluator.pace.batch_size,
        calibration_images=evaluator.calibration_images,
    )
    warning = problem.memorised(evaluator)
    run.update_provenance(
        compute=problem.compute.name,
        hardware=problem.compute.hardware,
        precision=evaluator.pace.precision,
        precision_note=evaluator.pace.note,
        batch_size=evaluator.pace.batch_size,
        calibration_images=evaluator.calibration_images,
        warning=warning,
        baseline={
            "search_accuracy": evaluator.baseline.accuracy,
            **evaluator.original.as_dict(),
        },
    )
    run.journal.cut_torn_line()
    agent, recorder = taken_up(run, problem, evaluator)

    def after_episode() -> None:
        run.save_checkpoint(agent.state())
        best = recorder.best
        what = f"searching | best {100 * best.score.accuracy:.2f}%" if best else "searching"
        report(what, agent.episodes_done, agent.episodes)

    with _measurers(evaluator, problem.config, jobs, ray), evaluator.clock("agent"):
        agent.run(after_episode)
    best = run.write_best()
    if problem.config.budget.is_range:
        plot_range(pareto([run.path], problem.budget.metric), run.path / names.PICTURE)
    else:
        plot_search(run.lines(), best, run.path / names.PICTURE)
    return SearchResult(run, problem, best)


def _as_it_began(run: Run, problem: Problem) -> Evaluator:
    """What measures the rest of a run, as it has measured so far; on another compute as suits it,
    with a warning.
    """
    begun = run.provenance
    if begun["calibration_images"] is not None:
        problem.space.recalibrate(begun["calibration_images"])
    if begun["compute"] in (None, problem.compute.name):
        return problem.evaluator(begun["precision"], begun["batch_size"])
    logging.getLogger("amc").warning(
        "warning: the run was begun on %s and goes on on %s: outcomes may differ in their last "
        "digits",
        begun["compute"],
        problem.compute.name,
    )
    return problem.evaluator()


@contextmanager
def _measurers(evaluator: Evaluator, config: Config, jobs: int, ray: str | None) -> Iterator[None]:
    """Let an evaluator measure side by side."""
    if jobs == 1 and ray is None:
        yield
        return
    if config.agent.get("envs") == 1:
        logging.getLogger("amc").warning(
            "warning: %s walks one episode at a time, so nothing is measured side by side: "
            "agent.envs=%d lets it walk more",
            config.agent["name"],
            max(jobs, 2),
        )
    measurers = (
        LocalMeasurers(evaluator, jobs) if ray is None else RayMeasurers(evaluator, jobs, ray)
    )
    evaluator.measurers = measurers
    try:
        yield
    finally:
        evaluator.measurers = None
        measurers.close()
