"""Sequential repair: one forward sweep over the calibration images through the network as pruned so
far.

Every mixer's output (with the BatchNorm that alone reads it) is left open until something reads it.
Then its weights are solved on the inputs it really gets now. Where the reader is a sum (a residual
connection), the target is the ORIGINAL SUM minus the other branch as it is now, so that a branch
also makes good what the shortcut has lost (He, Zhang, Sun, ICCV 2017, section 3.3, found here for
any network by watching the additions). Otherwise the target is the layer's own original output.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from amc.network.groups import Side
from amc.network.kinds import kind_of
from amc.network.kinds.base import kept
from amc.network.layers import evaluating, storage_key
from amc.network.trace import Network
from amc.repair.factors import Factoring, refit
from amc.repair.regression import RIDGE, regress
from amc.repair.rows import Sampler, can_shift, flat_weight, move_bias, set_flat_weight


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
class _Open:
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


class _Sweep(TorchDispatchMode):
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
        self.open: dict[int, _Open] = {}
        self._busy = False
        modules = dict(model.named_modules())
        self.mixers = {name: modules[name] for name in mixers}
        self.norms = {name: modules[norm] for name, norm in folds.items() if name in self.mixers}

    def close(self, item: _Open, other: Tensor | None) -> None:
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
                    self.open[storage_key(output)] = _Open(name, module, None, x, output)
                return output

            return forward

        def norm_forward(norm: nn.Module) -> Callable[[Tensor], Tensor]:
            def forward(x: Tensor) -> Tensor:
                name, module, source = waiting.pop(storage_key(x))
                self.open[storage_key(x)] = _Open(name, module, norm, source, x)
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


def compute(item: _Open) -> Tensor:
    """What an open mixer's output is, with its weights as they are now."""
    module, norm, source = item.last, item.norm, item.source
    if isinstance(item.module, nn.Sequential):
        source = item.module[:-1](source)
    if isinstance(module, nn.Conv2d) and isinstance(norm, nn.modules.batchnorm._BatchNorm):
        statistics: Any = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        # one pass over the output instead of two
        weight, bias = fuse_conv_bn_weights(module.weight, module.bias, *statistics)
        folded: Tensor = module._conv_forward(source, weight, bias)
        return folded
    output: Tensor = type(module).forward(module, source)
    if norm is not None:
        output = type(norm).forward(norm, output)
    return output


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


class Targets(_Sweep):
    """What the unpruned network computes at the sampled positions: layer -> rows (images *
    positions, out), and of sums likewise.
    """

    def __init__(self, network: Network, images: Tensor, sampler: Sampler) -> None:
        folds = dict(network.table.folds)
        super().__init__(network.model, folds, network.solvable, network.memory_format)
        self.sampler = sampler
        self.outputs: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}
        self._rows: dict[str, list[Tensor]] = {}
        self._summed_rows: dict[str, list[Tensor]] = {}
        self._first = 0
        size = network.table.activations.batch_size()
        for self._first in range(0, len(images), size):
            self.run(images[self._first : self._first + size])
        self.outputs = {layer: torch.cat(self._rows.pop(layer)) for layer in list(self._rows)}
        self.sums = {
            layer: torch.cat(self._summed_rows.pop(layer)) for layer in list(self._summed_rows)
        }

    def close(self, item: _Open, other: Tensor | None) -> None:
        convolved: Tensor = type(item.module).forward(item.module, item.source)
        rows = self.sampler.outputs(item.layer, item.module, convolved, self._first)
        self._rows.setdefault(item.layer, []).append(rows)
        item.output.set_(compute(item))  # type: ignore[call-overload]
        if other is not None:
            rows = self.sampler.outputs(item.layer, item.module, item.output + other, self._first)
            self._summed_rows.setdefault(item.layer, []).append(rows)


class SequentialRepair(_Sweep):
    """Repairs a cut network in place, layer by layer, in one forward pass over all calibration
    images.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Targets,
        cuts: Mapping[str, Mapping[Side, list[int]]],
        factorings: Mapping[str, Factoring] | None = None,
        ridge: float = RIDGE,
    ) -> None:
        """Bind a sweep.

        Args:
            model: cut and factorised, its weights not repaired.
            targets: of the original network.
            cuts: which channels of which layer were removed.
            factorings: how which layer was factorised.
            ridge: see `ridge_solve`.
        """
        super().__init__(model, targets.folds, targets.mixers, targets.memory_format)
        self.targets, self.cuts, self.ridge = targets, cuts, ridge
        self.factorings = factorings or {}
        self._changed = False  # until something was cut, inputs are the original ones

    def close(self, item: _Open, other: Tensor | None) -> None:
        cut = bool(self.cuts.get(item.layer, {}).get("in"))
        self._changed = self._changed or cut or item.layer in self.factorings
        if self._changed:
            self._solve(item, other)
        item.output.set_(compute(item))  # type: ignore[call-overload]

    def _solve(self, item: _Open, other: Tensor | None) -> None:
        last, wanted = item.last, self._target(item, other)
        patches = partial(self.targets.sampler.inputs, item.layer)
        bias = getattr(last, "bias", None)
        if bias is not None:
            wanted = wanted - bias.detach()
        shiftable = can_shift(last, item.norm)
        if isinstance(item.module, nn.Sequential):
            shift = refit(
                item.module,
                self.factorings[item.layer],
                item.source,
                wanted,
                patches,
                shiftable,
                self.ridge,
            )
        else:
            rows = patches(last, item.source)
            start, images = flat_weight(last), len(item.source)
            fit = regress(rows, wanted, start, images, self.ridge, shiftable)
            set_flat_weight(last, fit.weight)
            shift = fit.shift(fit.weight)
        if shiftable:
            move_bias(last, item.norm, shift)

    def _target(self, item: _Open, other: Tensor | None) -> Tensor:
        """What the mixer itself should give, rows (images * positions, out)."""
        sampler, layer = self.targets.sampler, item.layer
        width = self.targets.outputs[layer].shape[1]
        stay = kept(width, self.cuts.get(layer, {}).get("out", []))
        own = self.targets.outputs[layer][:, stay]
        if other is None or layer not in self.targets.sums:
            return own
        branch = self.targets.sums[layer][:, stay] - sampler.outputs(layer, item.last, other)
        if item.norm is None:
            return branch
        norm = item.norm
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
        assert norm.running_var is not None and norm.running_mean is not None
        sigma = (norm.running_var + norm.eps).sqrt()
        gamma = torch.ones_like(sigma) if norm.weight is None else norm.weight.detach()
        beta = torch.zeros_like(sigma) if norm.bias is None else norm.bias.detach()
        alive = gamma.abs() > 1e-3 * gamma.abs().max()
        scale = sigma / torch.where(alive, gamma, torch.ones_like(gamma))
        inverse = branch.mul_(scale).add_(norm.running_mean - beta * scale)
        return inverse if alive.all() else torch.where(alive, inverse, own)
