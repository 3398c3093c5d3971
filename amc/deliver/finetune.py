"""Train the result of a search, so that it gets its accuracy back."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from amc.compute import Compute
from amc.config import finetune_config, to_yaml
from amc.data.datasets import Dataset
from amc.errors import UserError
from amc.evaluate.prepare import prepared
from amc.files import check_same, sha256, write_bytes, write_json
from amc.network.copying import copied
from amc.network.models import load_weights
from amc.network.trace import Network
from amc.plugins import users_code
from amc.problem import Problem
from amc.progress import Report, silent
from amc.randomness import own_randomness
from amc.reading import parse_yaml, read_json, read_text, typed
from amc.runs import names
from amc.runs.directory import Run
from amc.runs.lock import writing
from amc.runs.provenance import surroundings
from amc.runs.records import Before, Provenance, Tested
from amc.search import SearchResult, open_problem
from amc.training.distill import Distillation, Objective
from amc.training.history import Progress
from amc.training.keeper import BEST, InFolder
from amc.training.lesson import Lesson
from amc.training.processes import Processes, joined
from amc.training.settings import FinetuneConfig
from amc.training.trainer import Trainer
from amc.training.update import uses_bf16
from amc.views.pictures import plot_finetune


@dataclass(frozen=True)
class FinetuneResult:
    """A compressed network that was trained to the end."""

    path: Path  # its folder
    model: nn.Module  # on the CPU, in eval mode
    metrics: dict[str, Any]
    first: bool  # whether this process is the first of those that trained


@users_code()
@own_randomness()
def finetune(
    run: SearchResult | str | Path,
    config: FinetuneConfig | Mapping[str, Any] | Sequence[str] | None = None,
    *,
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
    episode: int | None = None,
    to: str | Path | None = None,
    report: Report = silent,
    tensorboard: bool = False,
    trust: bool = False,
) -> FinetuneResult:
    """Train the best strategy of a run, or that of another episode. Called again, it goes on where
    it was stopped.

    Under ``torchrun`` all processes call it, and train together.

    Args:
        run: a search's result, or the directory of a run.
        config: all settings; or some, or overrides ``key=value``, over those of the run's own
            section ``finetune``. None: these, or those that the folder was begun with.
        model: the network, where the run's was given from Python and ``run`` is a directory.
        dataset: likewise.
        episode: whose strategy is trained (`amc.analysis.pareto` tells what each budget
            would have cost); None: that of the best one.
        to: the folder; by default ``finetune`` in the run, or in the episode's folder there.
        report: of progress.
        tensorboard: write events for TensorBoard too.
        trust: import the code of a run that you have not begun yourself (`amc.plugins`).

    Raises:
        Busy: another process trains into the folder just now.
        UserError: the run has no result or no such episode, the folder was begun with other
            settings, or a setting does not fit the network.
    """
    opened = run.run if isinstance(run, SearchResult) else Run.open(Path(run))
    with joined(Compute.of(opened.config.compute)) as processes, ExitStack() as held:
        report = report if processes.first else silent
        folder = Path(to) if to is not None else opened.folder(episode) / names.FINETUNE
        chosen = opened.chosen(episode)
        if processes.first and Finished.of(folder) is None:
            held.enter_context(writing(folder))
        _check_episode(folder, chosen["episode"])
        settings = _settings(folder, opened, config)
        problem = open_problem(run, model, dataset, report, settings.weights, trust)[1]
        compressed = problem.applied(chosen["strategy"], opened.path)
        if (ended := Finished.of(folder)) is not None:
            load_weights(compressed, ended.weights)
            return FinetuneResult(folder, compressed, ended.metrics, processes.first)
        log = _Log(folder, settings, tensorboard) if processes.first else None
        if log is not None:
            log.begin(problem, compressed, chosen["episode"])
        trainer = _trainer(problem, compressed, settings, processes, folder, report)
        progress = trainer.run(lambda progress: None if log is None else log.write(progress))
        if log is not None:
            log.end(problem, compressed, progress)
        processes.wait()
        return FinetuneResult(folder, compressed, _metrics(folder), processes.first)


@dataclass(frozen=True)
class Finished:
    """A fine-tuning that has ended, as its folder tells it."""

    settings: FinetuneConfig
    metrics: dict[str, Any]
    weights: Path

    @classmethod
    def of(cls, folder: Path) -> Finished | None:
        """None where it has not begun or not ended."""
        settings = read_config(folder)
        if settings is None or not (folder / names.METRICS).is_file():
            return None
        metrics, weights = _metrics(folder), folder / BEST
        check_same(weights, metrics["weights_sha256"])
        return cls(settings, metrics, weights)


def read_config(folder: Path) -> FinetuneConfig | None:
    """The settings that a folder was begun with; none where it was not begun.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / names.CONFIG
    if not path.is_file():
        return None
    return typed(FinetuneConfig, parse_yaml(read_text(path), path), path)


def _settings(
    folder: Path, run: Run, config: FinetuneConfig | Mapping[str, Any] | Sequence[str] | None
) -> FinetuneConfig:
    begun = read_config(folder)
    if begun is not None and not config:
        return begun
    if isinstance(config, FinetuneConfig):
        settings = config
    elif isinstance(config, Mapping):
        pairs = [f"{key}={json.dumps(value)}" for key, value in config.items()]
        settings = finetune_config(run.config, pairs)
    else:
        settings = finetune_config(run.config, config or [])
    if settings.seed is None:
        settings = settings.model_copy(update={"seed": run.config.seed})
    if begun is not None and begun != settings:
        other = next(
            name
            for name in FinetuneConfig.model_fields
            if getattr(begun, name) != getattr(settings, name)
        )
        raise UserError(
            f"{str(folder)!r} was begun with {other} {getattr(begun, other)!r}, not "
            f"{getattr(settings, other)!r}: name another folder (--out), or give no settings to go "
            "on with it"
        )
    return settings


