"""Convolutions that pad in a forward of their own (TensorFlow's SAME): how much, asked of the
module itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from amc.network.flops import is_composite
from amc.network.kinds.window import Size


def padding_of(module: nn.Module, size: Size) -> tuple[Size, Size] | None:
    """The zeros that a subclass of a convolution puts in front of, and behind, an input of that
    size, along each axis.

    None where its forward is seen to do anything else than to pad with zeros and to convolve with
    its own weight and bias, as they are.
    """
    weight: Any = module.weight
    image = torch.zeros((1, module.in_channels, *size), device=weight.device, dtype=weight.dtype)  # type: ignore[arg-type]
    seen = _Seen(module, image)
    try:
        with torch.no_grad(), seen:
            output = type(module).forward(module, image)
    except Exception:  # whatever a user's forward may raise
        return None
    if seen.strange or output is not seen.output:
        return None
    return tuple(seen.before), tuple(seen.after)


class _Seen(TorchDispatchMode):
    """Follows an input through paddings into one convolution."""

    def __init__(self, module: nn.Module, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.module, self.current = module, image
        self.before, self.after = [0] * (image.dim() - 2), [0] * (image.dim() - 2)
        self.output: Tensor | None = None
        self.strange = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if is_composite(func):
            with self:
                parts = func.decompose(*args, **(kwargs or {}))
            if parts is not NotImplemented:
                return parts
        result = func(*args, **(kwargs or {}))
        known = self.output is None and not kwargs and args and args[0] is self.current
        if known and func is torch.ops.aten.constant_pad_nd.default:
            self.strange |= not self._pad(args[1], args[2] if len(args) > 2 else 0)
            self.current = result
        elif known and func is torch.ops.aten.convolution.default:
            self.strange |= not self._convolve(*args[1:])
            self.output = result
        else:
            self.strange = True
        return result

    def _pad(self, pads: list[int], value: float) -> bool:
        """Whether zeros are put around the last axes."""
        pads = [*pads, *[0] * (2 * len(self.before) - len(pads))]
        if value != 0 or min(pads) < 0 or len(pads) > 2 * len(self.before):
            return False
        self._add(pads[::2][::-1], pads[1::2][::-1])
        return True

    def _convolve(
        self,
        weight: Tensor,
        bias: Tensor | None,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        transposed: bool,
        output_padding: list[int],
        groups: int,
    ) -> bool:
        """Whether that is what the module says of itself, padding apart."""
        module: Any = self.module
        self._add(padding, padding)
        said = [*module.stride], [*module.dilation], module.groups
        own = weight is module.weight and bias is module.bias
        return own and not transposed and (stride, dilation, groups) == said

    def _add(self, before: list[int], after: list[int]) -> None:
        self.before = [a + b for a, b in zip(self.before, before, strict=True)]
        self.after = [a + b for a, b in zip(self.after, after, strict=True)]
