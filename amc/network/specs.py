"""What a call of a layer tells about it."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from amc.network.kinds import kind_of
from amc.network.kinds.base import own_numel
from amc.network.layers import LayerSpec


def _size(tensor: Tensor, is_last: bool) -> tuple[int, ...]:
    """Height and width, or what other axes there are; where channels are last the number of
    positions (1, or the length of a sequence).
    """
    if is_last:
        return int(np.prod(tensor.shape[1:-1], dtype=np.int64)), 1
    return tuple(tensor.shape[2:]) or (1, 1)


def spec_of(name: str, module: nn.Module, source: Tensor, output: Tensor, macs: int) -> LayerSpec:
    """A layer of a known kind, from a call with one image that took so many MACs."""
    kind = kind_of(module)
    assert kind is not None
    facts = kind.facts(module)
    if facts is None:
        facts = {"fixed_macs": macs, "fixed_params": own_numel(module)}
    is_last = kind.dim(module) == -1
    return LayerSpec(
        name,
        kind.name,  # type: ignore[arg-type]
        *kind.widths(module),
        input_size=_size(source, is_last),
        output_size=_size(output, is_last),
        repeats=len(source),
        **facts,
    )
