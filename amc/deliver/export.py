"""Export: weights and a strategy that rebuild the compressed network, names.ONNX, a `torch.export`
program, and a model card. Fine-tuned weights are taken where a fine-tuning of the run has ended.

`amc.deliver.load` gives back an ordinary, trainable ``nn.Module``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from amc.data.datasets import Dataset
from amc.deliver.evaluate import cost_of_metal
from amc.deliver.finetune import Finished, read_config
from amc.deliver.formats import Parity, as_onnx, as_program
from amc.errors import UserError, root_cause, unknown
from amc.files import sha256, write_bytes, write_json
from amc.network.models import load_weights
from amc.plugins import users_code
from amc.problem import Problem
from amc.progress import Report, silent
from amc.randomness import own_randomness
from amc.runs import names
from amc.runs.directory import Run
from amc.runs.lock import writing
from amc.search import SearchResult, open_problem
from amc.training.keeper import plain
from amc.views.card import model_card

FILES = {"safetensors": names.WEIGHTS, "onnx": names.ONNX, "pt2": names.PROGRAM}
FORMATS = tuple(FILES)
CHECKED = 1000  # test images, at most, on which formats are checked against PyTorch


@users_code()
@own_randomness()
def export(
    run: SearchResult | str | Path,
    formats: Collection[str] = FORMATS,
    *,
    episode: int | None = None,
    finetuned: str | Path | None = None,
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
    report: Report = silent,
    trust: bool = False,
) -> dict[str, Any]:
    """Export the best strategy of a run, or that of another episode, into its ``export`` folder,
    fine-tuned if that has been done, and measure it on the test images. A format that the network
    cannot be put into is said, and the others are written.

    Args:
        run: a search's result, or the directory of a run.
        formats: of ``safetensors``, ``onnx`` and ``pt2`` (a `torch.export` program).
        episode: whose strategy is exported, to ``episode_N/export`` in the run; None: that of the
            best one, to ``export``.
        finetuned: the folder of the fine-tuning; ``finetune`` beside the export by default.
        model: the network, where the run's was given from Python and ``run`` is a directory.
        dataset: likewise.
        report: of progress.
        trust: import the code of a run that you have not begun yourself (`amc.plugins`).

    Returns:
        The contents of metrics.json.

    Raises:
        Busy: another process exports there just now.
        UserError: the run has no result or no such episode, there is no such fine-tuning, or a
            format is unknown, or none could be written.
    """
    for name in formats:
        if name not in FORMATS:
            raise unknown("format", name, FORMATS)
    opened = run.run if isinstance(run, SearchResult) else Run.open(Path(run))
    place, best = opened.folder(episode), opened.chosen(episode)
    tuned = _tuned(
        place / names.FINETUNE if finetuned is None else Path(finetuned), finetuned is not None
    )
    with writing(place / names.EXPORT):
        weights = None if tuned is None else tuned.settings.weights
        problem = open_problem(run, model, dataset, report, weights, trust)[1]
        compressed = problem.applied(best["strategy"], opened.path)
        if tuned is not None:
            load_weights(compressed, tuned.weights)
        folder = place / names.EXPORT
        return _exported(opened, problem, compressed, best, tuned, formats, folder, report)


def _exported(
    run: Run,
    problem: Problem,
    compressed: nn.Module,
    best: dict[str, Any],
    tuned: Finished | None,
    formats: Collection[str],
    folder: Path,
    report: Report,
) -> dict[str, Any]:
    """Everything in the folder; what metrics.json says."""
    steps = 4
    report("exporting", 0, steps)
    description = _description(run, problem, best, tuned)
    metrics = _measured(problem, compressed, best, tuned)
    report("exporting", 1, steps)
    facts = description | _accuracies(metrics)
    metrics |= _write_all(
        compressed, problem.dataset, formats, folder, facts, problem.network.dtype
    )
    files = [name for name in FILES.values() if (folder / name).is_file()]
    metrics["checksums"] = {name: sha256(folder / name) for name in files}
    if "safetensors" in formats and "safetensors" not in metrics["failed_formats"]:
        description["weights_sha256"] = metrics["checksums"][names.WEIGHTS]
        write_json(folder / names.STRATEGY, description)
    report("exporting", 3, steps)
    metrics["measured_latency_ms"] = problem.measured_latency(compressed)
    write_json(folder / names.METRICS, metrics)
    settings = None if tuned is None else tuned.settings
    card = model_card(description, metrics, run, settings, problem.space, files)
    write_bytes(folder / names.CARD, card.encode())
    report("exporting", steps, steps)
    return metrics


def _write_all(
    model: nn.Module,
    dataset: Dataset,
    formats: Collection[str],
    folder: Path,
    facts: dict[str, Any],
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Write every format that can be; of metrics.json how well each agrees on test images, and why
    the others could not be written.

    Raises:
        UserError: none could be.
    """
    images = dataset.test.fetch(np.arange(min(CHECKED, len(dataset.test.labels))))
    agreement: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for name in (name for name in FORMATS if name in formats):
        path = folder / FILES[name]
        try:
            content, parity = _made(name, model, dataset.normalise(images), facts, dtype)
        except Exception as error:  # exporters have all kinds
            failed[name] = root_cause(error)
            path.unlink(missing_ok=True)  # of an earlier export: another network
            logging.getLogger("amc").warning("%s was not exported: %s", path.name, failed[name])
            continue
        write_bytes(path, content)
        if parity is not None:
            agreement[f"{name}_max_abs_diff"] = parity.max_abs_diff
            agreement[f"{name}_top1_agreement"] = parity.top1_agreement
            agreement[f"{name}_batch"] = parity.batch
            if parity.batch is not None:
                what = "takes one image at a time: the network computes with their number"
                logging.getLogger("amc").warning("%s %s", path.name, what)
    if failed and len(failed) == len(set(formats)):
        why = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise UserError(f"nothing could be exported ({why}): try other formats of {FORMATS}")
    return {**agreement, "failed_formats": failed}


