"""Which positions of a layer's input each position of its output is computed from."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

Size = tuple[int, ...]
"""A number an axis: one (length), two (height, width) or three (depth, height, width)."""


@dataclass(frozen=True)
class Window:
    """The window of a convolution: along each axis, tap ``k`` of output position ``o`` reads input
    position ``o * stride - before + k * dilation``.

    A transposed convolution is the other way round: input position ``i`` is spread over the
    outputs ``i * stride - before + k * dilation``. So output ``o`` reads, through tap ``k``, the
    input ``(o + before - k * dilation) / stride`` where that is whole, and zero elsewhere.
    """

    size: Size  # of the input
    grid: Size  # of the output
    kernel: Size
    stride: Size
    dilation: Size
    before: Size  # zeros in front of the input
    transposed: bool = False

    def read(self, where: Tensor) -> tuple[Tensor, Tensor]:
        """What is read at some positions of the outputs of a batch.

        Args:
            where: positions (rows,), counted over all items of the batch.

        Returns:
            The positions of the batch's inputs, counted likewise (rows * taps,); and which of these
            numbers stand for a zero.
        """
        axes = len(self.grid)
        taps = [-1, *[1] * axes]
        pixel, zero = (where // prod(self.grid)).view(taps), torch.zeros_like(where).bool()
        zero = zero.view(taps)
        for axis in range(axes):
            spot = where // prod(self.grid[axis + 1 :]) % self.grid[axis]
            at, none = self._along(axis, spot)
            shape = [*taps]
            shape[axis + 1] = self.kernel[axis]
            pixel, zero = pixel * self.size[axis] + at.view(shape), zero | none.view(shape)
        return pixel.flatten().int(), zero.flatten().nonzero().flatten()

    def _along(self, axis: int, spot: Tensor) -> tuple[Tensor, Tensor]:
        """Along one axis: input positions (rows, taps), and where there is none."""
        size, stride, before = self.size[axis], self.stride[axis], self.before[axis]
        tap = torch.arange(self.kernel[axis], device=spot.device) * self.dilation[axis]
        if self.transposed:
            spread = spot[:, None] + before - tap
            at, none = spread.div(stride, rounding_mode="floor"), spread % stride != 0
        else:
            at = spot[:, None] * stride - before + tap
            none = torch.zeros_like(at).bool()
        return at.clamp(0, size - 1), none | (at < 0) | (at >= size)
