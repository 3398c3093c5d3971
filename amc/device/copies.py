"""Models that time one layer as it runs inside a network."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amc.device.grid import Pair
from amc.device.layer_times import Family

COPIES = 5
_LARGEST = 64e6  # bytes of weights in the copies of one layer, unless two copies are more

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


_POOLS: tuple[Callable[..., Tensor], ...] = (
    F.adaptive_avg_pool1d,
    F.adaptive_avg_pool2d,
    F.adaptive_avg_pool3d,
)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


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
            if not self.sums_first:
                y = _POOLS[y.dim() - 3](self._activated(y), 1)
            total = y if total is None else y + total
            if self.sums_first:
                total = self._activated(total)
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
    axes = len(family.kernel) - 1
    given: Any = (*pair, family.kernel, family.stride, _padding(family))
    more: dict[str, Any] = {"groups": family.groups(pair[0]), "bias": not norm}
    if family.kind == "transposed conv":
        more["output_padding"] = _output_padding(family)
        conv: nn.Module = _TRANSPOSED[axes](*given, **more)
    else:
        conv = _CONVOLUTIONS[axes](*given, **more)
    return nn.Sequential(conv, _NORMS[axes](pair[1])) if norm else conv


def _padding(family: Family) -> tuple[int, ...]:
    """The padding that gives the output its size."""
    small, large = family.input_size, family.output_size
    if family.kind == "conv":
        small, large = large, small
    sizes = zip(small, large, family.kernel, family.stride, strict=True)
    return tuple(max(0, -(-((i - 1) * s + k - o) // 2)) for i, o, k, s in sizes)


def _output_padding(family: Family) -> tuple[int, ...]:
    """Of a transposed convolution, with that padding. A dilated one is timed as a plain one with
    the same input.
    """
    sides = (family.input_size, family.output_size, family.kernel, family.stride, _padding(family))
    sizes = zip(*sides, strict=True)
    return tuple(min(s - 1, max(0, o - (i - 1) * s - k + 2 * p)) for i, o, k, s, p in sizes)


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
    elif family.kind == "transposed conv":
        shape = (*shape, *family.input_size)
    elif family.input_size != (1, 1):
        shape = (batch, family.input_size[0] * family.input_size[1], in_channels)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def copies_of(family: Family, pair: Pair) -> int:
    """How many copies of a layer are timed against one."""
    return int(max(2, min(COPIES, _LARGEST // bytes_of(family, pair))))


def bytes_of(family: Family, pair: Pair) -> float:
    """Of the weights of one layer."""
    return 4.0 * pair[0] * pair[1] * math.prod(family.kernel) / family.groups(pair[0])
