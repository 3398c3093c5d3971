"""Device profiles: measured times of layers on one device with one runtime, and what a network
would take there.

- `DeviceProfile`  all families, and how well their sum predicts whole networks; a readable file
- `LatencyModel`   a profile with the overhead of one network: milliseconds of a layer table
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from pydantic import Field

from amc.device.layer_times import Count, Facts, Family, LayerTimes, Ms
from amc.errors import UserError, shown, unknown
from amc.network.layers import LayerSpec, LayerTable
from amc.reading import parse_yaml, read_text, typed

SCHEMA = 1
MAX_ERROR = 0.15  # of the median prediction: beyond it a profile is not to be trusted
MIN_RANK_CORRELATION = 0.9


class Fidelity(Facts):
    """How well a profile predicts: random strategies of a network that had no part in the fit."""

    strategies: int
    median_ape: float  # absolute percentage error, as a fraction
    worst_ape: float
    spearman: float
    pairs: tuple[tuple[float, float], ...]  # (predicted, measured) ms

    @classmethod
    def of(cls, predicted: Sequence[float], measured: Sequence[float]) -> Fidelity:
        from scipy.stats import spearmanr

        errors = np.abs(np.array(predicted) / np.array(measured) - 1)
        rank = float(spearmanr(predicted, measured).statistic)
        return cls(
            strategies=len(errors),
            median_ape=round(float(np.median(errors)), 5),
            worst_ape=round(float(errors.max()), 5),
            spearman=round(rank, 5),
            pairs=tuple(
                (round(p, 5), round(m, 5)) for p, m in zip(predicted, measured, strict=True)
            ),
        )

    @property
    def trusted(self) -> bool:
        return self.median_ape <= MAX_ERROR and self.spearman >= MIN_RANK_CORRELATION


class NetworkFit(Facts):
    """What a whole network takes: ``overhead_ms``, ``scale`` times each layer, and
    ``conversion_ms_per_mb`` for the input of each convolution that does not fill whole blocks.

    Runtimes hold activations in blocks of channels. A layer whose input channels are no multiple of
    ``block`` is read through a conversion, which no layer shows when it is measured alone.
    """

    reference_ms: Ms  # the untouched network, measured
    step: Count = 1  # channel counts were measured in multiples of this
    overhead_ms: Annotated[float, Field(ge=-1e9, le=1e9)] = 0.0
    scale: Annotated[float, Field(ge=-1e6, le=1e6)] = 1.0
    block: Count = 1
    conversion_ms_per_mb: Annotated[float, Field(ge=-1e9, le=1e9)] = 0.0
    fitted_on: Annotated[int, Field(ge=0, le=10**6)] = 0  # strategies
    fidelity: Fidelity | None = None


class DeviceProfile(Facts):
    """A target device: measured times of layers on it, with one runtime."""

    version: int = Field(SCHEMA, description="of the file's schema")
    name: str
    runtime: str
    runtime_version: str
    threads: Count
    batch: Count
    dtype: str = "float32"
    machine: dict[str, str | int | None]
    date: str
    networks: dict[str, NetworkFit] = {}
    layers: tuple[LayerTimes, ...] = ()

    @classmethod
    def parse(cls, text: str, source: str) -> DeviceProfile:
        """The inverse of `to_yaml`.

        Raises:
            UserError: it is not a profile, or of another schema.
        """
        values = parse_yaml(text, source)
        if isinstance(values, dict) and values.get("version", SCHEMA) != SCHEMA:
            raise UserError(
                f"the device profile {source!r} is of version {shown(values['version'])}; this "
                f"program reads version {SCHEMA}"
            )
        return typed(cls, values, source)

    @classmethod
    def read(cls, path: Path) -> DeviceProfile:
        """The profile in a file; see `parse`."""
        return cls.parse(read_text(path), str(path))

    def changed(self, **facts: Any) -> DeviceProfile:
        """This profile with other facts. Made anew: a copy would keep what was computed from the
        old ones.
        """
        own = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**{**own, **facts})

    def to_yaml(self) -> str:
        """The readable file."""
        values = self.model_dump(mode="json", exclude_defaults=False)
        return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=120)

    @cached_property
    def by_family(self) -> dict[Family, LayerTimes]:
        return {times.family: times for times in self.layers}

    def latency_model(self, network: str) -> LatencyModel:
        """The model of one network; of one that was not measured, with the others' medians."""
        fit = self.networks.get(network)
        if fit is None:
            fits = list(self.networks.values()) or [NetworkFit(reference_ms=0.0)]
            overhead, scale = (
                float(np.median([getattr(fit, name) for fit in fits]))
                for name in ("overhead_ms", "scale")
            )
            fit = NetworkFit(reference_ms=0.0, overhead_ms=overhead, scale=scale)
        return LatencyModel(self, fit)

    def doubts(
        self, network: str, step: int, runtime: tuple[str, str] | None, processor: str
    ) -> list[str]:
        """Why predictions for a network may be wrong, a sentence each.

        Args:
            network: its name.
            step: the channel counts of the search are multiples of it.
            runtime: name and version of the runtime that is installed here, if any.
            processor: of this machine.
        """
        fit = self.networks.get(network)
        found = []
        if fit is None or fit.fidelity is None:
            found.append(f"it was never checked against whole networks of {network!r}")
        elif not fit.fidelity.trusted:
            found.append(
                f"its predictions for {network!r} are not to be trusted: median error "
                f"{fit.fidelity.median_ape:.1%} (at most {MAX_ERROR:.0%}), rank correlation "
                f"{fit.fidelity.spearman:.3f} (at least {MIN_RANK_CORRELATION})"
            )
        if fit is not None and step % fit.step:
            found.append(
                f"it was measured for channels in steps of {fit.step}, the search has steps of "
                f"{step}"
            )
        if runtime is None:
            found.append(f"it was made for {self.runtime}, which is not installed here")
        elif runtime != (self.runtime, self.runtime_version):
            found.append(
                f"it was made for {self.runtime} {self.runtime_version}, here is "
                f"{runtime[0]} {runtime[1]}"
            )
        if processor != self.machine.get("processor"):
            found.append(
                f"it was measured on {self.machine.get('processor')}: what is measured here, on "
                f"{processor}, is another device"
            )
        return found


