"""Pictures of runs."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from amc.compare import Axis, Comparison
from amc.cost.device import DeviceProfile
from amc.evaluate.evaluator import Outcome
from amc.files import write_bytes
from amc.pareto import HANDCRAFTED, Pareto

matplotlib.use("Agg")

HANDFUL = 3  # evaluations that are no curve yet
SHADED = 3  # seeds; the interval of two (Student's t: 12.7 standard errors) hides all else

_PHASES = {"warmup": ("#9aa5b1", "random warm-up"), "explore": ("#2b6cb0", "agent")}


def plot_search(lines: Sequence[dict[str, Any]], best: dict[str, Any], path: Path) -> None:
    """Search accuracy over the episodes, the best so far, uniform and the baseline; below, the keep
    ratios of the best strategy.
    """
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    top, bottom = figure.subplots(2, 1, height_ratios=(3, 2))
    for phase in dict.fromkeys(line["phase"] for line in lines if line["phase"] != "uniform"):
        chosen = [line for line in lines if line["phase"] == phase]
        color, label = _PHASES.get(phase, ("#2b6cb0", phase))
        for raced in (False, True):
            own = [line for line in chosen if (line.get("stopped_after") is not None) == raced]
            x = [line["episode"] for line in own]
            y = [100 * line["search_accuracy"] for line in own]
            name = f"{label}, stopped early: an estimate" if raced else label
            alpha = 0.3 if raced else 1.0
            if own:
                top.plot(x, y, ".", color=color, label=name, markersize=4, alpha=alpha)
    walked = [line for line in lines if Outcome.from_line(line).can_be_best]
    running = np.maximum.accumulate([100 * line["search_accuracy"] for line in walked])
    top.plot(
        [*(line["episode"] for line in walked), lines[-1]["episode"]],
        [*running, running[-1]],
        color="#1a202c",
        linewidth=1.2,
        label="best accuracy so far",
    )
    for line in lines:
        if line["phase"] == "uniform":
            top.axhline(
                100 * line["search_accuracy"],
                color="#dd6b20",
                linestyle="--",
                label="uniform at the budget",
            )
    base = 100 * best["baseline"]["search_accuracy"]
    top.axhline(base, color="#38a169", linestyle=":", label="before compression")
    accuracies = [100 * line["search_accuracy"] for line in lines]
    top.set_ylim(max(0.0, float(np.percentile(accuracies, 5)) - 2), max(base, *accuracies) + 1)
    top.set(
        xlabel="episode",
        ylabel="search accuracy (%)",
        title="Search: accuracy on held-out images, before fine-tuning",
    )
    top.legend(fontsize=8, loc="lower right")
    _plot_ratios(bottom, best)
    _write(figure, path)


def plot_finetune(
    epochs: Sequence[Mapping[str, Any]], before: Mapping[str, Any], path: Path
) -> None:
    """A fine-tuning over its epochs: accuracy on the held-out images (where there are none, on the
    training images as they are augmented), with what it was before; and the loss in training.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    x = [row["epoch"] for row in epochs]
    heldout = epochs[0]["heldout_accuracy"] is not None
    accuracies = [row["heldout_accuracy" if heldout else "train_accuracy"] for row in epochs]
    label = "held-out" if heldout else "training, augmented"
    left.plot(x, [100 * value for value in accuracies], ".-", color="#2b6cb0", label=label)
    if heldout:
        for key, color, label in (
            ("baseline_search_accuracy", "#38a169", "uncompressed"),
            ("search_accuracy", "#dd6b20", "before fine-tuning"),
        ):
            left.axhline(100 * before[key], color=color, linestyle="--", label=label)
    left.set(ylabel="accuracy (%)", title="Fine-tuning")
    left.legend(fontsize=8)
    right.plot(x, [row["train_loss"] for row in epochs], ".-", color="#2b6cb0")
    right.set(ylabel="loss", title="What is minimised, on augmented images")
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _write(figure, path)


def plot_comparison(comparison: Comparison, path: Path) -> None:
    """What each algorithm's best strategy had by then, over evaluations and over seconds: the mean
    over seeds and its 95% interval.
    """
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    draw_curves(left, comparison, "evaluations")
    draw_curves(right, comparison, "seconds")
    right.set(xlabel="seconds, as measured in each run", ylabel="")
    figure.suptitle("Search algorithms on one problem: mean over seeds, 95% interval from 3 on")
    left.legend(fontsize=8, loc="lower right")
    _write(figure, path)


