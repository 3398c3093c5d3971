"""A layer as a matrix: its weights flattened, and its inputs and outputs at sampled positions of
calibration images as rows.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from amc.network.kinds import Kind, kind_of

POSITIONS = 10  # sampled positions an image and layer (AMC's reference)
ROWS = 10_000  # at least so many rows a layer: fewer images give more positions each


def flat_weight(module: nn.Module) -> Tensor:
    """The weights of a mixer as a matrix (out, kernel positions * in), float64; channels vary
    fastest.
    """
    return weight_of(module).detach().double().movedim(1, -1).flatten(1)


def set_flat_weight(module: nn.Module, matrix: Tensor) -> None:
    """The inverse of `flat_weight`, in place."""
    weight = weight_of(module)
    shape = weight.movedim(1, -1).shape
    with torch.no_grad():
        weight.copy_(matrix.reshape(shape).movedim(-1, 1))


def weight_of(module: nn.Module) -> Tensor:
    """The weights of a mixer: (out, in, ...)."""
    return _kind(module).weight(module)


def _kind(module: nn.Module) -> Kind:
    kind = kind_of(module)
    assert kind is not None
    return kind


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

    def __init__(
        self,
        images: int,
        seed: int = 0,
        positions: int | None = None,
        parts: Mapping[str, int] | None = None,
    ) -> None:
        """What to draw.

        Args:
            images: of calibration.
            seed: of the draws.
            positions: an image and layer; none: `POSITIONS`, or more where there are few images.
            parts: layer -> how many items of its batch belong to one image, one after the other
                (windows of attention); one where it is missing.
        """
        self.images, self.seed = images, seed
        self.positions = positions or max(POSITIONS, ROWS // images)
        self.parts = parts or {}
        self._drawn: dict[tuple[str, int, torch.device], Tensor] = {}
        # 4 bytes a row and kernel position: less than the rows themselves, whatever their number
        self._patches: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}

    def images_in(self, layer: str, x: Tensor) -> int:
        """Of how many images an input or output of a layer is."""
        return len(x) // self.parts.get(layer, 1)

    def at(self, layer: str, spots: int, device: torch.device) -> Tensor:
        """Indices (images, positions) into the ``spots`` output positions that a layer has for an
        image.
        """
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
        rows = output.movedim(_kind(module).channel_dim, -1)
        where = self._where(layer, len(rows), tuple(rows.shape[1:-1]), rows.device, first)
        return rows.reshape(-1, rows.shape[-1]).index_select(0, where)

    def inputs(self, layer: str, module: nn.Module, x: Tensor, first: int = 0) -> Tensor:
        """Rows (images * positions, kernel positions * in): the patches that those outputs are
        computed from.
        """
        kind = _kind(module)
        window = kind.window(module, tuple(x.shape[2:]))
        if window is None:
            return self.outputs(layer, module, x, first)
        x = kind.padded(module, x)
        key = layer, window, len(x), first, x.device
        if key not in self._patches:
            self._patches[key] = window.read(
                self._where(layer, len(x), window.grid, x.device, first)
            )
        pixels, zeros = self._patches[key]
        patches = x.movedim(1, -1).reshape(-1, x.shape[1]).index_select(0, pixels)
        patches.index_fill_(0, zeros, 0.0)
        return patches.view(-1, patches.shape[1] * math.prod(window.kernel))

    def _where(
        self, layer: str, items: int, grid: tuple[int, ...], device: torch.device, first: int
    ) -> Tensor:
        """The sampled positions of a batch's output, counted over all its items: (rows,)."""
        parts = self.parts.get(layer, 1)
        images, spots = items // parts, parts * math.prod(grid)
        chosen = self.at(layer, spots, device)[first : first + images]
        return (torch.arange(images, device=device)[:, None] * spots + chosen).flatten()