class LatencyModel:
    """Milliseconds of a layer table: a profile's times of its layers, put together as in a
    `NetworkFit`.
    """

    def __init__(self, profile: DeviceProfile, fit: NetworkFit) -> None:
        self.profile, self.fit = profile, fit
        self._known: dict[LayerSpec, float] = {}

    def layer_ms(self, layer: LayerSpec) -> float:
        """One convolution or linear layer with what is fused into it; 0 for any other.

        Raises:
            UserError: the profile has no such layer.
        """
        if layer.kind not in ("conv", "linear"):
            return 0.0
        if layer not in self._known:
            times = self.profile.by_family.get(Family.of(layer))
            if times is None:
                raise UserError(
                    f"the device profile {self.profile.name!r} has no time for layer "
                    f"{layer.name!r} ({Family.of(layer)}): measure this network with `amc profile`"
                )
            alone = times.ms(layer.in_channels, layer.out_channels)
            conversion = self.fit.conversion_ms_per_mb * converted_mb(
                times.family, layer.in_channels, self.fit.block
            )
            self._known[layer] = layer.repeats * (self.fit.scale * alone + conversion)
        return self._known[layer]

    def latency_ms(self, table: LayerTable) -> float:
        """The predicted median for a whole network."""
        return self.fit.overhead_ms + sum(map(self.layer_ms, table.layers))


def converted_mb(family: Family, in_channels: int, block: int) -> float:
    """Megabytes of a convolution's input (one image), where it does not fill whole blocks."""
    if family.kind != "conv" or in_channels % block == 0:
        return 0.0
    return 4e-6 * in_channels * prod(family.input_size)


def devices() -> list[str]:
    """The names of the profiles that come with the package."""
    folder = importlib.resources.files("amc.configs").joinpath("devices")
    names = [item.name for item in folder.iterdir()] if folder.is_dir() else []
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def load_device(name: str) -> DeviceProfile:
    """A profile by name (one of `devices`, or NAME.yaml in the current folder) or by file.

    Raises:
        UserError: there is none, or the file is damaged.
    """
    for path in (Path(name), Path(f"{name}.yaml")):
        if path.is_file():
            return DeviceProfile.read(path)
    if name not in devices():
        raise unknown("device", name, [*devices(), "a file that `amc profile` wrote"])
    folder = importlib.resources.files("amc.configs").joinpath("devices")
    return DeviceProfile.parse(folder.joinpath(f"{name}.yaml").read_text(encoding="utf-8"), name)