def _made(
    name: str, model: nn.Module, images: Tensor, facts: dict[str, Any], dtype: torch.dtype
) -> tuple[bytes, Parity | None]:
    """A network in one format, and how well it agrees on images where others run it."""
    if name == "safetensors":
        return save(plain(model, dtype)), None
    if name == "pt2":
        return as_program(model, images)
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()}
    return as_onnx(model, images, texts)


def _tuned(folder: Path, named: bool) -> Finished | None:
    """The fine-tuning whose weights are exported; one that is named must be there."""
    tuned = Finished.of(folder)
    if tuned is None and named:
        raise UserError(f"{str(folder)!r} holds no fine-tuning that has ended")
    if tuned is None and read_config(folder) is not None:
        logging.getLogger("amc").warning(
            "the fine-tuning in %s has not ended (`amc finetune` goes on with it): exported as it "
            "was before",
            folder,
        )
    return tuned


def _description(
    run: Run, problem: Problem, best: dict[str, Any], tuned: Finished | None
) -> dict[str, Any]:
    return {
        "schema": 2,  # 1: of version 0.1, without weights and finetuned
        "model": problem.config.model,
        "weights": None if tuned is None else tuned.settings.weights,
        "classes": problem.dataset.classes,
        "input_shape": list(problem.dataset.input_shape),
        "mean": list(problem.dataset.mean),
        "std": list(problem.dataset.std),
        "dtype": str(problem.network.dtype).removeprefix("torch."),
        "space": problem.config.space["name"],
        "strategy": best["strategy"],
        "structure": problem.space.describe(best["strategy"]),
        "rewritten": dict(problem.network.rewritten),
        "finetuned": tuned is not None,
        "run": run.path.name,
    }


def _measured(
    problem: Problem, compressed: nn.Module, best: dict[str, Any], tuned: Finished | None
) -> dict[str, Any]:
    cost = cost_of_metal(problem, compressed)
    original = problem.space.cost({})
    if tuned is None:
        accuracies = {
            "test_accuracy": problem.accuracy(compressed, test=True),
            "baseline_test_accuracy": problem.accuracy(problem.network.model, test=True),
            "finetuned_test_accuracy": None,
            "search_accuracy": best["search_accuracy"],
        }
    else:
        accuracies = _accuracies(tuned.metrics)
    return {
        **accuracies,
        **cost.as_dict(),
        "baseline": original.as_dict(),
        "cost_ratios": cost.ratios(original),
        "onnx_max_abs_diff": None,
        "onnx_top1_agreement": None,
        "onnx_batch": None,
        "pt2_max_abs_diff": None,
        "pt2_top1_agreement": None,
        "pt2_batch": None,
        "failed_formats": {},
        "checksums": {},
        "measured_latency_ms": None,
    }


def _accuracies(metrics: dict[str, Any]) -> dict[str, Any]:
    names = (
        "test_accuracy",
        "baseline_test_accuracy",
        "finetuned_test_accuracy",
        "search_accuracy",
    )
    return {name: metrics[name] for name in names}
