"""The layer table: frozen facts about every layer of a network, and what asks a module for them.

- `LayerSpec`   one layer
- `Activations` the buffers that are alive while the network runs
- `LayerTable`  both, in execution order; `amc.network.trace` writes it
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from math import prod
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amc.compute import full_precision

KindName = Literal["conv", "linear", "channelwise", "other"]

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class LayerSpec:
    """Facts about one layer. ``conv`` and ``linear`` mix channels and cost MACs; ``channelwise``
    (BatchNorm, PReLU) holds parameters for each channel; ``other`` is the rest that has parameters:
    its costs are as they are.
    """

    name: str
    kind: KindName
    in_channels: int
    out_channels: int
    kernel: tuple[int, ...] = (1, 1)  # as many numbers as a convolution has axes; else two
    stride: tuple[int, ...] = (1, 1)
    groups: int = 1
    input_size: tuple[int, ...] = (1, 1)  # height, width; or length; or depth, height, width
    output_size: tuple[int, ...] = (1, 1)
    per_channel_params: int = 0  # bias, or gamma and beta
    fixed_params: int = 0  # of kind "other"
    fixed_macs: int = 0  # likewise
    repeats: int = 1  # how often one image passes it in one call (windows, regions, frames)
    shared: bool = (
        False  # a further call of a layer that the table already has: MACs, but no parameters
    )
    step: int = 0  # which operation of the forward pass computed it
    followed_by: str = ""  # what a runtime may compute with it: "batchnorm+relu"
    transposed: bool = False  # a transposed convolution, which multiplies at input positions

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates for one image. 1 MAC = 2 FLOPs; biases and normalisation are not
        counted.
        """
        positions = prod(self.input_size if self.transposed else self.output_size)
        return self.repeats * positions * self._weights + self.fixed_macs

    @cached_property
    def params(self) -> int:
        if self.shared:
            return 0
        return self._weights + self.out_channels * self.per_channel_params + self.fixed_params

    @property
    def _weights(self) -> int:
        if self.kind not in ("conv", "linear"):
            return 0
        return self.out_channels * (self.in_channels // self.groups) * prod(self.kernel)


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
        sizes = [4 * p.out_channels * prod(p.output_size) for _, p in inner]
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


@dataclass(frozen=True)
class Rest:
    """What a network costs apart from its layers: attention products, functional calls, parameters
    of no layer or of one that is not executed. No decision changes it.
    """

    macs: int = 0
    params: int = 0
    uncounted: tuple[str, ...] = ()  # operations whose MACs nobody knows: "operation in module"
    uncounted_share: float = 0.0  # of the time of a forward pass here that they take

    @property
    def doubt(self) -> str:
        """What the costs leave out; nothing where they are whole."""
        if not self.uncounted:
            return ""
        return (
            f"nobody can count the MACs of {', '.join(self.uncounted)}: about "
            f"{100 * self.uncounted_share:.0f}% of the network's time here is in no cost and in no "
            "budget"
        )


@dataclass(frozen=True, eq=False)
class LayerTable:
    """All layers in execution order, the rest of the network, and the activations that flow between
    them.
    """

    layers: tuple[LayerSpec, ...]
    activations: Activations
    folds: tuple[tuple[str, str], ...] = ()  # (layer, the BatchNorm that alone reads its output)
    rest: Rest = Rest()
    alone: Mapping[str, str] = field(default_factory=dict)  # layer -> why surgery leaves it alone
    # (writer, reader): layers of kind conv or linear that read what others write, with none of
    # these between them (`amc.network.flow`)
    edges: tuple[tuple[str, str], ...] = ()

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
        activations = self.activations.splitting(split)
        edges = tuple(self._edges_between(parts))
        return replace(self, layers=tuple(layers), activations=activations, edges=edges)

    def _edges_between(self, parts: Mapping[str, Sequence[LayerSpec]]) -> Iterator[tuple[str, str]]:
        """The edges when layers are replaced: what was read is read by the first part, what was
        written is written by the last.
        """
        first = {layer: inside[0].name for layer, inside in parts.items()}
        last = {layer: inside[-1].name for layer, inside in parts.items()}
        yield from ((last.get(one, one), first.get(other, other)) for one, other in self.edges)
        for inside in parts.values():
            yield from pairwise(part.name for part in inside)

    @property
    def macs(self) -> int:
        """Of the whole network, for one image."""
        return sum(layer.macs for layer in self.layers) + self.rest.macs

    @property
    def params(self) -> int:
        """Of the whole network."""
        return sum(layer.params for layer in self.layers) + self.rest.params


def example_input(
    model: nn.Module, input_shape: tuple[int, ...], batch: int = 1, seed: int = 0
) -> Tensor:
    """Standard-normal images of shape (batch, *input_shape) on the network's device and in its
    dtype.
    """
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn((batch, *input_shape), generator=generator, device="cpu")
    return image.to(like.device, like.dtype)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients and whole float32 inside; every module's own mode is back
    afterwards.

    Attention is computed by its layers, not by one operator that goes around them.
    """
    modes = [(module, module.training) for module in model.modules()]
    around = torch.backends.mha.get_fastpath_enabled()
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), full_precision():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(around)
        for module, mode in modes:
            module.training = mode


def tensors_in(values: Any) -> Iterator[Tensor]:
    """The tensors in tuples, lists and dicts, in order: arguments and results of operations."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, tuple | list):
        for value in values:
            yield from tensors_in(value)
    elif isinstance(values, dict):
        for value in values.values():
            yield from tensors_in(value)


def storage_key(tensor: Tensor) -> int:
    """What tells the memory of two tensors apart; views and in-place results share it."""
    return int(tensor.untyped_storage()._cdata)
