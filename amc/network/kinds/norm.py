"""Layers that hold parameters for each channel and treat each channel on its own."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from amc.network.kinds.base import Kind, kept, own_numel, slice_own
from amc.network.torchvision_compat import FrozenBatchNorm2d

_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    FrozenBatchNorm2d,
)


class ChannelNorm(Kind):
    """BatchNorm and its kin, instance normalisation, PReLU with a slope a channel; subclasses that
    also hold an activation.
    """

    name = "channelwise"

    def matches(self, module: nn.Module) -> bool:
        if isinstance(module, nn.PReLU):
            return module.num_parameters > 1
        return isinstance(module, _NORMS) and not hasattr(module, "parametrizations")

    def widths(self, module: nn.Module) -> tuple[int, int]:
        own: list[Tensor] = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        stated: Any = getattr(module, "num_features", getattr(module, "num_parameters", 0))
        width = next((len(tensor) for tensor in own if tensor.dim() == 1), int(stated))
        return width, width

    def facts(self, module: nn.Module) -> dict[str, Any]:
        return {"per_channel_params": own_numel(module) // max(1, self.widths(module)[0])}

    def masked(
        self, module: nn.Module, x: Tensor, gone_in: list[int], gone_out: list[int]
    ) -> Tensor:
        return x

    def cut(self, module: nn.Module, gone_in: list[int], gone_out: list[int]) -> None:
        width = self.widths(module)[0]
        rows = kept(width, gone_out)
        slice_own(module, rows, width)
        for attribute in ("num_features", "num_parameters"):
            if hasattr(module, attribute):
                setattr(module, attribute, len(rows))
