"""Measure a device profile: the layers that an action space can make of a network, and how well
their sum predicts whole networks.

A layer is timed as the runtime runs it inside a network, with its BatchNorm and activation. Models
of 1 and of `COPIES` copies of it beside each other are timed in turn; their difference holds no
call overhead, and no conversion of the input's layout.
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from amc.device.copies import Copies, bytes_of, copies_of, layer_input
from amc.device.grid import Pair, plan
from amc.device.layer_times import Family, LayerTimes, Point
from amc.device.profile import DeviceProfile, Fidelity, NetworkFit, converted_mb
from amc.device.reach import random_strategies, step_of, structure_of, timed_layers, widths_of
from amc.device.runtimes import Run, Runtime, interleaved, median_ms, processor, robust_spread
from amc.errors import UserError
from amc.files import write_bytes
from amc.network.layers import example_input
from amc.network.trace import Network
from amc.progress import Report, silent
from amc.randomness import own_randomness
from amc.spaces.base import CompressionSpace

FITTED, CHECKED = 24, 40  # whole networks that the overhead is fitted on, and that check it
BLOCKS = (1, 4, 8, 16, 32)  # of channels, in which runtimes hold activations; 1: no conversion
_TOGETHER = 64  # models that are timed in turn, and the bytes of their weights
_TOGETHER_BYTES = 1e9
_SAVE_SECONDS = 10.0
_TIMER_MS = 2e-4  # what the clock and a call leave uncertain

T = TypeVar("T")


Layers = Sequence[tuple[LayerTimes, int, int]]
"""The layers of a network: their family's times, channels in and out."""


def fit_network(networks: Sequence[Layers], measured: Sequence[float], step: int) -> NetworkFit:
    """Fit overhead, scale and conversion by non-negative least squares on relative errors, with the
    block of channels that fits best, on the first `FITTED` networks; the others check them.

    The first one is the untouched network. Budgets are ratios of it, so its error counts as much as
    all the others'.
    """
    y = np.array(measured)
    sums = [sum(times.ms(a, b) for times, a, b in layers) for layers in networks]
    fitted = min(FITTED, len(y) // 2)
    weights = np.ones(fitted)
    weights[0] = math.sqrt(max(1, fitted - 1))
    best: tuple[float, int, NDArray[np.float64], NDArray[np.float64]] | None = None
    for block in BLOCKS:
        converted = [sum(converted_mb(t.family, a, block) for t, a, _ in net) for net in networks]
        x = np.stack([np.ones_like(y), sums, converted], axis=1)
        rows = x[:fitted] * (weights / y[:fitted])[:, None]
        solution, residual = nnls(rows, weights)
        if best is None or residual < 0.98 * best[0]:  # a smaller block where it is as good
            best = residual, block, solution, x @ solution
    assert best is not None
    _, block, (overhead, scale, conversion), predicted = best
    return NetworkFit(
        reference_ms=round(float(y[0]), 5),
        step=step,
        overhead_ms=round(float(overhead), 5),
        scale=round(float(scale), 5),
        block=block,
        conversion_ms_per_mb=round(float(conversion), 5),
        fitted_on=fitted,
        fidelity=Fidelity.of(predicted[fitted:].tolist(), y[fitted:].tolist()),
    )


@own_randomness()
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
        value = round(median_ms(self.reference), 5)
        self._set_fit(NetworkFit(reference_ms=value, step=step_of(self.space)))
        return value

    def measure_layers(self) -> None:
        """All points of all grids, in turn."""
        done = 0
        while todo := self._todo():
            sizes = [bytes_of(*job) * (1 + copies_of(*job)) for job in todo]
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
            spread = robust_spread(each)
            self.points[family][pair] = Point.of(pair, float(np.median(each)), spread, len(each))

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
        times = self.profile.by_family
        networks = [
            [(times[family], ins, outs) for family, ins, outs in timed_layers(table)]
            for table in map(self.space.resize, strategies)
        ]
        self._set_fit(fit_network(networks, measured, step_of(self.space)))

    def _set_fit(self, fit: NetworkFit) -> None:
        networks = {**self.profile.networks, self.network.name: fit}
        self.profile = self.profile.changed(networks=networks)

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
        self.profile = self.profile.changed(layers=layers)
        write_bytes(self.path, self.profile.to_yaml().encode())
        self.saved = time.monotonic()


def profile_path(device: str) -> Path:
    """The file of a device profile: NAME.yaml for a name."""
    return Path(device if device.endswith((".yaml", ".yml")) else f"{device}.yaml")


def time_of(runtime: Runtime, network: Network, batch: int = 1) -> float:
    """The median milliseconds of a whole network."""
    example = example_input(network.model, network.input_shape, batch)
    return median_ms(runtime.prepare(network.model, example))


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
    found = DeviceProfile.read(path)
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
