"""What a layer table costs on paper: macs, params, memory_bytes, and milliseconds where a device is
known.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, Protocol, get_args

from amc.network.layers import LayerTable

Metric = Literal["macs", "params", "memory_bytes", "latency_ms"]
LABELS: dict[Metric, str] = {  # for people
    "macs": "MACs",
    "params": "parameters",
    "memory_bytes": "memory, bytes",
    "latency_ms": "latency, ms",
}
ON_PAPER: tuple[Metric, ...] = ("macs", "params", "memory_bytes")  # known without a device
METRICS: tuple[Metric, ...] = get_args(Metric)


class LatencyModel(Protocol):
    """What predicts the latency of a network on a device."""

    def latency_ms(self, table: LayerTable) -> float:
        """Milliseconds of one run."""


@dataclass(frozen=True)
class Cost:
    """The costs of one network for one image. 1 MAC (multiply-accumulate) = 2 FLOPs."""

    macs: int
    params: int
    memory_bytes: int  # weights plus the peak of live activations, fp32
    latency_ms: float | None = None  # on a measured device only

    def __getitem__(self, metric: Metric) -> float:
        """One of the costs, by name.

        Raises:
            ValueError: the metric is latency_ms and there is no device.
        """
        value: float | None = getattr(self, metric)
        if value is None:
            raise ValueError(f"{metric} is not known without a device")
        return value

    def as_dict(self) -> dict[str, float | None]:
        return asdict(self)

    def ratios(self, original: Cost) -> dict[str, float | None]:
        """Each cost as a part of the original's."""
        pairs = {metric: (getattr(self, metric), getattr(original, metric)) for metric in METRICS}
        return {metric: None if a is None or not b else a / b for metric, (a, b) in pairs.items()}


def cost_of(table: LayerTable, latency: LatencyModel | None = None) -> Cost:
    """The costs of a layer table; milliseconds only with a device's latency model."""
    params = table.params
    latency_ms = None if latency is None else latency.latency_ms(table)
    return Cost(table.macs, params, 4 * params + table.activations.peak_bytes(), latency_ms)
