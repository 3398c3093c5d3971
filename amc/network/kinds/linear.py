"""Linear layers, applied to the last dimension."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils.fusion import fuse_linear_bn_eval

from amc.network.kinds.base import (
    Kind,
    has_own_weight,
    is_plain,
    keep_inputs,
    kept,
    own_numel,
    slice_own,
)
from amc.network.kinds.window import Size


class Linear(Kind):
    """``nn.Linear``."""

    name = "linear"
    channel_dim = -1

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, nn.Linear) and has_own_weight(module)

    def widths(self, module: nn.Module) -> tuple[int, int]:
        assert isinstance(module, nn.Linear)
        return module.in_features, module.out_features

    def mixes(self, module: nn.Module) -> bool:
        return True

    def facts(self, module: nn.Module) -> dict[str, Any]:
        assert isinstance(module, nn.Linear)
        extra = own_numel(module) - module.weight.numel()
        return {"per_channel_params": extra // module.out_features}

    def cut(self, module: nn.Module, gone_in: list[int], gone_out: list[int]) -> None:
        assert isinstance(module, nn.Linear)
        rows, columns = kept(module.out_features, gone_out), kept(module.in_features, gone_in)
        if gone_in:
            keep_inputs(module, columns)
        slice_own(module, rows, module.out_features)
        module.out_features, module.in_features = len(rows), len(columns)

    def output_shape(self, module: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        assert isinstance(module, nn.Linear)
        return (*input_shape[:-1], module.out_features)

    def by_its_weights(self, module: nn.Module, size: Size) -> bool:
        return is_plain(module, (nn.Linear,))

    def folded(self, module: nn.Module, norm: nn.Module) -> nn.Module:
        assert isinstance(module, nn.Linear)
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
        return fuse_linear_bn_eval(module, norm)