def begun_episode(folder: Path) -> int | None:
    """Whose strategy a folder was begun with; none: the best one's, or it was not begun."""
    path = folder / names.PROVENANCE  # at first only the best one could be trained
    return read_json(path, Provenance).episode if path.is_file() else None


def _check_episode(folder: Path, episode: int) -> None:
    begun = begun_episode(folder)
    if begun not in (None, episode):
        raise UserError(
            f"{str(folder)!r} was begun with the strategy of episode {begun}, not {episode}: name "
            "another folder (--out)"
        )


def _trainer(
    problem: Problem,
    compressed: nn.Module,
    settings: FinetuneConfig,
    processes: Processes,
    folder: Path,
    report: Report,
) -> Trainer:
    """The trainer of a compressed network: who teaches, and on which images."""
    distill, network, seed = settings.distill, problem.network, settings.seed or 0
    if not problem.compute.is_accelerator:  # it may be a network that does not run on one
        processes = replace(processes, compute=problem.compute)
    smoothing = settings.label_smoothing
    objective = Objective(compressed, smoothing)
    if (teacher := teacher_of(network, settings, processes.compute)) is not None:
        shape = problem.dataset.input_shape
        objective = Distillation(compressed, teacher, shape, distill, smoothing, seed)
    every = np.arange(len(problem.dataset.train.labels))
    lesson = Lesson(objective, problem.dataset, every, seed=seed)
    if settings.hold_out:
        lesson = replace(lesson, train=problem.splits.train, heldout=problem.splits.heldout)
    return Trainer(lesson, settings, processes, InFolder(folder), "fine-tuning", report)


def teacher_of(network: Network, settings: FinetuneConfig, compute: Compute) -> nn.Module | None:
    """A copy of the uncompressed network on a compute, where it teaches anything."""
    distill = settings.distill
    features = distill.hint or distill.attention or distill.fsp
    if not features and not distill.soft:
        return None
    dtype = torch.bfloat16 if uses_bf16(settings, compute) else torch.float32
    if not features:  # prepared for speed, which leaves the outputs but not the layers
        return prepared(network.model, network, dtype).to(compute.device)
    teacher = copied(network.model).eval()
    teacher.to(dtype=dtype, memory_format=network.memory_format)  # type: ignore[call-overload]
    return teacher.to(compute.device)


class _Log:
    """What the first process writes beside weights and checkpoints."""

    def __init__(self, folder: Path, settings: FinetuneConfig, tensorboard: bool) -> None:
        self.folder, self.settings = folder, settings
        self.before: dict[str, Any] = {}
        self.events = _events(folder / "tensorboard") if tensorboard else None

    def begin(self, problem: Problem, compressed: nn.Module, episode: int) -> None:
        """Settings, provenance, and what there was before: once."""
        if not (self.folder / names.BEFORE).is_file():
            write_bytes(self.folder / names.CONFIG, to_yaml(self.settings).encode())
            write_json(self.folder / names.PROVENANCE, {"episode": episode, **surroundings()})
            untouched = problem.network.model
            before = {
                "baseline_search_accuracy": problem.accuracy(untouched),
                "search_accuracy": problem.accuracy(compressed),
                "baseline_test_accuracy": problem.accuracy(untouched, test=True),
                "test_accuracy": problem.accuracy(compressed, test=True),
            }
            write_json(self.folder / names.BEFORE, before)
        self.before = read_json(self.folder / names.BEFORE, Before).as_dict()

    def write(self, progress: Progress) -> None:
        """log.csv after an epoch, and the picture where that does not take long beside it."""
        pd.DataFrame(progress.epochs).to_csv(text := io.StringIO(), index=False)
        write_bytes(self.folder / names.LOG, text.getvalue().encode())
        row = progress.epochs[-1]
        if row["seconds"] > 10 or row["epoch"] == self.settings.epochs:
            plot_finetune(progress.epochs, self.before, self.folder / names.CURVES)
        if self.events is not None:
            for name, value in row.items():
                if value is not None:
                    self.events.add_scalar(name, value, row["epoch"])

    def end(self, problem: Problem, compressed: nn.Module, progress: Progress) -> None:
        """metrics.json: what was trained is measured on the test images once, now."""
        metrics = {
            **self.before,
            "finetuned_search_accuracy": progress.best["heldout_accuracy"],
            "finetuned_test_accuracy": problem.accuracy(compressed, test=True),
            "best_epoch": progress.best["epoch"],
            "epochs": len(progress.epochs),
            "seconds": round(sum(row["seconds"] for row in progress.epochs), 1),
            "weights_sha256": sha256(self.folder / BEST),
        }
        write_json(self.folder / names.METRICS, metrics)
        if self.events is not None:
            self.events.close()


def _events(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "tensorboard is not installed: pip install 'amc-compression[tensorboard]'"
        ) from None
    return SummaryWriter(str(folder))


def _metrics(folder: Path) -> dict[str, Any]:
    return read_json(folder / names.METRICS, Tested).as_dict()
