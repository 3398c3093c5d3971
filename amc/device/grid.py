"""Which channel counts of a family of layers to measure.

The grid is adaptive: an interval is halved until linear interpolation is right to `TOLERANCE` in
its middle, and one legal width beside it (a staircase can be right in its middle).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise

from amc.device.layer_times import Family, LayerTimes, Point
from amc.device.reach import Widths

TOLERANCE = 0.04  # of a layer's time, between the lines of the grid

Pair = tuple[int, int]
"""Channels in and out."""
Axis = tuple[list[int], Callable[[int], list[Pair]]]
"""The legal widths of one axis, and where a width is looked at: at both ends of the other."""


def plan(
    family: Family,
    widths: Widths,
    known: Mapping[Pair, Point],
    tolerance_ms: float,
    lines: tuple[Iterable[int], Iterable[int]] = ((), ()),
) -> tuple[list[int], list[int], list[Pair]]:
    """The grid of one family as far as the known points tell, and the points it still needs.

    Args:
        family: what is measured.
        widths: the channel counts that are legal.
        known: the points measured so far.
        tolerance_ms: errors of interpolation below this do not matter.
        lines: lines that the grid has already.

    Returns:
        lines of input channels, lines of output channels (none in a grouped family), and the
        missing points; the grid is complete when none is missing.
    """
    ins, outs = sorted(widths.ins), sorted(widths.outs)
    if family.group is not None:
        axes: list[Axis] = [(ins, lambda width: [(width, family.grouped_outputs(width))])]
    else:
        axes = [
            (ins, lambda width: [(width, outs[0]), (width, outs[-1])]),
            (outs, lambda width: [(ins[0], width), (ins[-1], width)]),
        ]
    chosen: list[list[int]] = [[], []]
    missing: list[Pair] = []
    for number, (values, pairs_at) in enumerate(axes):
        start = {*LayerTimes.knots(values), *lines[number]}
        chosen[number], lacking = _refined(values, start, pairs_at, known, tolerance_ms)
        missing += lacking
    if not missing:
        missing = [p for p in LayerTimes.needed(family, *chosen) if p not in known]
    return chosen[0], chosen[1], list(dict.fromkeys(missing))


def _refined(
    values: list[int],
    start: set[int],
    pairs_at: Callable[[int], list[Pair]],
    known: Mapping[Pair, Point],
    tolerance_ms: float,
) -> tuple[list[int], list[Pair]]:
    """The lines of one axis, and the points that must be known to go on.

    Args:
        values: the legal widths, ascending.
        start: lines that the axis has in any case.
        pairs_at: where a width of this axis is looked at.
        known: the points measured so far.
        tolerance_ms: errors below this do not matter.
    """
    lines, missing = set(start), []
    intervals = list(pairwise(sorted(start)))
    while intervals:
        low, high = intervals.pop()
        inside = [value for value in values if low < value < high]
        probes = inside[len(inside) // 2 :][:2]
        columns = [pairs_at(width) for width in (low, *probes, high)] if probes else []
        if lacking := [pair for column in columns for pair in column if pair not in known]:
            missing += lacking
            continue
        parts = [(probe - low) / (high - low) for probe in probes]
        wrong = False
        for row in zip(*columns, strict=True):
            first, *middle, last = (known[pair].ms for pair in row)
            for part, ms in zip(parts, middle, strict=True):
                error = abs(first + (last - first) * part - ms)
                wrong |= error > max(TOLERANCE * ms, tolerance_ms)
        if wrong:
            lines.update(probes)
            intervals += pairwise([low, *probes, high])
    return sorted(lines), missing
