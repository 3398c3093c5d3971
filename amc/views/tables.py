"""Tables for people, on the console."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:  # the command line starts without torch
    from amc.analysis.compare import Comparison
    from amc.analysis.pareto import Pareto, Standing
    from amc.device.profile import DeviceProfile
    from amc.network.layers import LayerTable


def percent(fraction: float) -> str:
    """A fraction as people read it."""
    return f"{100 * fraction:.2f}%"


def comparison(title: str | None = None) -> Table:
    """An empty table of the baseline against the compressed network."""
    return Table("", "baseline", "compressed", "ratio", title=title)


def add_accuracy(table: Table, label: str, before: float, after: float) -> None:
    """A row of accuracies."""
    table.add_row(label, percent(before), percent(after), "")


def add_costs(table: Table, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Rows of the costs on paper; the predicted latency where a device is known."""
    from amc.cost.cost import LABELS, ON_PAPER

    for metric in ON_PAPER:
        ratio = after[metric] / before[metric]
        table.add_row(LABELS[metric], f"{before[metric]:,}", f"{after[metric]:,}", f"{ratio:.3f}")
    if before["latency_ms"] is not None:
        times = before["latency_ms"], after["latency_ms"]
        _add_times(table, "latency, predicted, ms", *times, times[1] / times[0])


def add_measured(table: Table, latency: dict[str, Any] | None) -> None:
    """What was measured, in turn, on this machine (`Problem.measured_latency`)."""
    if latency is not None:
        how = f"{latency['runtime']}, threads {latency['threads']}, batch {latency['batch']}"
        times = latency["baseline"], latency["compressed"]
        _add_times(table, f"latency, measured here, ms\n({how})", *times, latency["ratio"])


def _add_times(table: Table, label: str, before: float, after: float, ratio: float) -> None:
    table.add_row(label, f"{before:.3f}", f"{after:.3f}", f"{ratio:.3f}")


def finetuned(metrics: dict[str, Any]) -> Table:
    """A network before compression, after it, and after fine-tuning."""
    shown = Table("accuracy", "baseline", "compressed", "fine-tuned")
    for key, label in (("search_accuracy", "held-out"), ("test_accuracy", "test")):
        values = (metrics[f"{stage}{key}"] for stage in ("baseline_", "", "finetuned_"))
        shown.add_row(label, *("" if value is None else percent(value) for value in values))
    return shown


def layers(table: LayerTable, ms: float) -> Table:
    """What costs MACs: the layers, what belongs to no layer, and the whole network with its
    measured latency.
    """
    shown = Table()
    shown.add_column("layer", overflow="fold", min_width=12)
    for column in ("kind", "in", "out", "kernel", "output", "MACs", "params"):
        shown.add_column(column)
    for layer in table:
        if layer.is_weighted:
            kernel, size = ("x".join(map(str, pair)) for pair in (layer.kernel, layer.output_size))
            widths = str(layer.in_channels), str(layer.out_channels)
            counts = f"{layer.macs:,}", f"{layer.params:,}"
            shown.add_row(layer.name, layer.kind, *widths, kernel, size, *counts)
        elif layer.macs:
            counts = f"{layer.macs:,}", f"{layer.params:,}"
            shown.add_row(layer.name, "left alone", "", "", "", "", *counts)
    shown.add_row("the rest", "", "", "", "", "", *_rest(table))
    total = f"{table.macs:,}", f"{table.params:,}"
    shown.add_row(f"all: {ms:.3f} ms", "", "", "", "", "", *total, style="bold")
    return shown


def _rest(table: LayerTable) -> tuple[str, str]:
    """MACs and parameters that no row shows."""
    shown = sum(layer.params for layer in table if layer.macs)
    return f"{table.rest.macs:,}", f"{table.params - shown:,}"


def fidelity(profile: DeviceProfile) -> Table:
    """How well a device profile predicts the networks that it was checked on."""
    shown = Table()
    shown.add_column("network", overflow="fold", min_width=16)
    for column in ("ms", "strategies", "median error", "worst", "rank correlation"):
        shown.add_column(column, justify="right")
    for name, fit in profile.networks.items():
        found = fit.fidelity
        if found is not None:
            errors = percent(found.median_ape), percent(found.worst_ape)
            numbers = f"{fit.reference_ms:.3f}", str(found.strategies)
            shown.add_row(name, *numbers, *errors, f"{found.spearman:.3f}")
    return shown


def picks(found: Pareto) -> Table:
    """What one run delivers within each budget, and in which episode."""
    shown = Table()
    for column in ("within", f"{found.metric} ratio", "search accuracy", "episode"):
        shown.add_column(column, justify="left" if column == "within" else "right")
    for pick in found.picks:
        point = pick.point
        ratio, accuracy = f"{point.ratio:.3f}", percent(point.search_accuracy)
        shown.add_row(pick.budget, ratio, accuracy, str(point.episode))
    return shown


def hypervolumes(rows: Sequence[Standing]) -> Table:
    """Every algorithm's front in one number."""
    shown = Table("agent", pad_edge=False)
    for column in ("seeds", "hypervolume", "of the best"):
        shown.add_column(column, justify="right")
    for row in rows:
        half = "" if math.isnan(row.low) else f" ± {(row.high - row.low) / 2:.4f}"
        shown.add_row(
            row.agent, str(row.seeds), f"{row.hypervolume:.4f}{half}", percent(row.relative)
        )
    return shown


def standings(comparison: Comparison) -> Table:
    """Every algorithm over its seeds, and how far it is behind the best one."""
    rows = comparison.standings()
    pairs = {pair.second: pair for pair in comparison.pairs() if pair.first == rows[0].label}
    scale = 100 if comparison.measure == "search_accuracy" else 1
    what = "accuracy (%)" if scale == 100 else comparison.measure
    digits = 2 if scale == 100 else 4

    def text(mean: float, low: float, high: float) -> str:
        interval = "" if math.isnan(low) else f" ± {scale * (high - low) / 2:.{digits}f}"
        return f"{scale * mean:.{digits}f}{interval}"

    shown = Table(pad_edge=False)  # 80 columns are enough
    shown.add_column("agent", overflow="fold", min_width=8)
    for column in ("runs", "s", what, "behind", "effect", "p"):
        shown.add_column(column, justify="right", no_wrap=column in (what, "behind"))
    for row in rows:
        against = ("", "", "")
        if (pair := pairs.get(row.label)) is not None:
            behind = text(pair.difference, pair.low, pair.high)
            against = behind, f"{pair.effect:+.2f}", f"{pair.p:.2f}"
        counts = f"{row.seeds} x {row.evaluations}", f"{row.seconds:.0f}"
        shown.add_row(row.label, *counts, text(row.mean, row.low, row.high), *against)
    return shown