def draw_curves(
    axes: Any, comparison: Comparison, over: Axis, colors: Mapping[str, str] | None = None
) -> None:
    """The curves of a comparison, with intervals from three seeds on; of an algorithm with hardly
    an episode, a level.

    Args:
        axes: matplotlib's.
        comparison: to draw.
        over: evaluations or seconds.
        colors: algorithm -> color, where several pictures are to agree.
    """
    scale = 100 if comparison.measure == "search_accuracy" else 1
    what = "search accuracy (%)" if scale == 100 else comparison.measure
    levels = []
    for number, band in enumerate(comparison.bands(over)):
        color = (colors or {}).get(band.label, f"C{number % 10}")
        name = f"{band.label} ({band.seeds} seed{'s' if band.seeds > 1 else ''})"
        mean, low, high = scale * band.mean, scale * band.low, scale * band.high
        if band.evaluations > HANDFUL:
            style = "-" if number < 10 else "--"
            axes.step(band.x, mean, style, where="post", color=color, linewidth=1.6, label=name)
            if band.seeds < SHADED:
                low = high = mean
            axes.fill_between(band.x, low, high, step="post", color=color, alpha=0.15, linewidth=0)
        else:
            axes.axhline(mean[-1], color=color, linestyle=":", linewidth=1.2, label=name)
        levels += [mean[-1], mean[len(mean) // 10]]
    span = max(levels) - min(levels) + 1e-9
    axes.set_ylim(min(levels) - 0.1 * span, max(levels) + 0.15 * span)
    axes.set(xlabel=over, ylabel=f"{what} of the best so far")


def plot_pareto(found: Pareto, path: Path) -> None:
    """What each agent's runs delivered over their cost, the front of all their strategies, and the
    uncompressed network.
    """
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    front = [*((100 * p.ratio, 100 * p.search_accuracy) for p in found.front)]
    axes.step(*zip(*front, strict=True), where="post", color="0.75", linewidth=1, zorder=1)
    for number, curve in enumerate(found.curves()):
        handmade = curve.agent in HANDCRAFTED
        x, mean, low, high = (
            np.array([100 * getattr(part, name) for part in curve.delivered])
            for name in ("ratio", "mean", "low", "high")
        )
        seeds = max(part.seeds for part in curve.delivered)
        several = seeds > 1 and not handmade
        axes.errorbar(
            x,
            mean,
            yerr=np.nan_to_num([mean - low, high - mean]) if seeds >= SHADED else None,
            color=f"C{number % 10}",
            fmt="s--" if handmade else "o-",
            markersize=4,
            linewidth=1.1 if handmade else 1.8,
            capsize=3,
            label=f"{curve.agent} ({seeds} seeds)" if several else curve.agent,
        )
    axes.plot(100, 100 * found.accuracy, "*", color="black", markersize=14, zorder=5)
    axes.annotate(
        f"uncompressed: {100 * found.accuracy:.2f}%",
        (100, 100 * found.accuracy),
        (-10, -4),
        textcoords="offset points",
        ha="right",
    )
    unit = {"macs": "MACs", "params": "parameters", "memory_bytes": "bytes", "latency_ms": "ms"}
    original = f"{found.original:,}" if found.metric != "latency_ms" else f"{found.original:.3g}"
    axes.set(
        xlabel=f"% of the uncompressed network's {original} {unit[found.metric]}",
        ylabel="search accuracy (%), before fine-tuning",
        title="What each budget costs: best strategies, mean over seeds; grey: the front of all",
    )
    axes.grid(alpha=0.25)
    axes.legend(fontsize=9, loc="lower right")
    _write(figure, path)


def plot_profile(profile: DeviceProfile, path: Path) -> None:
    """A device profile: predicted against measured latency of whole networks, and the times of the
    layers that take longest over their output channels.
    """
    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _plot_fidelity(left, profile)
    _plot_times(right, profile)
    threads = f"{profile.threads} thread{'s' if profile.threads > 1 else ''}"
    figure.suptitle(
        f"{profile.name}: {profile.runtime} {profile.runtime_version}, {threads}, "
        f"batch {profile.batch}"
    )
    _write(figure, path)


def _plot_fidelity(axes: Any, profile: DeviceProfile) -> None:
    for name, fit in profile.networks.items():
        if fit.fidelity is not None:
            predicted, measured = zip(*fit.fidelity.pairs, strict=True)
            error = f"median error {fit.fidelity.median_ape:.1%}"
            axes.plot(measured, predicted, "o", markersize=4, alpha=0.7, label=f"{name}: {error}")
    times = [fit.fidelity.pairs for fit in profile.networks.values() if fit.fidelity is not None]
    ends = [np.min(np.concatenate(times)), np.max(np.concatenate(times))]
    axes.plot(ends, ends, color="#718096", linewidth=1, zorder=0)
    if len(profile.networks) > 1:
        axes.set(xscale="log", yscale="log")
    axes.set(
        xlabel="measured (ms)",
        ylabel="predicted (ms)",
        title="Random strategies, whole networks",
    )
    axes.legend(fontsize=8, loc="upper left")


def _plot_times(axes: Any, profile: DeviceProfile) -> None:
    wide = [times for times in profile.layers if len(times.out_channels) > 2]
    for times in sorted(wide, key=lambda t: t.ms(t.in_channels[-1], t.out_channels[-1]))[-5:]:
        most = times.in_channels[-1]
        values = [1e3 * times.ms(most, width) for width in times.out_channels]
        (height, width), kernel = times.family.output_size, times.family.kernel[0]
        label = f"{kernel}x{kernel} {times.family.kind}, {most} channels to {height}x{width}"
        axes.plot(times.out_channels, values, "o-", markersize=3, linewidth=1.2, label=label)
    axes.set(
        xlabel="output channels",
        ylabel="time (µs)",
        title="The layers that take longest",
    )
    axes.set_ylim(0, 1.45 * axes.get_ylim()[1])  # room for the legend
    axes.legend(fontsize=8, loc="upper left")


def _write(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    write_bytes(path, buffer.getvalue())


def _plot_ratios(axes: Any, best: dict[str, Any]) -> None:
    names, ratios = list(best["strategy"]), best["ratios"]
    kinds = [name.partition(":")[2] or "channels" for name in names]
    for kind, color in zip(dict.fromkeys(kinds), ("#2b6cb0", "#dd6b20", "#38a169"), strict=False):
        places = [place for place, own in enumerate(kinds) if own == kind]
        axes.bar(places, [ratios[place] for place in places], color=color, label=kind)
    several = len(set(kinds)) > 1
    if several:
        axes.legend(fontsize=8, loc="upper right", ncols=3)
    axes.set(
        ylim=(0, 1.3 if several else 1.05),  # room for the legend
        ylabel="keep ratio",
        title=f"Best strategy: episode {best['episode']} ({best['phase']})",
    )
    step = max(1, len(names) // 40)
    axes.set_xticks(range(0, len(names), step), names[::step], rotation=90, fontsize=7)
