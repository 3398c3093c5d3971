"""What a call of a layer tells about it."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from amc.network.kinds import kind_of
from amc.network.layers import LayerSpec


def _size(tensor: Tensor, dim: int) -> tuple[int, ...]:
    """Height and width, or what other axes there are; where channels are last the number of
    positions (1, or the length of a sequence).
    """
    if dim == -1:
        return int(np.prod(tensor.shape[1:-1], dtype=np.int64)), 1
    return tuple(tensor.shape[2:]) or (1, 1)


def spec_of(name: str, module: nn.Module, source: Tensor, output: Tensor) -> LayerSpec:
    """A layer of a known kind, from a call with one image."""
    kind = kind_of(module)
    assert kind is not None
    dim = kind.dim(module)
    return LayerSpec(
        name,
        kind.name,  # type: ignore[arg-type]
        *kind.widths(module),
        input_size=_size(source, dim),
        output_size=_size(output, dim),
        repeats=len(source),
        **kind.facts(module),
    )
