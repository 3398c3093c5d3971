"""The model card of an export: what it is, what it costs, how to use it, and how it was made."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amc.cost.cost import LABELS, ON_PAPER
from amc.runs.directory import Run
from amc.spaces.base import CompressionSpace
from amc.training.settings import FinetuneConfig
from amc.views.markdown import code, literal


def model_card(
    description: Mapping[str, Any],
    metrics: Mapping[str, Any],
    run: Run,
    settings: FinetuneConfig | None,
    space: CompressionSpace,
    files: Sequence[str],
) -> str:
    """Markdown.

    Args:
        description: strategy.json.
        metrics: metrics.json.
        run: that found the strategy.
        settings: of the fine-tuning; none without one.
        space: the action space, which knows the keep ratios.
        files: what lies beside the card.
    """
    name = description["model"] or run.path.parent.name
    budget = run.config.budget.metric
    part = f"{metrics['cost_ratios'][budget]:.1%} of its {LABELS[budget]}"
    parts = [
        f"# {literal(name)} at {part}",
        _table(metrics),
        "## Use",
        _use(description, metrics, files),
        "## How it was made",
        _made(description, run, settings),
        "## Strategy",
        _strategy(description, space),
    ]
    return "\n\n".join(parts) + "\n"


def _table(metrics: Mapping[str, Any]) -> str:
    def percent(value: float | None) -> str:
        return "" if value is None else f"{value:.2%}"

    baseline = percent(metrics["baseline_test_accuracy"])
    rows = [
        ("", "original", "compressed", "ratio"),
        ("---", "---", "---", "---"),
        ("test accuracy before fine-tuning", baseline, percent(metrics["test_accuracy"]), ""),
    ]
    if metrics["finetuned_test_accuracy"] is not None:
        tuned = percent(metrics["finetuned_test_accuracy"])
        rows.append(("**test accuracy, fine-tuned**", baseline, f"**{tuned}**", ""))
    for key in ON_PAPER:
        before, after = metrics["baseline"][key], metrics[key]
        rows.append((LABELS[key], f"{before:,}", f"{after:,}", f"{after / before:.3f}"))
    if (times := metrics["measured_latency_ms"]) is not None:
        how = f"{times['runtime']}, threads {times['threads']}, batch {times['batch']}"
        both = f"{times['baseline']:.3f}", f"{times['compressed']:.3f}"
        rows.append((f"latency, ms ({literal(how)})", *both, f"{times['ratio']:.3f}"))
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return (
        f"{table}\n\nMACs, parameters and memory are of one image in fp32. Latency: both networks "
        "measured in turn on the machine that exported."
    )


def _use(description: Mapping[str, Any], metrics: Mapping[str, Any], files: Sequence[str]) -> str:
    shape = " x ".join(map(str, description["input_shape"]))
    mean, std = (", ".join(f"{value:.6g}" for value in description[key]) for key in ("mean", "std"))
    scaled = (
        f"pixels in [0, 1] minus the mean ({mean}), divided by the standard deviation ({std}), a "
        "value a channel"
    )
    if not any(description["mean"]) and set(description["std"]) == {1.0}:
        scaled = "normalised as they were for the original network"
    output = f"Output: logits, n x {description['classes']}."
    lines = [f"Input: images, n x {shape}, fp32, {scaled}. {output}", ""]
    given = "" if description["model"] else ", model=the_original_architecture"
    checked = "agrees with PyTorch on {:.2%} of real images (largest difference {:.2g})"
    for name, use, key in (
        (
            "model.safetensors",
            f'`amc.load("this folder"{given})` gives an ordinary `nn.Module` in '
            f"{literal(description['dtype'])}",
            None,
        ),
        ("model.onnx", "ONNX", "onnx"),
        ("model.pt2", "`torch.export.load(...).module()`", "pt2"),
    ):
        if name in files:
            note = f"- `{name}`: {use}"
            if key is not None and metrics[f"{key}_top1_agreement"] is not None:
                one = metrics[f"{key}_batch"] is not None
                note += ", one image at a time" if one else ", dynamic batch"
                agreement = metrics[f"{key}_top1_agreement"], metrics[f"{key}_max_abs_diff"]
                note += "; " + checked.format(*agreement)
            lines.append(note)
    for name, reason in metrics["failed_formats"].items():
        lines.append(f"- {name}: the network could not be exported ({code(reason)})")
    return "\n".join(lines)


def _made(description: Mapping[str, Any], run: Run, settings: FinetuneConfig | None) -> str:
    config, made = run.config, run.provenance
    program, *arguments = made["command"]
    name = Path(program).name
    command = shlex.join(["amc" if name == "__main__.py" else name, *arguments])
    torch = made["packages"].get("torch", "unknown")
    origin = "trained in the run" if config.model else "given from Python"
    weights = description["weights"] or config.weights or origin
    where = (
        f"amc {made['amc']}, torch {torch}, Python {made['python']}, "
        f"{made['machine'].get('processor')}, {made['started'][:10]}"
    ) + (f", commit {made['git_commit'][:12]}" if made["git_commit"] else "")
    lines = [
        f"- searched by {code(config.agent['name'])} in the action space "
        f"{code(config.space['name'])}, seed {config.seed}, run {code(run.path.name)}: "
        f"{code(command)}",
        f"- data: {literal(config.dataset or 'given from Python')}; weights before compression: "
        f"{literal(weights)}",
        "- " + literal(where),
    ]
    if settings is None:
        lines.append("- not fine-tuned")
    else:
        defaults = FinetuneConfig().model_dump()
        own = {k: v for k, v in settings.model_dump().items() if v != defaults[k]}
        changed = ", ".join(f"{key} {value}" for key, value in own.items())
        lines.append(f"- fine-tuned for {settings.epochs} epochs, learning rate {settings.lr:g}")
        lines[-1] += f" (not by default: {literal(changed)})" if changed else ""
    return "\n".join(lines)


def _strategy(description: Mapping[str, Any], space: CompressionSpace) -> str:
    rows = ["| decision | choice | of | keep ratio |", "|---|---|---|---|"]
    for decision in space.decisions:
        choice = description["strategy"][decision.name]
        ratio = space.encode(decision, choice)
        rows.append(
            f"| {literal(decision.name)} | {choice} | {decision.choices[-1]} | {ratio:.3f} |"
        )
    return "\n".join(rows)
