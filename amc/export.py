"""Export: weights and a strategy that rebuild the compressed network, and ONNX checked against
PyTorch.

`load` gives back an ordinary, trainable ``nn.Module``; nothing is unpickled.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import nn

from amc.cost.cost import Cost, cost_of
from amc.errors import UserError, unknown
from amc.evaluate.data import Dataset
from amc.files import write_bytes, write_json
from amc.network.layers import evaluating, example_input
from amc.network.models import build_model, load_weights
from amc.network.trace import trace
from amc.problem import Problem
from amc.progress import Report, silent
from amc.registry import lookup
from amc.run import Run
from amc.runtime import onnx_session, quiet
from amc.search import open_problem

FORMATS = ("safetensors", "onnx")
WEIGHTS, STRATEGY, ONNX, METRICS = (
    "model.safetensors",
    "strategy.json",
    "model.onnx",
    "metrics.json",
)
_TOLERANCE = 1e-3  # of the largest output, between ONNX and PyTorch


def export(
    path: str | Path,
    formats: Collection[str] = FORMATS,
    *,
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
    report: Report = silent,
) -> dict[str, Any]:
    """Export the best strategy of a run into its ``export`` folder, and measure it on the test
    images.

    Args:
        path: the run's directory.
        formats: of ``safetensors`` and ``onnx``.
        model: the network, where the run's was given from Python.
        dataset: likewise.
        report: of progress.

    Returns:
        The contents of metrics.json.

    Raises:
        UserError: the run has no result, or a format is unknown.
    """
    for name in formats:
        if name not in FORMATS:
            raise unknown("format", name, FORMATS)
    run, problem = open_problem(path, model, dataset, report)
    best = run.best
    compressed = problem.space.apply(best["strategy"])
    folder = run.path / "export"
    folder.mkdir(exist_ok=True)
    steps = 4
    report("exporting", 0, steps)
    if "safetensors" in formats:
        state = save({key: value.contiguous() for key, value in compressed.state_dict().items()})
        write_bytes(folder / WEIGHTS, state)
        write_json(folder / STRATEGY, _description(run, problem, best))
    report("exporting", 1, steps)
    metrics = _measured(run, problem, compressed, best)
    report("exporting", 2, steps)
    if "onnx" in formats:
        metrics["onnx_max_abs_diff"] = to_onnx(
            compressed, problem.dataset.input_shape, folder / ONNX
        )
        report("exporting", 3, steps)
        metrics["measured_latency_ms"] = problem.measured_latency(compressed)
    write_json(folder / METRICS, metrics)
    report("exporting", steps, steps)
    return metrics


def load(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Rebuild an exported network.

    Args:
        path: the ``export`` folder.
        model: a fresh copy of the original architecture, where it was given from Python.

    Raises:
        UserError: the folder holds no export, or the weights do not fit.
    """
    folder = Path(path)
    description = read_description(folder)
    if model is None:
        if description["model"] is None:
            raise UserError(
                f"the network of {str(path)!r} was given from Python: load it with "
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
    return value


def to_onnx(model: nn.Module, input_shape: tuple[int, ...], path: Path) -> float:
    """Write ONNX with a dynamic batch, and run it: the largest absolute difference from PyTorch on
    8 random images.

    Raises:
        ArithmeticError: the two do not agree.
    """
    images = example_input(model, input_shape, batch=8)
    with quiet(), evaluating(model):
        program = torch.onnx.export(
            model,
            (images,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
        expected = model(images).numpy()
    assert program is not None
    with tempfile.TemporaryDirectory() as scratch:
        program.save(str(Path(scratch) / ONNX), external_data=False)
        content = (Path(scratch) / ONNX).read_bytes()
    write_bytes(path, content)
    got = onnx_session(content).run(None, {"images": images.numpy()})[0]
    difference = float(np.abs(got - expected).max())
    if difference > _TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise ArithmeticError(f"ONNX and PyTorch differ by {difference:.3g}")
    return difference


def evaluate(path: str | Path, test: bool = False, report: Report = silent) -> dict[str, Any]:
    """The accuracy of a run's best strategy, or of an export, before fine-tuning: on the held-out
    images, and on the test images if asked; its costs, and its latency on this machine.

    Raises:
        UserError: the folder is neither.
    """
    folder = Path(path)
    exported = (folder / STRATEGY).is_file()
    run_path = folder.parent if exported else folder
    run, problem = open_problem(run_path, report=report)
    model = load(folder) if exported else problem.space.apply(run.best["strategy"])
    result: dict[str, Any] = {"path": str(folder)}
    result["search_accuracy"] = problem.accuracy(model, test=False)
    result["baseline_search_accuracy"] = problem.accuracy(problem.network.model, test=False)
    if test:
        result["test_accuracy"] = problem.accuracy(model, test=True)
        result["baseline_test_accuracy"] = problem.accuracy(problem.network.model, test=True)
    result |= {**_cost(problem, model).as_dict(), "baseline": problem.space.cost({}).as_dict()}
    result["measured_latency_ms"] = problem.measured_latency(model)
    return result


def _description(run: Run, problem: Problem, best: dict[str, Any]) -> dict[str, Any]:
    return {
        "schema": 1,
        "model": problem.config.model,
        "classes": problem.dataset.classes,
        "input_shape": list(problem.dataset.input_shape),
        "mean": list(problem.dataset.mean),
        "std": list(problem.dataset.std),
        "space": problem.config.space["name"],
        "strategy": best["strategy"],
        "structure": problem.space.describe(best["strategy"]),
        "run": run.path.name,
    }


def _measured(
    run: Run, problem: Problem, compressed: nn.Module, best: dict[str, Any]
) -> dict[str, Any]:
    cost = _cost(problem, compressed)
    original = problem.space.cost({})
    return {
        "test_accuracy": problem.accuracy(compressed, test=True),
        "baseline_test_accuracy": problem.accuracy(problem.network.model, test=True),
        "finetuned_test_accuracy": None,
        "search_accuracy": best["search_accuracy"],
        **cost.as_dict(),
        "baseline": original.as_dict(),
        "cost_ratios": cost.ratios(original),
        "onnx_max_abs_diff": None,
        "measured_latency_ms": None,
    }


def _cost(problem: Problem, model: nn.Module) -> Cost:
    """What a network costs: of the metal, not of the paper."""
    return cost_of(trace(model, problem.dataset.input_shape), problem.space.latency)
