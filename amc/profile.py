"""Measure a device profile: the layers that an action space can make of a network, and how well
their sum predicts whole networks.

A layer is timed as the runtime runs it inside a network, with its BatchNorm and activation. Models
of 1 and of `COPIES` copies of it beside each other are timed in turn; their difference holds no
call overhead, and no conversion of the input's layout.

The grid of channel counts is adaptive: an interval is halved until linear interpolation is right to
`TOLERANCE` in its middle, and one legal width beside it (a staircase can be right in its middle).
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import Tensor, nn

from amc.cost.device import (
    DeviceProfile,
    Family,
    Fidelity,
    LatencyModel,
    LayerTimes,
    NetworkFit,
    Point,
)
from amc.errors import UserError
from amc.network.layers import LayerTable, example_input
from amc.network.trace import Network
from amc.progress import Report, silent
from amc.run import processor, write_bytes
from amc.runtime import Run, Runtime, interleaved, robust_spread
from amc.spaces.base import CompressionSpace, Strategy

COPIES = 5
TOLERANCE = 0.04  # of a layer's time, between the lines of the grid
FITTED, CHECKED = 16, 40  # whole networks that the overhead is fitted on, and that check it
_LARGEST = 64e6  # bytes of weights in the copies of one layer, unless two copies are more
_TOGETHER = 64  # models that are timed in turn, and the bytes of their weights
_TOGETHER_BYTES = 1e9
_SAVE_SECONDS = 10.0
_TIMER_MS = 2e-4  # what the clock and a call leave uncertain

T = TypeVar("T")
Pair = tuple[int, int]
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "hardtanh": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
    "elu": F.elu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "leaky_relu": F.leaky_relu,
}


@dataclass
class Widths:
    """The channel counts that the layers of one family can have."""

    ins: set[int] = field(default_factory=set)
    outs: set[int] = field(default_factory=set)


def widths_of(space: CompressionSpace) -> dict[Family, Widths]:
    """Every family that a space can make of its network, with its channel counts."""
    found: dict[Family, Widths] = {}
    alone = [{d.name: choice} for d in space.decisions for choice in d.choices]
    # where several decisions make one width, more widths come up together than one at a time
    together = [space.smallest, *random_strategies(space, 200, seed=0)]
    for strategy in (*alone, *together):
        for layer in space.resize(strategy):
            if layer.kind in ("conv", "linear"):
                widths = found.setdefault(Family.of(layer), Widths())
                widths.ins.add(layer.in_channels)
                widths.outs.add(layer.out_channels)
    return found


def step_of(space: CompressionSpace) -> int:
    """The number that all choices below the whole are multiples of."""
    return math.gcd(*(choice for d in space.decisions for choice in d.choices[:-1])) or 1


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

    def at(axis: int, width: int, other: int) -> Pair:
        if family.group is not None:
            return width, family.grouped_outputs(width)
        return (width, other) if axis == 0 else (other, width)

    legal = [sorted(widths.ins), sorted(widths.outs)]
    chosen: list[set[int]] = [set(), set()]
    missing: dict[Pair, None] = {}  # ordered
    for axis in (0,) if family.group is not None else (0, 1):
        values, others = legal[axis], legal[1 - axis]
        chosen[axis] = {*LayerTimes.knots(values), *lines[axis]}
        intervals = list(pairwise(sorted(chosen[axis])))
        while intervals:
            low, high = intervals.pop()
            inside = [value for value in values if low < value < high]
            probes = inside[len(inside) // 2 :][:2]
            ends = (others[0], others[-1])
            needs = [at(axis, v, o) for v in (low, *probes, high) for o in ends] if probes else []
            if lacking := [pair for pair in needs if pair not in known]:
                missing.update(dict.fromkeys(lacking))
                continue
            wrong = False
            for probe, other in product(probes, ends):
                a, b, c = (known[at(axis, v, other)].ms for v in (low, probe, high))
                error = abs(a + (c - a) * (probe - low) / (high - low) - b)
                wrong |= error > max(TOLERANCE * b, tolerance_ms)
            if wrong:
                chosen[axis].update(probes)
                intervals += pairwise([low, *probes, high])
    grid = [sorted(lines) for lines in chosen]
    if not missing:
        needed = LayerTimes.needed(family, *grid)
        missing.update(dict.fromkeys(pair for pair in needed if pair not in known))
    return grid[0], grid[1], list(missing)


class Copies(nn.Module):
    """Copies of one layer, beside each other on one input, each as it runs inside a network.

    Runtimes compute a sum and a ReLU with the convolution before them, so copies without or with a
    ReLU add up as at the end of a residual block, ``t = relu(layer(x) + t)``. Another activation is
    computed with the convolution only where it follows at once: there the outputs are averaged over
    the positions, and the averages added.
    """

    def __init__(self, family: Family, pair: Pair, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_layer(family, pair) for _ in range(count))
        names = [name for name in family.followed_by.split("+") if name in _ACTIVATIONS]
        self.activations = [_ACTIVATIONS[name] for name in names]
        self.sums_first = names in ([], ["relu"]) or family.kind == "linear"

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor | None = None
        for layer in self.layers:
            y = layer(x)
            if self.sums_first:
                total = self._activated(y if total is None else y + total)
            else:
                y = F.adaptive_avg_pool2d(self._activated(y), 1)
                total = y if total is None else y + total
        assert total is not None
        return total

    def _activated(self, x: Tensor) -> Tensor:
        for activation in self.activations:
            x = activation(x)
        return x


def _layer(family: Family, pair: Pair) -> nn.Module:
    """A layer of a family, with its BatchNorm where it has one."""
    norm = "batchnorm" in family.followed_by
    if family.kind == "linear":
        linear = nn.Linear(*pair)
        plain = family.input_size == (1, 1)
        return nn.Sequential(linear, nn.BatchNorm1d(pair[1])) if norm and plain else linear
    groups = 1 if family.group is None else pair[0] // family.group[0]
    conv = nn.Conv2d(
        *pair, family.kernel, family.stride, _padding(family), groups=groups, bias=not norm
    )
    return nn.Sequential(conv, nn.BatchNorm2d(pair[1])) if norm else conv


def _padding(family: Family) -> Pair:
    """The padding that gives the output its size."""
    sizes = zip(family.input_size, family.output_size, family.kernel, family.stride, strict=True)
    height, width = (max(0, -(-((o - 1) * s + k - i) // 2)) for i, o, k, s in sizes)
    return height, width


def layer_input(family: Family, in_channels: int, batch: int) -> Tensor:
    """Standard-normal input for a layer of a family."""
    shape: tuple[int, ...] = (batch, in_channels)
    if family.kind == "conv":
        pads = _padding(family)
        sizes = zip(family.output_size, family.stride, family.kernel, pads, strict=True)
        least = tuple((o - 1) * s + k - 2 * p for o, s, k, p in sizes)
        # a dilated convolution is timed as a plain one with the same output
        fits = all(
            (i - need) // s == 0
            for i, need, s in zip(family.input_size, least, family.stride, strict=True)
        )
        shape = (*shape, *(family.input_size if fits else least))
    elif family.input_size != (1, 1):
        shape = (batch, family.input_size[0] * family.input_size[1], in_channels)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def copies_of(family: Family, pair: Pair) -> int:
    """How many copies of a layer are timed against one."""
    return int(max(2, min(COPIES, _LARGEST // _bytes_of(family, pair))))


def _bytes_of(family: Family, pair: Pair) -> float:
    """Of the weights of one layer."""
    group = 1 if family.group is None else pair[0] // family.group[0]
    return 4.0 * pair[0] * pair[1] * math.prod(family.kernel) / group


def random_strategies(space: CompressionSpace, count: int, seed: int) -> list[dict[str, int]]:
    """Strategies spread from small to large: each decision's keep ratio is drawn around a ratio
    that is drawn for the strategy. The first one is untouched.
    """
    generator = np.random.default_rng(seed)
    strategies = [space.complete({})]
    while len(strategies) < count:
        centre = generator.uniform(0.1, 1.0)
        ratios = np.clip(centre + generator.uniform(-0.3, 0.3, len(space.decisions)), 0.01, 1.0)
        pairs = zip(space.decisions, ratios, strict=True)
        strategies.append({d.name: space.decode(d, float(ratio)) for d, ratio in pairs})
    return strategies


def fit_network(sums: Sequence[float], measured: Sequence[float], step: int) -> NetworkFit:
    """Overhead and scale by non-negative least squares on relative errors, from the first `FITTED`
    networks; the others check them. The first one is the untouched network.
    """
    x, y = np.array(sums), np.array(measured)
    fitted = np.arange(len(x)) < min(FITTED, len(x) // 2)
    rows = np.stack([np.ones_like(x), x], axis=1)[fitted] / y[fitted, None]
    (overhead, scale), _ = nnls(rows, np.ones(len(rows)))
    rest = ~fitted
    return NetworkFit(
        reference_ms=round(float(y[0]), 5),
        step=step,
        overhead_ms=round(float(overhead), 5),
        scale=round(float(scale), 5),
        fitted_on=len(rows),
        fidelity=Fidelity.of((overhead + scale * x[rest]).tolist(), y[rest].tolist()),
    )


def sum_of_layers(profile: DeviceProfile, table: LayerTable) -> float:
    """The sum of a table's layers in ms, without overhead and scale."""
    return LatencyModel(profile).latency_ms(table)


