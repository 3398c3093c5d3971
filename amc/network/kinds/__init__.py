"""The kinds of layer that surgery knows. Nothing else asks for the type of a layer: what matches no
kind and holds parameters is left alone, named, and counted in the rest.
"""

from __future__ import annotations

from torch import nn

from amc.network.kinds.across import Across, GlobalResponse, GroupNorm
from amc.network.kinds.base import Kind, is_plain
from amc.network.kinds.convolution import CONVOLUTIONS, Convolution
from amc.network.kinds.linear import Linear
from amc.network.kinds.linked import Linked, LinkedModule
from amc.network.kinds.norm import ChannelNorm
from amc.network.kinds.transposed import TRANSPOSED, TransposedConvolution

__all__ = [
    "KINDS",
    "Kind",
    "LinkedModule",
    "acquaint",
    "does_as_its_type",
    "is_batchnorm",
    "is_batchnorm_like",
    "kind_of",
    "mixes",
]

KINDS: tuple[Kind, ...] = (
    Convolution(),
    TransposedConvolution(),
    Linear(),
    ChannelNorm(),
    GroupNorm(),
    Across(),
    GlobalResponse(),
    Linked(),
)
"""The first that matches counts."""

_BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_EXACT = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear, *_BATCHNORMS)


def kind_of(module: nn.Module) -> Kind | None:
    """The kind of a module; None where surgery does not know it."""
    return next((kind for kind in KINDS if kind.matches(module)), None)


def acquaint(model: nn.Module) -> None:
    """Ask every module of a network of ours what its kind wants to know of it, before anything
    watches the network.
    """
    for module in model.modules():
        if (kind := kind_of(module)) is not None:
            kind.dim(module)


def mixes(module: nn.Module) -> bool:
    """Whether a layer mixes all its input channels: a linear layer or an ungrouped convolution."""
    kind = kind_of(module)
    return kind is not None and kind.mixes(module)


def does_as_its_type(module: nn.Module) -> bool:
    """Whether what a module computes follows from its type and its weights: it is exactly a
    convolution, linear layer or BatchNorm, with no hook, and no forward of its own.
    """
    return is_plain(module, _EXACT)


def is_batchnorm_like(module: nn.Module) -> bool:
    """Whether a module is a BatchNorm, or made from one."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def is_batchnorm(module: nn.Module | None) -> bool:
    """Whether a module is exactly a BatchNorm with running statistics."""
    if module is None or type(module) not in _BATCHNORMS or not does_as_its_type(module):
        return False
    return getattr(module, "running_mean", None) is not None
