"""How training images are divided: the held-out ones, on which a search measures; the calibration
ones, which repair may use; and the rest. The test images are for final figures only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from amc.data.datasets import Dataset
from amc.errors import UserError
from amc.network.layers import IntArray


@dataclass(frozen=True, eq=False)
class Splits:
    """Indices into the training images: three parts that do not overlap."""

    heldout: IntArray  # what a search measures on
    calibration: IntArray  # what repair may use; part of what the base network may be trained on
    train: IntArray  # everything but the held-out images


def split(
    dataset: Dataset,
    images: int | None,
    calibration_images: int | None,
    seed: int = 0,
    heldout: Path | None = None,
) -> Splits:
    """Divide the training images. With a file of held-out indices the seed has no say in it: then
    searches of several seeds are of one problem.

    Args:
        dataset: whose training images are divided.
        images: how many held-out images are used; none: those of the file, or 5,000, or a fifth
            of all where that is less.
        calibration_images: how many of the rest repair may use; none: 1,000, or a fifth.
        seed: of the draws, where there is no file.
        heldout: a .npy file of indices; without it they are drawn.

    Raises:
        UserError: there are not enough images, or the file does not fit the dataset.
    """
    total = len(dataset.train.labels)
    drawn = images or min(5000, total // 5)
    calibration_images = calibration_images or min(1000, total // 5)
    seed = 0 if heldout is not None else seed
    order = np.random.default_rng(seed).permutation(total)
    reserved = order[:drawn] if heldout is None else _read_indices(heldout, total)
    images = images or len(reserved)
    if images > len(reserved) or len(reserved) + calibration_images > total:
        raise UserError(
            f"evaluate.images {images} and evaluate.calibration_images {calibration_images} are "
            "more than "
            f"{dataset.name!r} has ({total} training images, {len(reserved)} of them held out)"
        )
    rest = order[~np.isin(order, reserved)]
    chosen = np.sort(
        reserved
        if images == len(reserved)
        else np.random.default_rng(seed).permutation(reserved)[:images]
    )
    return Splits(chosen, rest[:calibration_images], np.sort(rest))


def _read_indices(path: Path, total: int) -> IntArray:
    try:
        indices = np.load(path, allow_pickle=False).astype(np.int64).reshape(-1)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(
            f"the file of held-out indices {str(path)!r} cannot be read: {error}"
        ) from error
    if len(np.unique(indices)) != len(indices) or indices.min() < 0 or indices.max() >= total:
        raise UserError(f"{str(path)!r} must hold different indices from 0 to {total - 1}")
    return np.asarray(indices)
