"""Pictures of runs."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.ticker import LogFormatter, MaxNLocator

from amc.analysis.compare import Comparison
from amc.analysis.pareto import Pareto
from amc.device.profile import DeviceProfile
from amc.files import write_bytes
from amc.views.axes import (
    draw_curves,
    draw_finetune,
    draw_pareto,
    draw_picks,
    draw_ratios,
    draw_search,
)
from amc.views.figures import figure_of

matplotlib.use("Agg")


def plot_search(lines: Sequence[dict[str, Any]], best: dict[str, Any], path: Path) -> None:
    """The search over its episodes; below, the keep ratios of the best strategy."""
    with _written(path, (9, 6.5)) as figure:
        top, bottom = figure.subplots(2, 1, height_ratios=(3, 2))
        draw_search(top, lines, best)
        draw_ratios(bottom, best)


def plot_range(found: Pareto, path: Path) -> None:
    """A search with a range of budgets: what each costs; below, what is kept within each."""
    with _written(path, (9, 7.5)) as figure:
        top, bottom = figure.subplots(2, 1, height_ratios=(3, 2))
        draw_pareto(top, found)
        top.set_title("What each budget costs, before fine-tuning")
        draw_picks(bottom, found.picks)
        bottom.set_title("The best strategy within each budget")


def plot_finetune(
    epochs: Sequence[Mapping[str, Any]], before: Mapping[str, Any], path: Path
) -> None:
    """A fine-tuning over its epochs: accuracy, and the loss in training."""
    with _written(path, (10, 4)) as figure:
        left, right = figure.subplots(1, 2)
        draw_finetune(left, epochs, before)
        x, losses = [row["epoch"] for row in epochs], [row["train_loss"] for row in epochs]
        right.plot(x, losses, ".-", color="#2b6cb0")
        right.set(xlabel="epoch", ylabel="loss", title="What is minimised, on training images")
        right.xaxis.set_major_locator(MaxNLocator(integer=True))


def plot_pareto(found: Pareto, path: Path) -> None:
    """Fronts of many runs."""
    with _written(path, (9, 5.5)) as figure:
        axes = figure.subplots()
        draw_pareto(axes, found)
        axes.set_title(
            "What each budget costs: best strategies, mean over seeds; grey: front of all"
        )


def plot_comparison(comparison: Comparison, path: Path) -> None:
    """What each algorithm's best strategy had by then, over evaluations and over seconds: the mean
    over seeds and its 95% interval.
    """
    with _written(path, (12, 5)) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        draw_curves(left, comparison, "evaluations")
        draw_curves(right, comparison, "seconds")
        right.set(xlabel="seconds, as measured in each run", ylabel="")
        figure.suptitle("Search algorithms on one problem: mean over seeds, 95% interval from 3 on")
        left.legend(fontsize=8, loc="lower right")


def plot_profile(profile: DeviceProfile, path: Path) -> None:
    """A device profile: predicted against measured latency of whole networks, and the times of the
    layers that take longest over their output channels.
    """
    with _written(path, (11, 5)) as figure:
        left, right = figure.subplots(1, 2)
        _plot_fidelity(left, profile)
        _plot_times(right, profile)
        threads = f"{profile.threads} thread{'s' if profile.threads > 1 else ''}"
        figure.suptitle(
            f"{profile.name}: {profile.runtime} {profile.runtime_version}, {threads}, "
            f"batch {profile.batch}"
        )


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
        for axis in (axes.xaxis, axes.yaxis):  # numbers without mathematics
            axis.set_major_formatter(LogFormatter())
            axis.set_minor_formatter(LogFormatter())
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
        family = times.family
        kernel, size = ("x".join(map(str, one)) for one in (family.kernel, family.output_size))
        label = f"{kernel} {family.kind}, {most} channels to {size}"
        axes.plot(times.out_channels, values, "o-", markersize=3, linewidth=1.2, label=label)
    axes.set(
        xlabel="output channels",
        ylabel="time (µs)",
        title="The layers that take longest",
    )
    axes.set_ylim(0, 1.45 * axes.get_ylim()[1])  # room for the legend
    axes.legend(fontsize=8, loc="upper left")


@contextmanager
def _written(path: Path, size: tuple[float, float]) -> Iterator[Any]:
    """A figure that is in a file, whole, once it is drawn."""
    with figure_of(size) as figure:
        yield figure
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=130)
    write_bytes(path, buffer.getvalue())
