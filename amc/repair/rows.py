"""A layer as a matrix: its weights flattened, and its inputs and outputs at sampled positions of
calibration images as rows.
"""

from __future__ import annotations

import math
import zlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amc.network.kinds import kind_of

POSITIONS = 10  # sampled positions an image and layer (AMC's reference)
ROWS = 10_000  # at least so many rows a layer: fewer images give more positions each


def flat_weight(module: nn.Module) -> Tensor:
    """The weights of a mixer as a matrix (out, kernel positions * in), float64; channels vary
    fastest.
    """
    weight = _weight(module).detach().double()
    return weight.permute(0, 2, 3, 1).flatten(1) if weight.dim() == 4 else weight


def set_flat_weight(module: nn.Module, matrix: Tensor) -> None:
    """The inverse of `flat_weight`, in place."""
    weight = _weight(module)
    if weight.dim() == 4:
        out, channels, height, width = weight.shape
        matrix = matrix.reshape(out, height, width, channels).permute(0, 3, 1, 2)
    with torch.no_grad():
        weight.copy_(matrix)


def _weight(module: nn.Module) -> Tensor:
    kind = kind_of(module)
    assert kind is not None
    return kind.weight(module)


def columns_of(channels: Tensor, width: int, positions: int) -> Tensor:
    """The columns of `flat_weight` that belong to ``channels`` of a layer with ``width`` inputs."""
    first = torch.arange(positions, device=channels.device) * width
    return (first[:, None] + channels[None]).flatten()


def move_bias(module: nn.Module, norm: nn.Module | None, shift: Tensor) -> None:
    """Add ``shift`` (out,) to a mixer's output: to its bias, or through the running mean of the
    BatchNorm behind it.
    """
    bias, mean = getattr(module, "bias", None), getattr(norm, "running_mean", None)
    with torch.no_grad():
        if bias is not None:
            bias += shift.to(bias.dtype)
        elif mean is not None:
            mean -= shift.to(mean.dtype)


def can_shift(module: nn.Module, norm: nn.Module | None) -> bool:
    """Whether `move_bias` has somewhere to put a shift."""
    return (
        getattr(module, "bias", None) is not None or getattr(norm, "running_mean", None) is not None
    )


class Sampler:
    """Which output positions of which layer are looked at: drawn once a layer, the same for every
    candidate and on every device.
    """

    def __init__(self, images: int, seed: int = 0, positions: int | None = None) -> None:
        self.images, self.seed = images, seed
        self.positions = positions or max(POSITIONS, ROWS // images)
        self._drawn: dict[tuple[str, int, torch.device], Tensor] = {}
        # 4 bytes a row and kernel position: less than the rows themselves, whatever their number
        self._patches: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}

    def at(self, layer: str, spots: int, device: torch.device) -> Tensor:
        """Indices (images, positions) into the ``spots`` output positions of a layer."""
        key = layer, spots, device
        if key not in self._drawn:
            shape = self.images, min(self.positions, spots)
            if shape[1] == spots:
                drawn = torch.arange(spots, device=device).expand(shape)
            else:
                generator = torch.Generator("cpu")
                generator.manual_seed(zlib.crc32(layer.encode(), self.seed))
                drawn = torch.randint(spots, shape, generator=generator, device="cpu").to(device)
            self._drawn[key] = drawn
        return self._drawn[key]

    def outputs(self, layer: str, module: nn.Module, output: Tensor, first: int = 0) -> Tensor:
        """Rows (images * positions, out) of a layer's output; ``first`` is the number of the
        batch's first image.
        """
        rows = output.permute(0, 2, 3, 1) if _weight(module).dim() == 4 else output
        images, spots = len(rows), math.prod(rows.shape[1:-1])
        chosen = self.at(layer, spots, rows.device)[first : first + images]
        before = torch.arange(images, device=rows.device)[:, None] * spots
        return rows.reshape(-1, rows.shape[-1]).index_select(0, (before + chosen).flatten())

    def inputs(self, layer: str, module: nn.Module, x: Tensor, first: int = 0) -> Tensor:
        """Rows (images * positions, kernel positions * in): the patches that those outputs are
        computed from.
        """
        kind = kind_of(module)
        if not isinstance(module, nn.Conv2d) or kind is None:
            return self.outputs(layer, module, x, first)
        grid = kind.output_shape(module, tuple(x.shape))[2:]
        pads = module._reversed_padding_repeated_twice
        corner = (-pads[2], -pads[0])  # of the first patch: top, left
        if module.padding_mode != "zeros":
            x, corner = F.pad(x, pads, mode=module.padding_mode), (0, 0)
        key = layer, len(x), x.shape[2:], module.kernel_size, first, x.device
        if key not in self._patches:
            self._patches[key] = self._find_patches(layer, module, x, grid, corner, first)
        pixels, outside = self._patches[key]
        patches = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).index_select(0, pixels)
        patches.index_fill_(0, outside, 0.0)
        return patches.view(-1, patches.shape[1] * math.prod(module.kernel_size))

    def _find_patches(
        self,
        layer: str,
        conv: nn.Conv2d,
        x: Tensor,
        grid: tuple[int, ...],
        corner: tuple[int, int],
        first: int,
    ) -> tuple[Tensor, Tensor]:
        """The pixels of a batch, counted over all its images, that the sampled outputs read (rows *
        kernel positions,); and which of these numbers stand for padding.
        """
        images, _, height, width = x.shape
        spots = self.at(layer, math.prod(grid), x.device)[first : first + images, :, None, None]
        down, across = (
            torch.arange(size, device=x.device) * step
            for size, step in zip(conv.kernel_size, conv.dilation, strict=True)
        )
        y = spots // grid[1] * conv.stride[0] + corner[0] + down[:, None]
        z = spots % grid[1] * conv.stride[1] + corner[1] + across
        outside = (y < 0) | (y >= height) | (z < 0) | (z >= width)
        image = torch.arange(images, device=x.device)[:, None, None, None]
        pixels = (image * height + y.clamp(0, height - 1)) * width + z.clamp(0, width - 1)
        return pixels.flatten().int(), outside.flatten().nonzero().flatten()
