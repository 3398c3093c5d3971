"""What sees one forward pass: every operation, and every call of a layer through its hooks."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from amc.errors import UserError
from amc.network.flops import is_composite, is_uncounted, macs_of
from amc.network.flow import Flow
from amc.network.kinds import is_batchnorm, is_batchnorm_like, kind_of
from amc.network.kinds.base import Kind, has_own_weight, own_numel
from amc.network.layers import Activations, LayerSpec, LayerTable, Rest, storage_key, tensors_in
from amc.network.specs import spec_of

_ACTIVATIONS = frozenset(
    ("relu", "hardtanh", "silu", "hardswish", "gelu", "elu", "sigmoid", "tanh", "leaky_relu")
)


@dataclass
class _Buffer:
    bytes: int
    born: int
    dies: int
    readers: int = 0


@dataclass
class _Call:
    """A call of a layer that has begun."""

    name: str
    macs: int = 0  # of its own operations, not of a layer that it calls


@dataclass
class Recorder(TorchDispatchMode):
    """Writes down one forward pass; `hooks` tell it where a layer begins and ends."""

    model: nn.Module
    foreign: set[int] = field(default_factory=set)  # storages that it must not compute with
    is_foreign: bool = False
    step: int = 0
    specs: list[LayerSpec] = field(default_factory=list)
    buffers: dict[int, _Buffer] = field(default_factory=dict)
    alone: dict[str, str] = field(default_factory=dict)  # layer -> why surgery leaves it alone
    # a freed storage's address would be used again
    _kept: list[Tensor] = field(default_factory=list)
    _outputs: dict[int, str] = field(default_factory=dict)  # storage -> the layer that made it
    _folds: list[tuple[str, str, int]] = field(default_factory=list)
    # storage -> which of the specs it comes from, through BatchNorms, sums and activations only
    _origin: dict[int, int] = field(default_factory=dict)
    _flow: Flow = field(default_factory=Flow)
    _calls: Counter[str] = field(default_factory=Counter)
    _counted: set[int] = field(default_factory=set)  # parameters that a row has
    _uncounted: dict[str, None] = field(default_factory=dict)
    _uncounted_seconds: float = 0.0
    _seconds: float = 0.0

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        tensors = [*self.model.parameters(), *self.model.buffers()]
        self.weights = {storage_key(tensor) for tensor in tensors}
        self._constant = set(self.weights)  # and what is computed of them alone: no activations
        self._stack = [_Call("")]
        self._owners: dict[int, list[str]] = {}
        for name, module in self.model.named_modules():
            for parameter in module.parameters(recurse=False):
                self._owners.setdefault(id(parameter), []).append(name)

    # operations

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if is_composite(func):  # as PyTorch's counter does: what it is made of may have a formula
            with self:
                parts = func.decompose(*args, **(kwargs or {}))
            if parts is not NotImplemented:
                return parts
        start = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        seconds = time.perf_counter() - start
        self.step += 1
        read = list(tensors_in((args, kwargs)))
        is_constant = bool(read) and all(storage_key(tensor) in self._constant for tensor in read)
        for tensor in read:
            self._read(tensor)
        for tensor in tensors_in(result):
            if is_constant:
                self._constant.add(storage_key(tensor))
                self._kept.append(tensor)
            self.add(tensor)
        self._stack[-1].macs += macs_of(func, args, kwargs, result)
        if is_uncounted(func, (args, kwargs), self.weights):
            where = self._stack[-1].name
            name = func.overloadpacket.__name__
            self._uncounted.setdefault(f"{name} in {where}" if where else name)
            self._uncounted_seconds += seconds
        self._seconds += seconds
        self._follow(func, args, result)
        self._flow.operation(func, (args, kwargs), result)
        return result

    def _read(self, tensor: Tensor) -> None:
        key = storage_key(tensor)
        self.is_foreign = self.is_foreign or key in self.foreign
        if key in self.buffers:
            self.buffers[key].dies = self.step
            self.buffers[key].readers += 1

    def _follow(self, func: Any, args: Any, result: Any) -> None:
        """Note an activation, or a sum before one, behind a layer."""
        operation = func.overloadpacket.__name__.removesuffix("_")
        if operation != "add" and operation not in _ACTIVATIONS:
            return
        keys = [storage_key(arg) for arg in args if isinstance(arg, Tensor)]
        origin = max((self._origin[key] for key in keys if key in self._origin), default=None)
        if origin is not None:
            self._origin[storage_key(result)] = origin
            if operation != "add":
                self._add_follower(origin, operation)

    def _add_follower(self, origin: int, what: str) -> None:
        spec = self.specs[origin]
        if what not in spec.followed_by.split("+"):
            parts = [part for part in (spec.followed_by, what) if part]
            self.specs[origin] = replace(spec, followed_by="+".join(parts))

    def add(self, tensor: Tensor) -> None:
        """Note a buffer that is seen for the first time."""
        key = storage_key(tensor)
        if not tensor.numel():
            self._kept.append(tensor)
        elif key not in self._constant and key not in self.buffers:
            element = 4 if tensor.is_floating_point() else tensor.element_size()
            size = tensor.untyped_storage().nbytes() // tensor.element_size() * element
            self.buffers[key] = _Buffer(size, self.step, self.step)
            self._kept.append(tensor)

    def finish(self, output: Any) -> None:
        """The outputs live to the end."""
        for tensor in tree_iter(output):
            if isinstance(tensor, Tensor) and storage_key(tensor) in self.buffers:
                buffer = self.buffers[storage_key(tensor)]
                buffer.dies, buffer.readers = self.step, buffer.readers + 1

    # layers

    @staticmethod
    def is_row(module: nn.Module) -> bool:
        """Whether a module gets a row of the table: surgery knows it, or it holds parameters."""
        kind = kind_of(module)
        known = kind is not None and kind.name != "linked"
        own = next(module.parameters(recurse=False), None)  # of no elements, too
        return known or own is not None or hasattr(module, "parametrizations")

    def hooks(self, name: str) -> tuple[Callable[..., None], Callable[..., None]]:
        """To be called before and after the forward of a layer."""

        def begin(module: nn.Module, inputs: Any) -> None:
            self._stack.append(_Call(name))

        def end(module: nn.Module, inputs: Any, named: Any, output: Any) -> None:
            call = self._stack.pop()
            self._calls[name] += 1
            number = self._calls[name]
            own = name if number == 1 else f"{name}@{number}"
            spec = self._spec(own, module, (inputs, named), output, call.macs)
            self.specs.append(replace(spec, shared=number > 1, step=self.step))
            self._counted.update(id(p) for p in module.parameters(recurse=False))
            if spec.kind != "other":
                self._relate(own, module, inputs[0], output)

        return begin, end

    def _spec(
        self, own: str, module: nn.Module, given: tuple[Any, Any], output: Any, macs: int
    ) -> LayerSpec:
        """A row for a call; of kind "other" where it is not what surgery takes it for."""
        why = self._why_not(module, given, output)
        if not why:
            spec = spec_of(own, module, given[0][0], output, macs)
            if spec.macs == macs and spec.params == own_numel(module):
                return spec
            computes = "its forward computes something else than its type"
            why = computes if spec.macs != macs else "it holds parameters of another shape"
        if macs:
            self.alone.setdefault(own.split("@", maxsplit=1)[0], why)
        parameters = module.parameters(recurse=False)
        count = sum(p.numel() for p in parameters if id(p) not in self._counted)
        return LayerSpec(own, "other", 0, 0, fixed_params=count, fixed_macs=macs)

    def _why_not(self, module: nn.Module, given: tuple[Any, Any], output: Any) -> str:
        """Why surgery cannot change a layer that is called so; nothing where it can."""
        kind = kind_of(module)
        if kind is None and hasattr(module, "weight") and not has_own_weight(module):
            return "its weights are computed from others (a parametrisation or a mask)"
        if kind is None:
            return f"a {type(module).__name__} is of no kind that can be decided"
        for parameter in module.parameters(recurse=False):
            owners = sorted(set(self._owners[id(parameter)]))
            if len(owners) > 1:
                names = ", ".join(map(repr, owners))
                return f"its weights are shared: {names} hold the same ones"
        return self._why_no_call(kind, module, given, output)

    @staticmethod
    def _why_no_call(kind: Kind, module: nn.Module, given: tuple[Any, Any], output: Any) -> str:
        """Why a call is not one of a layer of that kind; nothing where it is."""
        inputs, named = given
        if len(list(tensors_in(given))) != 1 or named or not isinstance(inputs[0], Tensor):
            return "it is called with other arguments than one input"
        if not isinstance(output, Tensor):
            return "its output is not a tensor"
        dim = kind.dim(module)
        if inputs[0].dim() < kind.least_dims(module) or output.dim() != inputs[0].dim():
            return f"its input has {inputs[0].dim()} dimensions"
        if (inputs[0].shape[dim], output.shape[dim]) != kind.widths(module):
            return "its channels are not where its type has them"
        return ""

    def _relate(self, own: str, module: nn.Module, source: Tensor, output: Tensor) -> None:
        """What a BatchNorm follows, and what a layer's output becomes."""
        if self.specs[-1].is_weighted:
            self._flow.layer(own, source, output)
            self._outputs[storage_key(output)] = own
            self._origin[storage_key(output)] = len(self.specs) - 1
            return
        if is_batchnorm_like(module):
            if storage_key(source) in self._outputs:
                self._folds.append((self._outputs[storage_key(source)], own, storage_key(source)))
            origin = self._origin.get(storage_key(source))
            if origin is not None:
                self._origin[storage_key(output)] = origin
                self._add_follower(origin, "batchnorm")

    # what came out

    @property
    def macs(self) -> int:
        """What no layer that it was told of has computed."""
        return self._stack[0].macs

    def table(self) -> LayerTable:
        """Everything that was seen.

        Raises:
            UserError: no convolution and no linear layer was called.
        """
        if not any(spec.is_weighted for spec in self.specs):
            reasons = "; ".join(f"{layer}: {why}" for layer, why in list(self.alone.items())[:3])
            raise UserError(
                "the network has no convolution and no linear layer that could be decided: there "
                f"is nothing to decide{f' ({reasons})' if reasons else ''}"
            )
        buffers = list(self.buffers.values())
        numbers = [
            np.array([getattr(buffer, key) for buffer in buffers], dtype=np.int64)
            for key in ("bytes", "born", "dies")
        ]
        params = sum(parameter.numel() for parameter in self.model.parameters())
        rest = Rest(
            self.macs,
            params - sum(spec.params for spec in self.specs),
            tuple(self._uncounted),
            self._uncounted_seconds / max(self._seconds, 1e-12),
        )
        layers = tuple(self.specs)
        folds, edges = self._one_to_one(), self._flow.edges
        return LayerTable(layers, Activations(*numbers), folds, rest, self.alone, edges)

    def _one_to_one(self) -> tuple[tuple[str, str], ...]:
        """Pairs of a layer and the BatchNorm that can be folded into it: both do as their type does
        and are called once, and nothing else reads what is between them.
        """
        modules = dict(self.model.named_modules())
        sizes = {spec.name: spec.input_size for spec in self.specs}
        return tuple(
            (layer, norm)
            for layer, norm, key in self._folds
            if self._calls[layer] == self._calls[norm] == 1  # so these are no later calls
            and is_batchnorm(modules[norm])
            and self.buffers[key].readers == 1
            and self._by_its_weights(modules[layer], sizes[layer])
        )

    @staticmethod
    def _by_its_weights(module: nn.Module, size: tuple[int, ...]) -> bool:
        kind = kind_of(module)
        return kind is not None and kind.by_its_weights(module, size)
