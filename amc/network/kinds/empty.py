"""Layers that have lost all their channels, on one side or on both.

PyTorch's own layers do not run so, or not all of them. These give what is left: with outputs but
no inputs, the bias at every place; without outputs an empty tensor of the shape that is due.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from amc.network.kinds.base import Kind


class Empty(nn.Module):
    """Mixed into the class of a layer that was emptied: name, attributes and keys of the state
    stay.
    """

    kind: ClassVar[Kind]
    base: ClassVar[type[nn.Module]]

    def forward(self, x: Tensor) -> Tensor:
        if self.kind.name == "channelwise":
            return x
        shape = self.kind.output_shape(self, tuple(x.shape))
        bias = getattr(self, "bias", None)
        if bias is None or not len(bias):
            return x.new_zeros(shape)
        places = [1] * len(shape)
        places[self.kind.dim(self)] = -1
        constant: Tensor = bias.view(places).expand(shape).clone()
        return constant

    def __reduce_ex__(self, protocol: Any) -> tuple[Callable[..., nn.Module], Any, Any]:
        """Its class is made, so nobody finds it by its name."""
        return _revived, (self.base, self.kind), self.__dict__


_CLASSES: dict[tuple[type[nn.Module], Kind], type[Empty]] = {}


def _emptied(base: type[nn.Module], kind: Kind) -> type[Empty]:
    """One class for each; ``torch.fx`` takes it for what it was, by its module."""
    if (base, kind) not in _CLASSES:
        own = {"kind": kind, "base": base, "__module__": base.__module__}
        _CLASSES[base, kind] = type(base.__name__, (Empty, base), own)
    return _CLASSES[base, kind]


def _revived(base: type[nn.Module], kind: Kind) -> nn.Module:
    made = _emptied(base, kind)
    return made.__new__(made)


def empty(module: nn.Module, kind: Kind) -> None:
    """Let a layer, in place, go on without the channels that it has lost: all of one side."""
    base = type(module).base if isinstance(module, Empty) else type(module)
    module.__class__ = _emptied(base, kind)
