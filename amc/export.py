"""Export: weights and a strategy that rebuild the compressed network, ONNX, a `torch.export`
program, and a model card. Fine-tuned weights are taken where a fine-tuning of the run has ended.

`load` gives back an ordinary, trainable ``nn.Module``; nothing is unpickled.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import save
from torch import nn

from amc.card import model_card
from amc.cost.cost import Cost, cost_of
from amc.errors import UserError, unknown
from amc.evaluate.data import Dataset
from amc.files import write_bytes, write_json
from amc.finetune import FOLDER as TUNED
from amc.finetune import Finished, read_config
from amc.formats import Parity, write_onnx, write_program
from amc.network.models import build_model, load_weights
from amc.network.trace import trace
from amc.problem import Problem
from amc.progress import Report, silent
from amc.registry import lookup
from amc.run import Run
from amc.search import SearchResult, open_problem
from amc.training.keeper import plain

FORMATS = ("safetensors", "onnx", "pt2")
FOLDER = "export"  # in the run
WEIGHTS, STRATEGY, ONNX, PROGRAM, METRICS, CARD = (
    "model.safetensors",
    "strategy.json",
    "model.onnx",
    "model.pt2",
    "metrics.json",
    "README.md",
)
CHECKED = 1000  # test images, at most, on which formats are checked against PyTorch


def export(
    run: SearchResult | str | Path,
    formats: Collection[str] = FORMATS,
    *,
    episode: int | None = None,
    finetuned: str | Path | None = None,
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
    report: Report = silent,
) -> dict[str, Any]:
    """Export the best strategy of a run, or that of another episode, into its ``export`` folder,
    fine-tuned if that has been done, and measure it on the test images.

    Args:
        run: a search's result, or the directory of a run.
        formats: of ``safetensors``, ``onnx`` and ``pt2`` (a `torch.export` program).
        episode: whose strategy is exported, to ``episode_N/export`` in the run; None: that of the
            best one, to ``export``.
        finetuned: the folder of the fine-tuning; ``finetune`` beside the export by default.
        model: the network, where the run's was given from Python and ``run`` is a directory.
        dataset: likewise.
        report: of progress.

    Returns:
        The contents of metrics.json.

    Raises:
        UserError: the run has no result or no such episode, there is no such fine-tuning, or a
            format is unknown.
    """
    for name in formats:
        if name not in FORMATS:
            raise unknown("format", name, FORMATS)
    opened = run.run if isinstance(run, SearchResult) else Run.open(Path(run))
    place, best = opened.folder(episode), opened.chosen(episode)
    tuned = _tuned(place / TUNED if finetuned is None else Path(finetuned), finetuned is not None)
    weights = None if tuned is None else tuned.settings.weights
    problem = open_problem(run, model, dataset, report, weights)[1]
    compressed = problem.space.apply(best["strategy"])
    if tuned is not None:
        load_weights(compressed, tuned.weights)
    folder = place / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    steps = 4
    report("exporting", 0, steps)
    description = _description(opened, problem, best, tuned)
    if "safetensors" in formats:
        write_bytes(folder / WEIGHTS, save(plain(compressed)))
        write_json(folder / STRATEGY, description)
    metrics = _measured(problem, compressed, best, tuned)
    report("exporting", 1, steps)
    facts = description | _accuracies(metrics)
    for name, parity in _converted(compressed, problem.dataset, formats, folder, facts):
        metrics[f"{name}_max_abs_diff"] = parity.max_abs_diff
        metrics[f"{name}_top1_agreement"] = parity.top1_agreement
    report("exporting", 3, steps)
    metrics["measured_latency_ms"] = problem.measured_latency(compressed)
    write_json(folder / METRICS, metrics)
    settings = None if tuned is None else tuned.settings
    files = [name for name in (WEIGHTS, ONNX, PROGRAM) if (folder / name).is_file()]
    card = model_card(description, metrics, opened, settings, problem.space, files)
    write_bytes(folder / CARD, card.encode())
    report("exporting", steps, steps)
    return metrics


def _converted(
    model: nn.Module,
    dataset: Dataset,
    formats: Collection[str],
    folder: Path,
    facts: dict[str, Any],
) -> Iterator[tuple[str, Parity]]:
    """Write what others run; of each format, how well it agrees on test images."""
    chosen = np.arange(min(CHECKED, len(dataset.test.labels)))
    images = dataset.normalise(dataset.test.fetch(chosen))
    if "onnx" in formats:
        texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()}
        yield "onnx", write_onnx(model, images, folder / ONNX, texts)
    if "pt2" in formats:
        yield "pt2", write_program(model, images, folder / PROGRAM)


def load(run: SearchResult | str | Path, model: nn.Module | None = None) -> nn.Module:
    """Rebuild an exported network.

    Args:
        run: a search's result, the directory of a run, or its ``export`` folder.
        model: a fresh copy of the original architecture, where it was given from Python and
            ``run`` is a directory.

    Raises:
        UserError: the folder holds no export, or the weights do not fit.
    """
    folder = run.run.path / FOLDER if isinstance(run, SearchResult) else Path(run)
    if (folder / FOLDER / STRATEGY).is_file():
        folder = folder / FOLDER
    description = read_description(folder)
    if isinstance(run, SearchResult):
        model = copy.deepcopy(run.problem.network.model)
    elif model is None:
        if description["model"] is None:
            raise UserError(
                f"the network of {str(run)!r} was given from Python: load it with "
                "amc.export.load(path, model=...)"
            )
        model = build_model(
            description["model"], description["classes"], description["input_shape"][0]
        )
    rebuilt: nn.Module = lookup("space", description["space"]).rebuild(
        model, description["structure"]
    )
    load_weights(rebuilt, folder / WEIGHTS)
    return rebuilt.eval()


def read_description(folder: Path) -> dict[str, Any]:
    """strategy.json of an export.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        value: dict[str, Any] = json.loads((folder / STRATEGY).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{str(folder)!r} is not an export: it has no {STRATEGY}") from None
    except (ValueError, SafetensorError) as error:
        raise UserError(f"{str(folder / STRATEGY)!r} is damaged: {error}") from error
    return {"weights": None, "finetuned": False, **value}  # what version 0.1 did not write


def evaluate(path: str | Path, test: bool = False, report: Report = silent) -> dict[str, Any]:
    """The accuracy of a run's best strategy before fine-tuning, or of an export (``finetuned_...``
    where it is fine-tuned): on the held-out images, and on the test images if asked; its costs, and
    its latency on this machine.

    Raises:
        UserError: the folder is neither.
    """
    folder = Path(path)
    exported = (folder / STRATEGY).is_file()
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
    result |= {**_cost(problem, model).as_dict(), "baseline": problem.space.cost({}).as_dict()}
    result["measured_latency_ms"] = problem.measured_latency(model)
    return result


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
        "space": problem.config.space["name"],
        "strategy": best["strategy"],
        "structure": problem.space.describe(best["strategy"]),
        "finetuned": tuned is not None,
        "run": run.path.name,
    }


def _measured(
    problem: Problem, compressed: nn.Module, best: dict[str, Any], tuned: Finished | None
) -> dict[str, Any]:
    cost = _cost(problem, compressed)
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
        "pt2_max_abs_diff": None,
        "pt2_top1_agreement": None,
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


def _cost(problem: Problem, model: nn.Module) -> Cost:
    """What a network costs: of the metal, not of the paper."""
    return cost_of(trace(model, problem.dataset.input_shape), problem.space.latency)
