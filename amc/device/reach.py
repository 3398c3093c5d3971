"""What an action space can make of its network: the widths of its layers, and samples."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from amc.device.layer_times import Family
from amc.network.layers import LayerTable
from amc.spaces.base import CompressionSpace, Strategy


@dataclass
class Widths:
    """The channel counts that the layers of one family can have."""

    ins: set[int] = field(default_factory=set)
    outs: set[int] = field(default_factory=set)


def timed_layers(table: LayerTable) -> list[tuple[Family, int, int]]:
    """The layers that a profile has times for: family, channels in and out."""
    return [
        (Family.of(layer), layer.in_channels, layer.out_channels)
        for layer in table
        if layer.kind in ("conv", "linear") and layer.macs  # one that has lost all computes nothing
    ]


def untimed(table: LayerTable) -> list[str]:
    """That a profile has no times for layers of the user's own kinds, where there are such."""
    own = ", ".join(repr(layer.name) for layer in table if layer.kind == "own")
    why = "of a kind of your own: what they lose saves no time on paper"
    return [f"it has no times for {own}, {why}"] if own else []


def widths_of(space: CompressionSpace) -> dict[Family, Widths]:
    """Every family that a space can make of its network, with its channel counts."""
    found: dict[Family, Widths] = {}
    alone = [{d.name: choice} for d in space.decisions for choice in d.choices]
    # where several decisions make one width, more widths come up together than one at a time
    together = [space.smallest, *random_strategies(space, 200, seed=0)]
    for strategy in (*alone, *together):
        for family, ins, outs in timed_layers(space.resize(strategy)):
            widths = found.setdefault(family, Widths())
            widths.ins.add(ins)
            widths.outs.add(outs)
    return found


def step_of(space: CompressionSpace) -> int:
    """The number that all choices below the whole are multiples of."""
    return math.gcd(*(choice for d in space.decisions for choice in d.choices[:-1])) or 1


def random_strategies(space: CompressionSpace, count: int, seed: int) -> list[dict[str, int]]:
    """Strategies spread from small to large: each decision's keep ratio is drawn around a ratio
    that is drawn for the strategy. The first one is untouched.
    """
    generator = np.random.default_rng(seed)
    strategies = [space.complete({})]
    while len(strategies) < count:
        centre = generator.uniform(0.1, 1.0)
        ratios = np.clip(centre + generator.uniform(-0.3, 0.3, len(space.decisions)), 0.01, 1.0)
        pairs = zip(space.decisions, ratios, strict=True)
        strategies.append({d.name: space.decode(d, float(ratio)) for d, ratio in pairs})
    return strategies


def structure_of(space: CompressionSpace, strategy: Strategy) -> nn.Module:
    """The network that a strategy makes, without repair: its time does not depend on weights."""
    return type(space).rebuild(space.network.model, space.describe(strategy)).eval()
