"""Labels as people have them, made class numbers or refused."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amc.errors import UserError, first_line
from amc.network.layers import IntArray


def as_array(values: object, whose: str) -> NDArray[np.generic]:
    """A tensor, an array or lists, as an array; one of Python objects becomes one of numbers where
    it holds numbers or arrays of one shape.

    Raises:
        UserError: arrays or rows in it differ in size.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        if values.dtype == torch.bfloat16:
            values = values.float()  # NumPy has none
    try:
        found = np.asarray(values)
        return np.asarray(found.tolist()) if found.dtype == object else found
    except (ValueError, TypeError) as error:
        raise UserError(f"{whose} cannot be made one array: {first_line(error)}") from error


def class_numbers(values: object, whose: str, images: IntArray | None = None) -> IntArray:
    """The class number of each image, int64 (n,).

    Args:
        values: (n,) or (n, 1) whole numbers from 0, of any type; or (n, classes) with a 1 at the
            class and 0 elsewhere.
        whose: they are, for messages.
        images: their numbers, for messages, where they are not those from 0.

    Raises:
        UserError: they are text, several classes an image, quantities or negative.
    """
    labels = as_array(values, whose)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "biuf":
        found = f"text such as {labels.flat[0]!s:.40}" if labels.dtype.kind == "U" else "no numbers"
        raise UserError(
            f"{whose} are {found}: give class numbers, from 0 in the order of the network's "
            "outputs (of names in alphabetical order: np.unique(names, return_inverse=True)[1])"
        )
    if labels.ndim == 2:
        labels = _of_one_hot(labels, whose, images)
    if labels.ndim != 1:
        raise UserError(
            f"{whose} are {labels.shape}: give one class number an image (classification only)"
        )
    numbers = labels.astype(np.float64)
    if (odd := np.flatnonzero(~(np.isfinite(numbers) & (numbers == np.rint(numbers))))).size:
        raise UserError(
            f"{whose} are no class numbers: {numbers[odd[0]]:g} of image {_at(odd, images)}; only "
            "classification is known, with whole numbers from 0 (leave out images without a class)"
        )
    if (odd := np.flatnonzero((numbers < 0) | (numbers >= 2**31))).size:
        raise UserError(
            f"{whose} hold {numbers[odd[0]]:.15g} (image {_at(odd, images)}): class numbers begin "
            "at 0; leave out images without a class, with torch.utils.data.Subset or an index"
        )
    return labels.astype(np.int64)


def _of_one_hot(
    labels: NDArray[np.generic], whose: str, images: IntArray | None
) -> NDArray[np.generic]:
    """(n, classes) -> (n,), where each row has one 1 and is 0 elsewhere."""
    hot = labels == 1
    one_hot = (hot.sum(1) == 1) & (hot | (labels == 0)).all(1)
    if (odd := np.flatnonzero(~one_hot)).size:
        row = ", ".join(f"{value:g}" for value in labels[odd[0], :6].astype(np.float64))
        raise UserError(
            f"{whose} are several values an image ({row} of image {_at(odd, images)}): give one "
            "class number an image (neither several classes nor soft labels are known)"
        )
    return np.asarray(hot.argmax(1))


def _at(odd: IntArray, images: IntArray | None) -> int:
    """The number of the first image that is odd."""
    return int(odd[0] if images is None else images[odd[0]])
