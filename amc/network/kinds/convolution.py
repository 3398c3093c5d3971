"""Convolutions over one, two or three axes: grouped ones, and subclasses with a forward of their
own, too.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights

from amc.network.kinds.base import (
    Kind,
    has_own_weight,
    is_plain,
    keep_inputs,
    kept,
    own_numel,
    slice_own,
)
from amc.network.kinds.padding import padding_of
from amc.network.kinds.window import Size, Window

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Convolution(Kind):
    """``nn.Conv1d``, ``nn.Conv2d`` and ``nn.Conv3d``. A subclass may pad or scale its weights as it
    likes: whether it can be cut is seen by cutting it, and its weights are solved for where it is
    seen to do nothing else than to pad.
    """

    name = "conv"

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, CONVOLUTIONS) and has_own_weight(module)

    def least_dims(self, module: nn.Module) -> int:
        return module.weight.dim()  # type: ignore[operator]

    def widths(self, module: nn.Module) -> tuple[int, int]:
        assert isinstance(module, nn.modules.conv._ConvNd)
        return module.in_channels, module.out_channels

    def mixes(self, module: nn.Module) -> bool:
        return bool(module.groups == 1)

    def links(self, module: nn.Module) -> list[tuple[int, int]]:
        """Inputs and outputs of one group live or die together."""
        assert isinstance(module, nn.modules.conv._ConvNd)
        groups = module.groups
        if groups == 1:
            return []
        ins, outs = module.in_channels // groups, module.out_channels // groups
        first = [(g * ins, g * outs + o) for g in range(groups) for o in range(outs)]
        return first + [(g * ins + i, g * outs) for g in range(groups) for i in range(1, ins)]

    def facts(self, module: nn.Module) -> dict[str, Any]:
        assert isinstance(module, nn.modules.conv._ConvNd)
        extra = own_numel(module) - module.weight.numel()  # the bias; a subclass's gain
        return {
            "kernel": tuple(module.kernel_size),
            "stride": tuple(module.stride),
            "groups": module.groups,
            "per_channel_params": extra // module.out_channels,
        }

    def cut(self, module: nn.Module, gone_in: list[int], gone_out: list[int]) -> None:
        assert isinstance(module, nn.modules.conv._ConvNd)
        rows, columns = kept(module.out_channels, gone_out), kept(module.in_channels, gone_in)
        if module.groups > 1:
            module.groups -= self._groups_lost(module, gone_in, gone_out)
        elif gone_in:
            keep_inputs(module, columns)
        slice_own(module, rows, module.out_channels)
        module.out_channels, module.in_channels = len(rows), len(columns)

    @staticmethod
    def _groups_lost(
        module: nn.modules.conv._ConvNd, gone_in: list[int], gone_out: list[int]
    ) -> int:
        """How many groups a grouped convolution loses.

        Raises:
            ValueError: not whole ones.
        """
        width_in = module.in_channels // module.groups
        width_out = module.out_channels // module.groups
        lost = {channel // width_in for channel in gone_in}
        if len(lost) * width_in != len(gone_in) or len(lost) * width_out != len(gone_out):
            raise ValueError("it is grouped and loses whole groups only")
        return len(lost)

    def by_its_weights(self, module: nn.Module, size: Size) -> bool:
        assert isinstance(module, CONVOLUTIONS)
        if type(module) in CONVOLUTIONS:
            return is_plain(module, CONVOLUTIONS)
        zeros = module.padding_mode == "zeros" and is_plain(module, (type(module),))
        return zeros and padding_of(module, size) is not None

    def window(self, module: nn.Module, size: Size) -> Window:
        assert isinstance(module, CONVOLUTIONS)
        before, padded = self._padding(module, size)
        kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
        grid = tuple(
            (length - d * (k - 1) - 1) // s + 1
            for length, k, s, d in zip(padded, kernel, stride, dilation, strict=True)
        )
        if module.padding_mode != "zeros":  # what is read is there already: see `padded`
            before, size = (0,) * len(size), padded
        return Window(size, grid, kernel, stride, dilation, before)

    @staticmethod
    def _padding(module: nn.Module, size: Size) -> tuple[Size, Size]:
        """What is put in front of an input of that size, and the size that it then has."""
        if type(module) in CONVOLUTIONS:
            # of the last axis first: front, back, ...
            both: Any = module._reversed_padding_repeated_twice
            before, after = tuple(both[::2][::-1]), tuple(both[1::2][::-1])
        else:
            found = padding_of(module, size)
            assert found is not None, "its weights are not solved for"
            before, after = found
        return before, tuple(a + b + c for a, b, c in zip(before, size, after, strict=True))

    def padded(self, module: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(module, CONVOLUTIONS)
        if module.padding_mode == "zeros":
            return x
        return F.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode)

    def output_shape(self, module: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        assert isinstance(module, nn.modules.conv._ConvNd)
        return (input_shape[0], module.out_channels, *self.window(module, input_shape[2:]).grid)

    def output(self, module: nn.Module, x: Tensor, norm: nn.Module | None = None) -> Tensor:
        if norm is None or type(module) not in CONVOLUTIONS:
            return super().output(module, x, norm)
        assert isinstance(module, CONVOLUTIONS)
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
        statistics: Any = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        # one pass over the output instead of two
        weight, bias = fuse_conv_bn_weights(module.weight, module.bias, *statistics)
        folded: Tensor = module._conv_forward(x, weight, bias)
        return folded

    def folded(self, module: nn.Module, norm: nn.Module) -> nn.Module:
        assert isinstance(module, CONVOLUTIONS)
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
        return fuse_conv_bn_eval(module, norm)
