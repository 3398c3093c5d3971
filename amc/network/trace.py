"""One forward pass over a network: its layer table, and the activations alive meanwhile."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from amc.errors import UserError, first_line
from amc.network.layers import (
    Activations,
    Kind,
    LayerSpec,
    LayerTable,
    evaluating,
    example_input,
    is_channelwise,
    storage_key,
)


@dataclass(frozen=True, eq=False)
class Network:
    """A user's network as this project holds it: a private copy in eval mode, the shape of its
    input, its table.
    """

    model: nn.Module
    input_shape: tuple[int, ...]  # of one image, without the batch
    table: LayerTable
    name: str = "network"

    @classmethod
    def of(cls, model: nn.Module, input_shape: tuple[int, ...], name: str = "network") -> Network:
        """Copy, trace and hold a network.

        Raises:
            UserError: it cannot be copied, or does not run on such an input.
        """
        own = private_copy(model, name)
        return cls(own, tuple(input_shape), trace(own, input_shape, name), name)


def private_copy(model: nn.Module, name: str = "network") -> nn.Module:
    """A deep copy in eval mode, so that the user's network is never touched."""
    try:
        return copy.deepcopy(model).eval()
    except Exception as error:
        raise UserError(f"the network {name!r} cannot be copied: {first_line(error)}") from error


def trace(model: nn.Module, input_shape: tuple[int, ...], name: str = "network") -> LayerTable:
    """Run ``model`` once on one image of ``input_shape`` and write down its layers.

    The hooks are removed and the training mode restored, whatever happens.

    Raises:
        UserError: the forward pass fails on that input.
    """
    recorder = _Recorder(model)
    handles = [
        module.register_forward_hook(recorder.hook(module_name))
        for module_name, module in model.named_modules()
        if recorder.kind_of(module) is not None
    ]
    image = example_input(model, input_shape)
    try:
        with evaluating(model), recorder:
            recorder.add(image)
            recorder.finish(model(image))
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the network {name!r} does not run on an input of shape {tuple(input_shape)}: "
            f"{first_line(error)}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return recorder.table()


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
class _Recorder(TorchDispatchMode):
    """Sees every operation of one forward pass, and every call of a layer through its hook."""

    model: nn.Module
    step: int = 0
    specs: list[LayerSpec] = field(default_factory=list)
    buffers: dict[int, _Buffer] = field(default_factory=dict)
    # a freed storage's address would be used again
    _kept: list[Tensor] = field(default_factory=list)
    _outputs: dict[int, str] = field(default_factory=dict)  # storage -> the layer that made it
    _folds: list[tuple[str, str, int]] = field(default_factory=list)
    # storage -> which of the specs it comes from, through BatchNorms, sums and activations only
    _origin: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        tensors = [*self.model.parameters(), *self.model.buffers()]
        self._weights = {storage_key(tensor) for tensor in tensors}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.step += 1
        for tensor in tree_iter((args, kwargs)):
            if isinstance(tensor, Tensor) and storage_key(tensor) in self.buffers:
                buffer = self.buffers[storage_key(tensor)]
                buffer.dies = self.step
                buffer.readers += 1
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self.add(tensor)
        self._follow(func, args, result)
        return result

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
        if key not in self._weights and key not in self.buffers and tensor.numel():
            element = 4 if tensor.is_floating_point() else tensor.element_size()
            size = tensor.untyped_storage().nbytes() // tensor.element_size() * element
            self.buffers[key] = _Buffer(size, self.step, self.step)
            self._kept.append(tensor)

    def finish(self, output: Any) -> None:
        """The outputs live to the end."""
        for tensor in tree_iter(output):
            if isinstance(tensor, Tensor) and storage_key(tensor) in self.buffers:
                self.buffers[storage_key(tensor)].dies = self.step

    def kind_of(self, module: nn.Module) -> Kind | None:
        if isinstance(module, nn.Conv2d):
            return "conv"
        if isinstance(module, nn.Linear):
            return "linear"
        if is_channelwise(module):
            return "channelwise"
        return "other" if next(module.parameters(recurse=False), None) is not None else None

    def hook(self, name: str) -> Any:
        def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            kind = self.kind_of(module)
            calls = sum(spec.name.split("@")[0] == name for spec in self.specs)
            own = name if not calls else f"{name}@{calls + 1}"
            if kind == "other" or not isinstance(output, Tensor):
                count = sum(p.numel() for p in module.parameters(recurse=False))
                self.specs.append(
                    LayerSpec(
                        own, "other", 0, 0, fixed_params=count, shared=calls > 0, step=self.step
                    )
                )
                return
            assert kind is not None
            source = inputs[0]
            self.specs.append(_spec(own, kind, module, source, output, calls > 0, self.step))
            if kind == "channelwise" and storage_key(source) in self._outputs:
                self._folds.append((self._outputs[storage_key(source)], own, storage_key(source)))
            if kind in ("conv", "linear"):
                self._outputs[storage_key(output)] = own
                self._origin[storage_key(output)] = len(self.specs) - 1
            elif isinstance(module, nn.modules.batchnorm._BatchNorm):
                origin = self._origin.get(storage_key(source))
                if origin is not None:
                    self._origin[storage_key(output)] = origin
                    self._add_follower(origin, "batchnorm")

        return record

    def table(self) -> LayerTable:
        if not any(spec.kind in ("conv", "linear") for spec in self.specs):
            raise UserError(
                "the network has no convolution and no linear layer: there is nothing to decide"
            )
        buffers = list(self.buffers.values())
        numbers = [
            np.array([getattr(buffer, key) for buffer in buffers], dtype=np.int64)
            for key in ("bytes", "born", "dies")
        ]
        modules = dict(self.model.named_modules())
        folds = tuple(
            (layer, norm)
            for layer, norm, key in self._folds
            if self.buffers[key].readers == 1
            and isinstance(modules.get(norm), nn.modules.batchnorm._BatchNorm)
            and layer in modules
        )
        return LayerTable(tuple(self.specs), Activations(*numbers), folds)


def _size(tensor: Tensor, kind: Kind) -> tuple[int, int]:
    """Height and width; for a linear layer the number of positions it is applied to (1, or the
    length of a sequence).
    """
    if kind == "linear":
        return int(np.prod(tensor.shape[1:-1], dtype=np.int64)), 1
    sizes = [*tensor.shape[2:], 1, 1]
    return int(sizes[0]), int(sizes[1])


def _spec(
    name: str,
    kind: Kind,
    module: nn.Module,
    source: Tensor,
    output: Tensor,
    shared: bool,
    step: int,
) -> LayerSpec:
    facts: Any = {
        "input_size": _size(source, kind),
        "output_size": _size(output, kind),
        "shared": shared,
        "step": step,
    }
    if isinstance(module, nn.Conv2d):
        facts["kernel"] = (module.kernel_size[0], module.kernel_size[1])
        facts["stride"] = (module.stride[0], module.stride[1])
        facts |= {"groups": module.groups, "per_channel_params": int(module.bias is not None)}
        return LayerSpec(name, kind, module.in_channels, module.out_channels, **facts)
    if isinstance(module, nn.Linear):
        facts["per_channel_params"] = int(module.bias is not None)
        return LayerSpec(name, kind, module.in_features, module.out_features, **facts)
    channels = source.shape[1]
    count = sum(p.numel() for p in module.parameters(recurse=False))
    return LayerSpec(name, kind, channels, channels, per_channel_params=count // channels, **facts)
