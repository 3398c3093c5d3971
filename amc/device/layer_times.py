"""Measured times of layers.

- `Family`      layers that differ in their channels only
- `LayerTimes`  the measured times of one family, over its channel counts
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from amc.errors import UserError
from amc.network.layers import LayerSpec

Count = Annotated[int, Field(ge=1, le=2**20)]
Ms = Annotated[float, Field(ge=0, le=1e9)]


class Facts(BaseModel):
    """A part of a profile's file: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Family(Facts):
    """What all layers have in common that differ in their channels only."""

    kind: Literal["conv", "transposed conv", "linear"]
    kernel: tuple[Count, ...]
    stride: tuple[Count, ...]
    input_size: tuple[Count, ...]
    output_size: tuple[Count, ...]
    group: tuple[Count, Count] | None = None  # channels in and out of one group; None: ungrouped
    followed_by: str = ""  # what the runtime may compute with it: "batchnorm+relu"

    @classmethod
    def of(cls, layer: LayerSpec) -> Family:
        group = None
        if layer.groups > 1:
            group = (layer.in_channels // layer.groups, layer.out_channels // layer.groups)
        return cls(
            kind="transposed conv" if layer.transposed else layer.kind,
            kernel=layer.kernel,
            stride=layer.stride,
            input_size=layer.input_size,
            output_size=layer.output_size,
            group=group,
            followed_by=layer.followed_by,
        )

    def groups(self, in_channels: int) -> int:
        """The groups of a layer with so many input channels."""
        return 1 if self.group is None else in_channels // self.group[0]

    def grouped_outputs(self, in_channels: int) -> int:
        """The output channels of a grouped layer with so many input channels."""
        assert self.group is not None
        return self.groups(in_channels) * self.group[1]

    def __str__(self) -> str:
        sizes = ["x".join(map(str, size)) for size in (self.input_size, self.output_size)]
        shape = "" if self.kind == "linear" else f"{'x'.join(map(str, self.kernel))} "
        group = "" if self.group is None else f", groups of {self.group[0]} to {self.group[1]}"
        return f"{shape}{self.kind} {sizes[0]} to {sizes[1]}{group}, {self.followed_by or 'alone'}"


class Point(NamedTuple):
    """One measured layer."""

    in_channels: Count
    out_channels: Count
    ms: Ms  # median
    spread_ms: Ms  # 1.48 times the median absolute deviation
    repeats: Annotated[int, Field(ge=0, le=10**9)]

    @classmethod
    def of(cls, pair: tuple[int, int], ms: float, spread_ms: float, repeats: int) -> Point:
        """Rounded to nanoseconds; noise may take the difference of two times below 0."""
        return cls(*pair, max(0.0, round(ms, 6)), round(spread_ms, 6), repeats)


class LayerTimes(Facts):
    """The times of one family, over its channels in and out.

    Measured is every line along three lines that cross it, its *knots*: the first, the middle and
    the last. Between them times are blended so that all measured ones are met exactly (Gordon 1971,
    a Boolean sum of interpolations); between the lines of an axis they are linear. In a grouped
    family the output channels follow from the input channels: there is one axis.
    """

    family: Family
    in_channels: tuple[Count, ...] = ()  # the lines, ascending; none: measuring was stopped
    out_channels: tuple[Count, ...] = ()  # empty in a grouped family
    points: tuple[Point, ...] = ()  # beside those on the lines some that only checked them

    @model_validator(mode="after")
    def _complete(self) -> LayerTimes:
        for lines in (self.in_channels, self.out_channels):
            if list(lines) != sorted(set(lines)):
                raise ValueError(f"the channels of {self.family} must ascend")
        if self.in_channels and not self.out_channels and self.family.group is None:
            raise ValueError(f"{self.family} has no output channels")
        for pair in self.needed(self.family, self.in_channels, self.out_channels):
            if pair not in self._known:
                raise ValueError(f"{self.family} has no time for {pair[0]} to {pair[1]} channels")
        return self

    @cached_property
    def _known(self) -> dict[tuple[int, int], float]:
        return {(point.in_channels, point.out_channels): point.ms for point in self.points}

    @staticmethod
    def knots(lines: Sequence[int]) -> list[int]:
        """The first, the most central and the last of some lines."""
        if not lines:
            return []
        middle = (lines[0] + lines[-1]) / 2
        return sorted({lines[0], min(lines, key=lambda line: abs(line - middle)), lines[-1]})

    @classmethod
    def needed(
        cls, family: Family, ins: Sequence[int], outs: Sequence[int]
    ) -> list[tuple[int, int]]:
        """The (in, out) channels that must be measured for these lines."""
        if family.group is not None:
            return [(width, family.grouped_outputs(width)) for width in ins]
        along = [(a, b) for a in cls.knots(ins) for b in outs]
        return list(dict.fromkeys(along + [(a, b) for b in cls.knots(outs) for a in ins]))

    def ms(self, in_channels: int, out_channels: int) -> float:
        """The median time of a layer of this family.

        Raises:
            UserError: the profile was not measured for so few, or so many, channels.
        """
        self._check(in_channels, self.in_channels)
        if self.family.group is not None:
            lines = self.in_channels
            times = [self._known[width, self.family.grouped_outputs(width)] for width in lines]
            return float(np.interp(in_channels, lines, times))
        self._check(out_channels, self.out_channels)
        return self._blended(in_channels, out_channels)

    def _check(self, width: int, lines: Sequence[int]) -> None:
        if not lines or not lines[0] <= width <= lines[-1]:
            measured = f"{lines[0]} to {lines[-1]}" if lines else "none"
            raise UserError(
                f"the device profile has no time for {width} channels of a {self.family} "
                f"(measured: {measured}): measure this network with `amc profile`"
            )

    def _blended(self, in_channels: int, out_channels: int) -> float:
        ins, outs = self.knots(self.in_channels), self.knots(self.out_channels)

        def along_out(a: int, lines: Sequence[int]) -> float:
            return float(np.interp(out_channels, lines, [self._known[a, b] for b in lines]))

        def along_in(b: int) -> float:
            lines = self.in_channels
            return float(np.interp(in_channels, lines, [self._known[a, b] for a in lines]))

        over_in = np.interp(in_channels, ins, [along_out(a, self.out_channels) for a in ins])
        over_out = np.interp(out_channels, outs, [along_in(b) for b in outs])
        over_both = np.interp(in_channels, ins, [along_out(a, outs) for a in ins])
        return max(0.0, float(over_in + over_out - over_both))
