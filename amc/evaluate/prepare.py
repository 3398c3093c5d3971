"""Make a network as fast as this machine allows, without changing what it computes.

BatchNorms are folded into the layers they follow, activations and sums are computed inside the
convolutions before them, memory is channels-last, and bf16 is used where the processor has units
for it and the accuracy of the untouched network agrees with fp32.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from amc.evaluate.fusion import fused
from amc.network.layers import example_input
from amc.network.trace import Network
from amc.surgery.cut import replace_module
from amc.surgery.factor import last_part

Precision = Literal["auto", "fp32", "bf16"]


def has_bf16_units() -> bool:
    """Whether this processor has matrix units for bf16 (AMX).

    AVX-512's bf16 alone does not count: small convolutions were slower with it than in fp32.
    """
    return bool(torch.cpu._is_amx_tile_supported())


def fuses_bf16() -> bool:
    """Whether oneDNN computes bf16 convolutions on this processor; without AVX-512 it refuses."""
    known = torch.backends.mkldnn.is_available()
    return known and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def prepared(model: nn.Module, network: Network, bf16: bool) -> nn.Module:
    """A copy for inference only: BatchNorms folded away, convolutions fused with what follows them,
    channels last, and bf16 if asked.

    Args:
        model: ``network``'s own module, or what a strategy has made of it.
        network: the untouched network.
        bf16: whether to compute in bf16.
    """
    fast = copy.deepcopy(model).eval()
    modules = dict(fast.named_modules())
    for name, norm in network.table.folds:
        layer = last_part(modules, name)
        first, second = modules.get(layer), modules.get(norm)
        if not isinstance(second, nn.modules.batchnorm._BatchNorm):
            continue
        if isinstance(first, nn.Conv2d):
            replace_module(fast, layer, fuse_conv_bn_eval(first, second))
        elif isinstance(first, nn.Linear):
            replace_module(fast, layer, fuse_linear_bn_eval(first, second))
        else:
            continue
        replace_module(fast, norm, nn.Identity())
    fast = fast.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if not bf16 or fuses_bf16():
        example = example_input(fast, network.input_shape, batch=2)
        fast = fused(fast, example.contiguous(memory_format=torch.channels_last))
    return fast.to(torch.bfloat16) if bf16 else fast
