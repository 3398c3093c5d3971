"""A forward pass in which the layers that mix channels are computed when their output is read, no
sooner: so that they can be solved for first, knowing what reads them.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from amc.network.kinds import kind_of
from amc.network.layers import evaluating, storage_key


@cache
def _keep_freed_memory() -> None:
    """Let the process keep the memory of freed activations for the next ones.

    glibc gives large blocks back at once and gets each anew from the kernel, page by page: a third
    of a sweep's time. Other C libraries have no ``mallopt``.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
        mallopt(mmap_threshold, 2**30)
        mallopt(trim_threshold, 2**31 - 1)


_ADDITIONS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)


@dataclass
class Open:
    """A mixer (or what it was factorised into) whose output is not computed yet."""

    layer: str
    module: nn.Module
    norm: nn.Module | None
    source: Tensor
    output: Tensor  # nothing was written to it yet, and nothing has read it

    @property
    def last(self) -> nn.Module:
        """What computes the output: the module, or its last part where it is factorised."""
        return self.module[-1] if isinstance(self.module, nn.Sequential) else self.module


class Deferring(TorchDispatchMode):
    """One forward pass in which mixers stay open until their output is read."""

    def __init__(
        self,
        model: nn.Module,
        folds: Mapping[str, str],
        mixers: Collection[str],
        memory_format: torch.memory_format,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model, self.memory_format = model, memory_format
        self.folds = folds
        self.open: dict[int, Open] = {}
        self._busy = False
        modules = dict(model.named_modules())
        self.mixers = {name: modules[name] for name in mixers}
        self.norms = {name: modules[norm] for name, norm in folds.items() if name in self.mixers}

    def close(self, item: Open, other: Tensor | None) -> None:
        """Called when ``item``'s output is read: by a sum with ``other``, or by anything else
        (None).
        """
        raise NotImplementedError

    def run(self, images: Tensor) -> None:
        _keep_freed_memory()
        with self._installed(), evaluating(self.model), self:
            output = self.model(images.contiguous(memory_format=self.memory_format))
            self._read(output, None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._busy and self.open:
            tensors = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)]
            is_sum = (
                func in _ADDITIONS
                and len(tensors) == 2
                and tensors[0].shape == tensors[1].shape
                and (kwargs or {}).get("alpha", 1) == 1
                and storage_key(tensors[0]) != storage_key(tensors[1])
            )
            if is_sum:
                one, two = tensors
                branch, other = (one, two) if storage_key(one) in self.open else (two, one)
                self._read(other, None)
                self._read(branch, other)
            else:
                self._read(tensors, None)
        return func(*args, **(kwargs or {}))

    def _read(self, values: Any, other: Tensor | None) -> None:
        for tensor in tree_iter(values):
            if isinstance(tensor, Tensor) and storage_key(tensor) in self.open:
                with self._quiet():
                    self.close(self.open.pop(storage_key(tensor)), other)

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        before, self._busy = self._busy, True
        try:
            yield
        finally:
            self._busy = before

    @contextmanager
    def _installed(self) -> Iterator[None]:
        waiting: dict[int, tuple[str, nn.Module, Tensor]] = {}

        def mixer_forward(name: str, module: nn.Module) -> Callable[[Tensor], Tensor]:
            def forward(x: Tensor) -> Tensor:
                self._read(x, None)
                with self._quiet():
                    output = _empty_output(module, x)
                if name in self.norms:
                    waiting[storage_key(output)] = (name, module, x)
                else:
                    self.open[storage_key(output)] = Open(name, module, None, x, output)
                return output

            return forward

        def norm_forward(norm: nn.Module) -> Callable[[Tensor], Tensor]:
            def forward(x: Tensor) -> Tensor:
                name, module, source = waiting.pop(storage_key(x))
                self.open[storage_key(x)] = Open(name, module, norm, source, x)
                return x

            return forward

        try:
            for name, module in self.mixers.items():
                module.forward = mixer_forward(name, module)
            for norm in self.norms.values():
                norm.forward = norm_forward(norm)
            yield
        finally:
            for module in [*self.mixers.values(), *self.norms.values()]:
                module.__dict__.pop("forward", None)


def compute(item: Open) -> Tensor:
    """What an open mixer's output is, with its weights as they are now."""
    module, norm, source = item.last, item.norm, item.source
    if isinstance(item.module, nn.Sequential):
        source = item.module[:-1](source)
    kind = kind_of(module)
    assert kind is not None
    return kind.output(module, source, norm)


def output_shape(module: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a layer's output; the layer may be factorised."""
    for part in module if isinstance(module, nn.Sequential) else [module]:
        kind = kind_of(part)
        assert kind is not None
        shape = kind.output_shape(part, shape)
    return shape


def _empty_output(module: nn.Module, x: Tensor) -> Tensor:
    shape = output_shape(module, tuple(x.shape))
    last = x.dim() == len(shape) == 4 and x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
