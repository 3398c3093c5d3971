"""Transposed convolutions over one, two or three axes; grouped ones, too."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from amc.network.kinds.base import has_own_weight, is_plain, keep_along, kept, slice_own
from amc.network.kinds.convolution import Convolution
from amc.network.kinds.window import Size, Window

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class TransposedConvolution(Convolution):
    """``nn.ConvTranspose1d``, ``2d`` and ``3d``. Their weights are (in, out / groups, ...), and
    they multiply at the positions of the input.
    """

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, TRANSPOSED) and has_own_weight(module)

    def weight(self, module: nn.Module) -> Tensor:
        return super().weight(module).transpose(0, 1)

    def facts(self, module: nn.Module) -> dict[str, Any]:
        return {**super().facts(module), "transposed": True}

    def cut(self, module: nn.Module, gone_in: list[int], gone_out: list[int]) -> None:
        assert isinstance(module, TRANSPOSED)
        rows, columns = kept(module.out_channels, gone_out), kept(module.in_channels, gone_in)
        if module.groups > 1:
            module.groups -= self._groups_lost(module, gone_in, gone_out)
        else:
            keep_along(module, "weight", 1, rows)
        keep_along(module, "weight", 0, columns)
        weight, module.weight = module.weight, None  # type: ignore[assignment]  # it has no rows
        slice_own(module, rows, module.out_channels)
        module.weight = weight
        module.out_channels, module.in_channels = len(rows), len(columns)

    def by_its_weights(self, module: nn.Module, size: Size) -> bool:
        return is_plain(module, TRANSPOSED)

    def window(self, module: nn.Module, size: Size) -> Window:
        assert isinstance(module, TRANSPOSED)
        kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
        padding: Any = module.padding
        grid = tuple(
            (i - 1) * s - 2 * p + d * (k - 1) + more + 1
            for i, s, p, d, k, more in zip(
                size, stride, padding, dilation, kernel, module.output_padding, strict=True
            )
        )
        return Window(size, grid, kernel, stride, dilation, tuple(padding), transposed=True)

    def padded(self, module: nn.Module, x: Tensor) -> Tensor:
        return x

    def folded(self, module: nn.Module, norm: nn.Module) -> nn.Module:
        """PyTorch's own folding knows no groups here."""
        assert isinstance(module, TRANSPOSED)
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
        assert norm.running_mean is not None and norm.running_var is not None
        scale = torch.rsqrt(norm.running_var + norm.eps)
        scale = scale if norm.weight is None else scale * norm.weight
        bias = -norm.running_mean if module.bias is None else module.bias - norm.running_mean
        bias = bias * scale if norm.bias is None else bias * scale + norm.bias
        result = copy.deepcopy(module)
        by_group = module.weight.unflatten(0, (module.groups, -1))  # (groups, in, out, taps)
        shape = (module.groups, 1, -1, *[1] * (module.weight.dim() - 2))
        weight = (by_group * scale.view(shape)).flatten(0, 1)
        result.weight = nn.Parameter(weight.detach(), module.weight.requires_grad)
        result.bias = nn.Parameter(bias.detach(), module.weight.requires_grad)
        return result
