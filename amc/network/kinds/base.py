"""What a kind of layer is: how it is recognised, what it costs, which channels it ties, how it is
cut and masked.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from amc.network.kinds.window import Size, Window


class Kind(ABC):
    """A family of modules that surgery knows. It has no state: each method is asked about a
    module.
    """

    name: ClassVar[str]  # in the layer table
    channel_dim: ClassVar[int] = 1  # of its input and its output

    @abstractmethod
    def matches(self, module: nn.Module) -> bool:
        """Whether a module is of this kind. One whose weights are computed from others (a
        parametrisation, a mask) is not.
        """

    @abstractmethod
    def widths(self, module: nn.Module) -> tuple[int, int]:
        """Input and output channels."""

    @abstractmethod
    def cut(self, module: nn.Module, gone_in: list[int], gone_out: list[int]) -> None:
        """Remove channels (ascending), in place.

        Raises:
            ValueError: it cannot lose these.
        """

    def dim(self, module: nn.Module) -> int:
        """Where its input and its output have their channels."""
        return self.channel_dim

    def least_dims(self, module: nn.Module) -> int:
        """The least dimensions of its input, the batch included."""
        return 2

    def mixes(self, module: nn.Module) -> bool:
        """Whether every output channel depends on every input channel, by `weight`."""
        return False

    def masked(
        self, module: nn.Module, x: Tensor, gone_in: list[int], gone_out: list[int]
    ) -> Tensor:
        """The input of a call in which the channels that are to be cut say nothing: zeros, unless
        the layer lets channels pass.
        """
        return x.index_fill(self.dim(module), torch.tensor(gone_in, dtype=torch.long, device=x.device), 0.0)

    def weight(self, module: nn.Module) -> Tensor:
        """Of one that mixes: (out, in, ...)."""
        weight: Any = module.weight
        assert isinstance(weight, Tensor)
        return weight

    def links(self, module: nn.Module) -> list[tuple[int, int]]:
        """Pairs (input channel, output channel) that live or die together."""
        return []

    def ties(self, module: nn.Module) -> list[tuple[int, int]]:
        """Pairs of output channels that live or die together."""
        return []

    def facts(self, module: nn.Module) -> dict[str, Any]:
        """The fields of a `LayerSpec` that the module alone tells."""
        return {}

    def output_shape(self, module: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of one that mixes: the shape of the output for an input of that shape."""
        raise NotImplementedError

    def by_its_weights(self, module: nn.Module, size: Size) -> bool:
        """Whether what a module computes follows from its type, its weight and its bias, for inputs
        of that size: so a BatchNorm can be folded into it, and one that mixes can be solved for.
        """
        return False

    def window(self, module: nn.Module, size: Size) -> Window | None:
        """Of one that is solved for: what of an input of that size it reads. None: at every
        position that position alone.
        """
        return None

    def padded(self, module: nn.Module, x: Tensor) -> Tensor:
        """An input as `window` counts its positions: with the padding that is not zeros."""
        return x

    def output(self, module: nn.Module, x: Tensor, norm: nn.Module | None = None) -> Tensor:
        """What a module computes, and the BatchNorm behind it: by their types, whatever forward the
        instances were given.
        """
        output: Tensor = type(module).forward(module, x)
        return output if norm is None else type(norm).forward(norm, output)

    def folded(self, module: nn.Module, norm: nn.Module) -> nn.Module:
        """A module in eval mode that computes what this one and the BatchNorm behind it do."""
        raise NotImplementedError


def kept(width: int, removed: list[int]) -> Tensor:
    """Ascending indices of the channels that stay. Shape (width - removed,)."""
    stay = torch.ones(width, dtype=torch.bool, device="cpu")  # also where weights have no memory
    stay[removed] = False
    return stay.nonzero().flatten()


def keep_inputs(module: nn.Module, columns: Tensor) -> None:
    """Keep the given input channels of a module's weight (out, in, ...), in place."""
    keep_along(module, "weight", 1, columns)


def keep_along(module: nn.Module, name: str, dim: int, indices: Tensor) -> None:
    """Keep the given entries of a parameter along a dimension, in place."""
    parameter = getattr(module, name)
    assert isinstance(parameter, nn.Parameter)
    chosen = parameter.detach().index_select(dim, indices.to(parameter.device)).contiguous()
    setattr(module, name, nn.Parameter(chosen, requires_grad=parameter.requires_grad))


def slice_own(module: nn.Module, rows: Tensor, width: int) -> None:
    """Keep the given rows of every parameter and buffer of a module's own that has a row for each
    of its ``width`` channels, in place.
    """
    for name, parameter in list(module.named_parameters(recurse=False)):
        if parameter.dim() and len(parameter) == width:
            chosen = parameter.detach()[rows.to(parameter.device)].contiguous()
            setattr(module, name, nn.Parameter(chosen, requires_grad=parameter.requires_grad))
    for name, buffer in list(module.named_buffers(recurse=False)):
        if buffer.dim() and len(buffer) == width:
            setattr(module, name, buffer[rows.to(buffer.device)].clone())


def is_plain(module: nn.Module, types: tuple[type[nn.Module], ...]) -> bool:
    """Whether a module is exactly of one of these types, without a hook or a forward of its own."""
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    return type(module) in types and "forward" not in vars(module) and not any(hooks)


def has_own_weight(module: nn.Module) -> bool:
    """Whether a module's weight is a parameter of its own, not computed from others."""
    return isinstance(module._parameters.get("weight"), nn.Parameter)


def own_numel(module: nn.Module) -> int:
    """The parameters that a module itself holds."""
    return sum(parameter.numel() for parameter in module.parameters(recurse=False))