def measure_profile(
    space: CompressionSpace,
    runtime: Runtime,
    path: Path,
    batch: int = 1,
    seed: int = 0,
    report: Report = silent,
) -> DeviceProfile:
    """Measure one network for a device profile, into a file.

    A file that exists is added to; one whose measuring was stopped is gone on with. The file is
    written every few seconds.

    Args:
        space: bound to the network; its choices are what is measured.
        runtime: that runs the layers.
        path: of the profile's file.
        batch: images at once.
        seed: of the random strategies that check the profile.
        report: of progress.

    Raises:
        UserError: the file is of another runtime, or a layer cannot be run.
    """
    survey = _Survey(space, runtime, path, batch, report)
    try:
        survey.measure_layers()
    finally:
        survey.save()
    survey.measure_networks(seed)
    survey.save()
    return survey.profile


class _Survey:
    """The measuring of one network; what was measured so far is in ``profile``."""

    def __init__(
        self, space: CompressionSpace, runtime: Runtime, path: Path, batch: int, report: Report
    ) -> None:
        self.space, self.runtime, self.path, self.report = space, runtime, path, report
        self.batch = batch
        self.network = space.network
        self.profile = _opened(path, runtime, batch)
        self.widths = widths_of(space)
        self.points: dict[Family, dict[Pair, Point]] = {}
        self.lines: dict[Family, tuple[list[int], list[int]]] = {}
        for times in self.profile.layers:
            self.points[times.family] = {(p.in_channels, p.out_channels): p for p in times.points}
            self.lines[times.family] = (list(times.in_channels), list(times.out_channels))
        self.example = example_input(self.network.model, self.network.input_shape, batch)
        self.reference = runtime.prepare(self.network.model, self.example)
        known = self.profile.networks.get(self.network.name)
        self.reference_ms = known.reference_ms if known else self._measured_reference()
        self.saved = time.monotonic()

    def _measured_reference(self) -> float:
        value = round(float(np.median(interleaved([self.reference], rounds=30))), 5)
        self._set_fit(NetworkFit(reference_ms=value, step=step_of(self.space)))
        return value

    def measure_layers(self) -> None:
        """All points of all grids, in turn."""
        done = 0
        while todo := self._todo():
            sizes = [_bytes_of(*job) * (1 + copies_of(*job)) for job in todo]
            for chunk in _chunks(todo, sizes):
                # the number to come is known only as far as the grids are
                self.report("measuring layers", done, done + len(todo))
                self._measure(chunk)
                done += len(chunk)
                todo = todo[len(chunk) :]
                if time.monotonic() - self.saved > _SAVE_SECONDS:
                    self.save()
        self.report("measuring layers", done, done)

    def _todo(self) -> list[tuple[Family, Pair]]:
        todo = []
        tolerance_ms = _TIMER_MS + 1e-4 * self.reference_ms
        for family, widths in self.widths.items():
            known = self.points.setdefault(family, {})
            kept = self.lines.setdefault(family, ([], []))
            ins, outs, missing = plan(family, widths, known, tolerance_ms, kept)
            if not missing:
                self.lines[family] = (ins, outs)
            todo += [(family, pair) for pair in missing]
        return todo

    def _measure(self, jobs: Sequence[tuple[Family, Pair]]) -> None:
        runs, counts = [self.reference], []
        for family, pair in jobs:
            image = layer_input(family, pair[0], self.batch)
            counts.append(copies_of(family, pair))
            runs += [
                self.runtime.prepare(Copies(family, pair, count).eval(), image)
                for count in (1, counts[-1])
            ]
        times = self._drift_free(runs)
        for index, ((family, pair), count) in enumerate(zip(jobs, counts, strict=True)):
            each = (times[:, 2 * index + 1] - times[:, 2 * index]) / (count - 1)
            self.points[family][pair] = _point(pair, each)

    def _drift_free(self, runs: Sequence[Run]) -> NDArray[np.float64]:
        """Times (rounds, len(runs) - 1) as if the first run, the untouched network, had always
        taken as long as at the start.
        """
        times = interleaved(runs)
        return times[:, 1:] * (self.reference_ms / times[:, :1])

    def measure_networks(self, seed: int) -> None:
        """Random strategies of the network, whole: fit the overhead, and check the predictions."""
        strategies = random_strategies(self.space, FITTED + CHECKED, seed)
        measured: list[float] = []
        sizes = [4.0 * self.space.cost(strategy).params for strategy in strategies]
        for chunk in _chunks(strategies, sizes):
            self.report("measuring whole networks", len(measured), len(strategies))
            runs = [self.reference]
            for strategy in chunk:
                smaller = structure_of(self.space, strategy)
                runs.append(self.runtime.prepare(smaller, self.example))
            measured += np.median(self._drift_free(runs), axis=0).tolist()
        self.report("measuring whole networks", len(strategies), len(strategies))
        sums = [sum_of_layers(self.profile, self.space.resize(s)) for s in strategies]
        fit = fit_network(sums, measured, step_of(self.space))
        self._set_fit(fit)

    def _set_fit(self, fit: NetworkFit) -> None:
        networks = {**self.profile.networks, self.network.name: fit}
        self.profile = self.profile.model_copy(update={"networks": networks})

    def save(self) -> None:
        """Write the file."""
        layers = tuple(
            LayerTimes(
                family=family,
                in_channels=tuple(self.lines[family][0]),
                out_channels=tuple(self.lines[family][1]),
                points=tuple(points[pair] for pair in sorted(points)),
            )
            for family, points in self.points.items()
        )
        # made anew, not copied: a copy would keep what was computed from the old layers
        facts = {name: getattr(self.profile, name) for name in DeviceProfile.model_fields}
        self.profile = DeviceProfile(**{**facts, "layers": layers})
        write_bytes(self.path, self.profile.to_yaml().encode())
        self.saved = time.monotonic()


