"""Augmentation of batches on the device that trains: no Python for each image.

What happens to an image is a row of numbers, drawn uniformly from [0, 1) for the whole batch: a
process that trains on a part of the batch takes its rows.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from amc.training.settings import Augment

DRAWS = 5  # numbers an image
SMALL = 64  # pixels: up to here `shift` is the usual one
SCALE = (0.25, 1.0)  # of the area that `crop` takes
ASPECT = (3 / 4, 4 / 3)


def augmented(images: Tensor, draws: Tensor, how: Augment) -> Tensor:
    """Augmented images.

    Args:
        images: normalised (n, C, H, W).
        draws: uniform in [0, 1), (n, DRAWS).
        how: as in the config.
    """
    if how == "auto":
        how = "shift" if images.shape[-1] <= SMALL else "crop"
    if how == "none":
        return images
    return shifted(images, draws) if how == "shift" else cropped(images, draws)


def shifted(images: Tensor, draws: Tensor) -> Tensor:
    """Each image shifted by up to an eighth of its height and width, with zeros (the mean colour)
    from outside, and mirrored half of the time: of 32 pixels, the usual 4 (He et al. 2016).
    """
    count, _, height, width = images.shape
    rows, columns = height // 8, width // 8
    padded = F.pad(images, (columns, columns, rows, rows))
    device = images.device
    top = (draws[:, 0] * (2 * rows + 1)).long()
    left = (draws[:, 1] * (2 * columns + 1)).long()
    y = top[:, None] + torch.arange(height, device=device)
    x = left[:, None] + torch.arange(width, device=device)
    x = torch.where(draws[:, 2, None] < 0.5, x.flip(1), x)
    number = torch.arange(count, device=device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[number, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)


def cropped(images: Tensor, draws: Tensor) -> Tensor:
    """A random part of each image, a quarter to all of its area at an aspect of 3/4 to 4/3, resized
    to the image's size, and mirrored half of the time (Szegedy et al. 2015).
    """
    area = SCALE[0] + draws[:, 0] * (SCALE[1] - SCALE[0])
    low, high = (math.log(aspect) for aspect in ASPECT)
    aspect = torch.exp(low + draws[:, 1] * (high - low))
    width = torch.clamp((area * aspect).sqrt(), max=1.0)
    height = torch.clamp((area / aspect).sqrt(), max=1.0)
    x = (2 * draws[:, 2] - 1) * (1 - width)  # of the centre, in [-1, 1]
    y = (2 * draws[:, 3] - 1) * (1 - height)
    mirror = torch.where(draws[:, 4] < 0.5, -1.0, 1.0)
    zero = torch.zeros_like(x)
    rows = torch.stack([mirror * width, zero, x]), torch.stack([zero, height, y])
    transform = torch.stack(rows).permute(2, 0, 1).to(images.dtype)
    grid = F.affine_grid(transform, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
