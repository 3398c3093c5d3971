"""How training images are divided: the held-out ones, on which a search measures; the calibration
ones, which repair may use; and the rest. The test images are for final figures only (and to tell
whether the held-out ones have been trained on: `amc.evaluate.memory`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from amc.data.datasets import Dataset
from amc.errors import UserError, first_line
from amc.network.layers import IntArray

LEAST = 20  # training images of which fifths are taken; of fewer an accuracy says nothing


@dataclass(frozen=True, eq=False)
class Splits:
    """Indices into the training images: three parts that do not overlap."""

    heldout: IntArray  # what a search measures on
    calibration: IntArray  # what repair may use; part of what the base network may be trained on
    train: IntArray  # everything but the held-out images

    def others(self, count: int) -> IntArray:
        """Some training images that are neither held out nor for calibration, drawn; of the
        calibration ones where there are no others.
        """
        left = np.setdiff1d(self.train, self.calibration)
        drawn = np.random.default_rng(0).permutation(left if len(left) else self.calibration)
        return np.asarray(drawn[:count])


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
    total = _counted(dataset, images, calibration_images)
    drawn = images or min(5000, total // 5)
    calibration_images = calibration_images or min(1000, total // 5)
    seed = 0 if heldout is not None else seed
    order = np.random.default_rng(seed).permutation(total)
    reserved = order[:drawn] if heldout is None else _read_indices(heldout, total)
    images = images or len(reserved)
    if images > len(reserved) or len(reserved) + calibration_images > total:
        raise UserError(
            f"evaluate.images {images} and evaluate.calibration_images {calibration_images} are "
            f"more than {dataset.name!r} has ({total} training images, {len(reserved)} held out): "
            "set them lower"
        )
    rest = order[~np.isin(order, reserved)]
    chosen = reserved
    if images < len(reserved):
        chosen = np.random.default_rng(seed).permutation(reserved)[:images]
    return Splits(np.sort(chosen), rest[:calibration_images], np.sort(rest))


def _counted(dataset: Dataset, images: int | None, calibration_images: int | None) -> int:
    """The training images, which must be enough where a fifth of them is taken."""
    total = len(dataset.train.labels)
    if total < LEAST and not (images and calibration_images):
        raise UserError(
            f"{dataset.name!r} has {total} training images: a search needs {LEAST}, a fifth each "
            "to measure on and to repair from; give more, or set evaluate.images and "
            "evaluate.calibration_images"
        )
    return total


def _read_indices(path: Path, total: int) -> IntArray:
    """Different whole numbers below ``total``, in the order of the file."""
    try:
        with np.errstate(all="raise"):  # a size of too many digits
            # mapped: what it claims must be there, and takes no memory
            found = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged file may lead to nearly any
        raise UserError(
            f"the file of held-out indices {str(path)!r} cannot be read: {first_line(error)}; "
            "np.save makes one of an array of whole numbers"
        ) from error
    wrong = f"{str(path)!r} must hold different indices from 0 to {total - 1}"
    if not isinstance(found, np.ndarray):
        raise UserError(f"{wrong}: it is an archive of several arrays, save one with np.save")
    if found.dtype == bool:
        raise UserError(f"{wrong}: it holds true and false, save np.flatnonzero of them")
    if found.dtype.kind not in "iuf" or not 0 < found.size <= total:
        raise UserError(f"{wrong}: it holds {found.dtype} {found.shape}")
    found = np.array(found)
    for flaw, what in (
        (~np.isfinite(found) | (found != np.rint(found)), "no whole number"),
        ((found < 0) | (found >= total), "no training image's"),
    ):
        if flaw.any():
            raise UserError(f"{wrong}: {found[flaw][0]} is {what}")
    indices = found.astype(np.int64).reshape(-1)
    values, counts = np.unique(indices, return_counts=True)
    if counts.max() > 1:
        raise UserError(f"{wrong}: {values[counts.argmax()]} is there {counts.max()} times")
    return indices