def structure_of(space: CompressionSpace, strategy: Strategy) -> nn.Module:
    """The network that a strategy makes, without repair: its time does not depend on weights."""
    return type(space).rebuild(space.network.model, space.describe(strategy)).eval()


def profile_path(device: str) -> Path:
    """The file of a device profile: NAME.yaml for a name."""
    return Path(device if device.endswith((".yaml", ".yml")) else f"{device}.yaml")


def time_of(runtime: Runtime, network: Network, batch: int = 1) -> float:
    """The median milliseconds of a whole network."""
    example = example_input(network.model, network.input_shape, batch)
    return float(np.median(interleaved([runtime.prepare(network.model, example)], rounds=30)))


def new_profile(name: str, runtime: str, version: str, threads: int, batch: int) -> DeviceProfile:
    """A profile of this machine, without any time yet."""
    return DeviceProfile(
        name=name,
        runtime=runtime,
        runtime_version=version,
        threads=threads,
        batch=batch,
        machine={
            "processor": processor(),
            "cores": os.cpu_count(),
            "platform": platform.platform(),
        },
        date=time.strftime("%Y-%m-%d"),
    )


def _opened(path: Path, runtime: Runtime, batch: int) -> DeviceProfile:
    if not path.is_file():
        return new_profile(path.stem, runtime.name, runtime.version, runtime.threads, batch)
    found = DeviceProfile.parse(path.read_text(encoding="utf-8"), str(path))
    for what, theirs, ours in (
        ("runtime", found.runtime, runtime.name),
        ("runtime's version", found.runtime_version, runtime.version),
        ("number of threads", found.threads, runtime.threads),
        ("batch", found.batch, batch),
        ("processor", found.machine.get("processor"), processor()),
    ):
        if theirs != ours:
            raise UserError(
                f"{str(path)!r} was measured with another {what} ({theirs}, not {ours}): give "
                "this device another name"
            )
    return found


def _point(pair: Pair, each: NDArray[np.float64]) -> Point:
    """Round to nanoseconds; noise may take a tiny layer below 0."""
    median = max(0.0, round(float(np.median(each)), 6))
    return Point(*pair, median, round(robust_spread(each), 6), len(each))


def _chunks(items: Sequence[T], sizes: Sequence[float]) -> Iterator[list[T]]:
    """As many at a time as are timed in turn."""
    chunk: list[T] = []
    total = 0.0
    for item, size in zip(items, sizes, strict=True):
        if chunk and (len(chunk) == _TOGETHER or total + size > _TOGETHER_BYTES):
            yield chunk
            chunk, total = [], 0.0
        chunk.append(item)
        total += size
    yield chunk
