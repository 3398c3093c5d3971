"""A private copy of a user's network, so that theirs is never touched: unwrapped, on the CPU, in
float32 and eval mode.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from amc.errors import UserError, first_line

_WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
}
"""Name of a class that only runs a network otherwise -> where the network is."""


def copied(model: nn.Module) -> nn.Module:
    """A deep copy. Activations that a module has kept, with the graph behind them, are copied as
    plain tensors.
    """
    kept = [value for module in model.modules() for value in vars(module).values()]
    graphs = [value for value in kept if isinstance(value, Tensor) and not value.is_leaf]
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in graphs})


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside ``DataParallel``, ``torch.compile`` and their kin."""
    while (inside := _WRAPPERS.get(type(model).__name__)) and hasattr(model, inside):
        model = getattr(model, inside)
    return model


def private_copy(model: nn.Module, name: str = "network") -> nn.Module:
    """A network of one's own; see this module.

    Raises:
        UserError: it cannot be copied, or what it is cannot be compressed.
    """
    model = unwrapped(model)
    _refuse_strange(model, name)
    try:
        own = copied(model).cpu().float().eval()
    except Exception as error:
        raise UserError(f"the network {name!r} cannot be copied: {first_line(error)}") from error
    for parent in list(own.modules()):
        parent._compiled_call_impl = None  # of `module.compile()`: of the original's
        for attribute, child in list(parent._modules.items()):
            if child is not None:
                parent._modules[attribute] = unwrapped(child)
    return own


def dtype_of(model: nn.Module) -> torch.dtype:
    """The dtype of a network's parameters, of the most of them; float32 where it has none."""
    numbers: dict[torch.dtype, int] = {}
    for parameter in model.parameters():
        if parameter.is_floating_point():
            numbers[parameter.dtype] = numbers.get(parameter.dtype, 0) + parameter.numel()
    return max(numbers, key=lambda dtype: numbers[dtype], default=torch.float32)


def _refuse_strange(model: nn.Module, name: str) -> None:
    for path, module in model.named_modules():
        what = f"the network {name!r}" if not path else f"{path!r} of the network {name!r}"
        if isinstance(module, torch.jit.ScriptModule):
            raise UserError(
                f"{what} is a ScriptModule, whose layers cannot be cut: give the Python module "
                "that it was made from"
            )
        if "quantized" in type(module).__module__.split("."):
            raise UserError(
                f"{what} is quantised ({type(module).__name__}), and cannot be cut: give the "
                "network as it was before quantisation"
            )
        own: list[Any] = [*module._parameters.values(), *module._buffers.values()]
        if any(isinstance(tensor, UninitializedBuffer | UninitializedParameter) for tensor in own):
            raise UserError(
                f"{what} is a lazy layer that has never run, so it has no weights yet: run the "
                "network once, and train it"
            )
