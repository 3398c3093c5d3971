"""The smallest input at which a network shows what it is: asking it there takes less time."""

from __future__ import annotations

from dataclasses import replace

from amc.errors import UserError
from amc.network.layers import LayerTable
from amc.network.trace import Network, trace

_SIZES = (8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)
_LEAST = 2  # places of a map, in each direction: fewer hide what is between them


def at_smallest_input(network: Network) -> Network:
    """The same network, to be asked at the smallest input which it takes, at which it has the same
    layers and whose maps do not shrink to a single place before they do at its own.
    """
    sizes = network.input_shape[1:]
    for least in _SIZES:
        if not sizes or least >= min(sizes):
            break
        smaller = tuple(max(least, round(size * least / min(sizes))) for size in sizes)
        shape = (network.input_shape[0], *smaller)
        try:
            table = trace(network.model, shape, network.name)
        except UserError:
            continue
        if _same(network.table, table):
            return replace(network, input_shape=shape, table=table)
    return network


def _same(whole: LayerTable, small: LayerTable) -> bool:
    """Whether two tables are of the same layers, and no map of the small one has lost its shape."""
    if len(whole) != len(small) or whole.alone != small.alone:
        return False
    for one, other in zip(whole, small, strict=True):
        if (one.name, one.kind, one.params) != (other.name, other.kind, other.params):
            return False
        if (one.in_channels, one.out_channels) != (other.in_channels, other.out_channels):
            return False
        for side in ("input_size", "output_size"):
            pairs = zip(getattr(one, side), getattr(other, side), strict=True)
            if any(small < min(_LEAST, large) for large, small in pairs):
                return False
    return True
