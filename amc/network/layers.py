"""The layer table: frozen facts about every layer of a network, and what asks a module for them.

- `LayerSpec`   one layer
- `Activations` the buffers that are alive while the network runs
- `LayerTable`  both, in execution order; `amc.network.trace` writes it
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amc.network.torchvision_compat import FrozenBatchNorm2d

Kind = Literal["conv", "linear", "channelwise", "other"]

IntArray = NDArray[np.int64]


@runtime_checkable
class LinkedModule(Protocol):
    """A module that keeps channels apart in a way only it knows, and that can cut itself (a padded
    shortcut, say).
    """

    def channel_links(self) -> list[tuple[int, int]]:
        """Pairs (input channel, output channel) that must live or die together."""

    def cut(self, remove_in: list[int], remove_out: list[int]) -> None:
        """Shrink, in place, by the given channels (ascending)."""


@dataclass(frozen=True)
class LayerSpec:
    """Facts about one layer. ``conv`` and ``linear`` mix channels and cost MACs; ``channelwise``
    (BatchNorm, PReLU) holds parameters for each channel; ``other`` is the rest that has parameters.
    """

    name: str
    kind: Kind
    in_channels: int
    out_channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    groups: int = 1
    input_size: tuple[int, int] = (1, 1)  # height, width
    output_size: tuple[int, int] = (1, 1)
    per_channel_params: int = 0  # bias, or gamma and beta
    fixed_params: int = 0  # of kind "other"
    shared: bool = (
        False  # a further call of a layer that the table already has: MACs, but no parameters
    )
    step: int = 0  # which operation of the forward pass computed it
    followed_by: str = ""  # what a runtime may compute with it: "batchnorm+relu"

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates for one image. 1 MAC = 2 FLOPs; biases and normalisation are not
        counted.
        """
        if self.kind not in ("conv", "linear"):
            return 0
        return self.output_size[0] * self.output_size[1] * self._weights

    @cached_property
    def params(self) -> int:
        if self.shared:
            return 0
        return self._weights + self.out_channels * self.per_channel_params + self.fixed_params

    @property
    def _weights(self) -> int:
        if self.kind not in ("conv", "linear"):
            return 0
        return (
            self.out_channels * (self.in_channels // self.groups) * self.kernel[0] * self.kernel[1]
        )


@dataclass(frozen=True, eq=False)
class Activations:
    """The buffers of one forward pass (batch 1, fp32): how many bytes, born at which operation,
    last read at which.

    A buffer is a storage: views and in-place operations share one. It is free after its last
    reader.
    """

    bytes: IntArray
    born: IntArray
    dies: IntArray

    def live_bytes(self) -> IntArray:
        """The bytes that are alive at each operation, shape (operations + 1,)."""
        change = np.zeros(int(self.dies.max(initial=0)) + 2, dtype=np.int64)
        np.add.at(change, self.born, self.bytes)
        np.add.at(change, self.dies + 1, -self.bytes)
        return np.cumsum(change)

    def peak_bytes(self) -> int:
        """The most bytes alive at any operation."""
        return int(self.live_bytes().max())

    def splitting(self, parts: Mapping[int, Sequence[LayerSpec]]) -> Activations:
        """The activations when operations become several, with a buffer between two of them.

        Args:
            parts: operation -> the layers that take its place, in execution order.
        """
        steps = np.array(sorted(parts), dtype=np.int64)
        extra = np.array([len(parts[step]) - 1 for step in steps], dtype=np.int64)
        before = np.concatenate([[0], np.cumsum(extra)])
        later = before[np.searchsorted(steps, self.born, side="right")]
        last = before[np.searchsorted(steps, self.dies, side="left")]
        inner = [
            (at + i, p)
            for at, step in zip(steps + before[:-1], steps, strict=True)
            for i, p in enumerate(parts[step][:-1])
        ]
        sizes = [4 * p.out_channels * p.output_size[0] * p.output_size[1] for _, p in inner]
        at = np.array([step for step, _ in inner], dtype=np.int64)
        return Activations(
            np.concatenate([self.bytes, np.array(sizes, dtype=np.int64)]),
            np.concatenate([self.born + later, at]),
            np.concatenate([self.dies + np.maximum(later, last), at + 1]),
        )

    def batch_size(self) -> int:
        """How many images at once: about 100 MB of activations (measured: larger batches leave the
        cache).
        """
        return int(min(100, max(4, 100e6 // max(1, self.peak_bytes()))))


@dataclass(frozen=True, eq=False)
class LayerTable:
    """All layers in execution order, and the activations that flow between them."""

    layers: tuple[LayerSpec, ...]
    activations: Activations
    folds: tuple[tuple[str, str], ...] = ()  # (layer, the BatchNorm that alone reads its output)

    def __iter__(self) -> Iterator[LayerSpec]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, name: str) -> LayerSpec:
        return self.by_name[name]

    @property
    def by_name(self) -> dict[str, LayerSpec]:
        return {layer.name: layer for layer in self.layers}

    def replacing(self, parts: Mapping[str, Sequence[LayerSpec]]) -> LayerTable:
        """The table when layers are replaced by others, one after the other.

        Args:
            parts: layer -> the layers that take its place, in execution order. What follows the
                layer follows the last of them.
        """
        layers: list[LayerSpec] = []
        split = {layer.step: parts[layer.name] for layer in self.layers if layer.name in parts}
        shift = 0
        for layer in self.layers:
            step = layer.step + shift
            if layer.name not in parts:
                layers.append(replace(layer, step=step) if shift else layer)
                continue
            *inner, last = parts[layer.name]
            layers += [replace(part, step=step + i, followed_by="") for i, part in enumerate(inner)]
            layers.append(replace(last, step=step + len(inner), followed_by=layer.followed_by))
            shift += len(inner)
        return LayerTable(tuple(layers), self.activations.splitting(split))

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    @property
    def params(self) -> int:
        return sum(layer.params for layer in self.layers)


def example_input(
    model: nn.Module, input_shape: tuple[int, ...], batch: int = 1, seed: int = 0
) -> Tensor:
    """Standard-normal images of shape (batch, *input_shape) on the network's device and in its
    dtype.
    """
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((batch, *input_shape), generator=generator).to(like.device, like.dtype)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; every module's own mode is back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def is_channelwise(module: nn.Module) -> bool:
    """Whether a module holds one set of parameters for each channel and lets channels pass without
    mixing them.
    """
    if isinstance(module, nn.PReLU):
        return module.num_parameters > 1
    return isinstance(
        module,
        (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, FrozenBatchNorm2d),
    )


def is_mixer(module: nn.Module) -> bool:
    """Whether a layer mixes all its input channels: a linear layer or an ungrouped convolution."""
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def storage_key(tensor: Tensor) -> int:
    """What tells the memory of two tensors apart; views and in-place results share it."""
    return int(tensor.untyped_storage()._cdata)


def output_shape(module: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a layer's output for an input of that shape, without computing it."""
    if isinstance(module, nn.Sequential):
        for part in module:
            input_shape = output_shape(part, input_shape)
        return input_shape
    if isinstance(module, nn.Linear):
        return (*input_shape[:-1], module.out_features)
    if isinstance(module, nn.Conv2d):
        pads = module._reversed_padding_repeated_twice  # left, right, top, bottom
        sizes = [
            (size + sum(pad) - dilation * (kernel - 1) - 1) // stride + 1
            for size, pad, dilation, kernel, stride in zip(
                input_shape[2:],
                (pads[2:], pads[:2]),
                module.dilation,
                module.kernel_size,
                module.stride,
                strict=True,
            )
        ]
        return (input_shape[0], module.out_channels, *sizes)
    return tuple(type(module).forward(module, torch.empty(input_shape, device="meta")).shape)
