"""Images in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amc.data.labels import as_array
from amc.errors import UserError, shown
from amc.network.layers import IntArray

COLOURS = (1, 3, 4)  # channels of images as they usually are


class ArrayImages:
    """Images in memory: uint8 (N, H, W, C) and labels (N,)."""

    def __init__(self, pixels: NDArray[np.uint8], labels: NDArray[np.generic]) -> None:
        self.pixels, self.labels = pixels, labels.astype(np.int64).reshape(-1)

    def fetch(self, indices: IntArray) -> Tensor:
        return torch.from_numpy(self.pixels[indices]).permute(0, 3, 1, 2).contiguous()


def as_pixels(values: object, whose: str) -> NDArray[np.uint8]:
    """uint8 (N, H, W, C), of those or of grey images (N, H, W).

    Raises:
        UserError: they are something else.
    """
    pixels = as_array(values, whose)
    found = f"{whose} is {pixels.dtype} {pixels.shape}: it must be uint8 (N, H, W, C)"
    if pixels.dtype != np.uint8:
        raise UserError(
            f"{found}; of pixels in [0, 1] take (x * 255).round().astype(np.uint8), of 0 to 255 "
            "x.astype(np.uint8); images that are normalised already go to Dataset.from_loaders"
        )
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.ndim != 4 or 0 in pixels.shape[1:]:
        raise UserError(found)
    if pixels.shape[1] in COLOURS and pixels.shape[3] > max(COLOURS):
        raise UserError(f"{found}; take x.transpose(0, 2, 3, 1)")
    return pixels.view(np.uint8)


def normalisation(
    pixels: NDArray[np.uint8], mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of pixels in [0, 1]: those given, else measured
    on the first 10,000 images.
    """
    if mean is None or std is None:
        measured, spread = _mean_and_std(pixels[:10000])
        mean = measured.tolist() if mean is None else mean
        std = np.maximum(spread, 1e-3).tolist() if std is None else std
    try:
        return tuple(map(float, mean)), tuple(map(float, std))
    except (TypeError, ValueError):
        raise UserError(
            f"mean is {shown(mean)} and std is {shown(std)}: a number a channel is expected"
        ) from None


def _mean_and_std(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of each channel, of pixels in [0, 1]; a few images at a time, for they may be large."""
    total = squares = np.zeros(pixels.shape[-1])
    for start in range(0, len(pixels), 100):
        part = pixels[start : start + 100].astype(np.float64) / 255
        total = total + part.sum((0, 1, 2))
        squares = squares + (part**2).sum((0, 1, 2))
    count = pixels[..., 0].size
    mean = total / count
    return mean, np.sqrt(np.maximum(squares / count - mean**2, 0))
