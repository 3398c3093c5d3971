"""Two-dimensional convolutions: grouped ones, and subclasses with a forward of their own, too."""

from __future__ import annotations

from typing import Any

from torch import nn

from amc.network.kinds.base import Kind, has_own_weight, keep_inputs, kept, own_numel, slice_own


class Convolution(Kind):
    """``nn.Conv2d``. A subclass may pad or scale its weights as it likes: whether it can be cut is
    seen by cutting it.
    """

    name = "conv"
    least_dims = 4

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, nn.Conv2d) and has_own_weight(module)

    def widths(self, module: nn.Module) -> tuple[int, int]:
        assert isinstance(module, nn.Conv2d)
        return module.in_channels, module.out_channels

    def mixes(self, module: nn.Module) -> bool:
        return isinstance(module, nn.Conv2d) and module.groups == 1

    def links(self, module: nn.Module) -> list[tuple[int, int]]:
        """Inputs and outputs of one group live or die together."""
        assert isinstance(module, nn.Conv2d)
        groups = module.groups
        if groups == 1:
            return []
        ins, outs = module.in_channels // groups, module.out_channels // groups
        first = [(g * ins, g * outs + o) for g in range(groups) for o in range(outs)]
        return first + [(g * ins + i, g * outs) for g in range(groups) for i in range(1, ins)]

    def facts(self, module: nn.Module) -> dict[str, Any]:
        assert isinstance(module, nn.Conv2d)
        extra = own_numel(module) - module.weight.numel()  # the bias; a subclass's gain
        return {
            "kernel": (module.kernel_size[0], module.kernel_size[1]),
            "stride": (module.stride[0], module.stride[1]),
            "groups": module.groups,
            "per_channel_params": extra // module.out_channels,
        }

    def cut(self, module: nn.Module, gone_in: list[int], gone_out: list[int]) -> None:
        assert isinstance(module, nn.Conv2d)
        rows, columns = kept(module.out_channels, gone_out), kept(module.in_channels, gone_in)
        if module.groups > 1:
            width_in = module.in_channels // module.groups
            width_out = module.out_channels // module.groups
            lost = {channel // width_in for channel in gone_in}
            if len(lost) * width_in != len(gone_in) or len(lost) * width_out != len(gone_out):
                raise ValueError("it is grouped and loses whole groups only")
            module.groups -= len(lost)
        elif gone_in:
            keep_inputs(module, columns)
        slice_own(module, rows, module.out_channels)
        module.out_channels, module.in_channels = len(rows), len(columns)

    def output_shape(self, module: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        assert isinstance(module, nn.Conv2d)
        pads = module._reversed_padding_repeated_twice  # left, right, top, bottom
        sizes = [
            (size + sum(pad) - dilation * (kernel - 1) - 1) // stride + 1
            for size, pad, dilation, kernel, stride in zip(
                input_shape[2:],
                (pads[2:], pads[:2]),
                module.dilation,
                module.kernel_size,
                module.stride,
                strict=True,
            )
        ]
        return (input_shape[0], module.out_channels, *sizes)
