"""Arrays in .npz files. Their headers are read first: what they claim must be there."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amc.data.arrays import as_pixels
from amc.errors import UserError, first_line

LARGE = 2**28  # bytes; less than this is unpacked however little room it takes
BOMB = 500  # times that an array is larger than it is in the file: no images can be packed so well


def read_arrays(path: Path, name: str, keys: Sequence[str]) -> list[NDArray[Any]]:
    """The named arrays; those of images, which begin with ``x``, must be uint8. A file that is
    refused takes hardly any memory.

    Args:
        path: of the file.
        name: of the dataset, for messages.
        keys: the arrays' names.

    Raises:
        UserError: the file is damaged, lacks an array, holds Python objects, or claims what is not
            there.
    """
    try:
        with path.open("rb") as file:
            if file.read(6) == np.lib.format.MAGIC_PREFIX:
                raise UserError(
                    f"the data file {str(path)!r} holds one array: np.savez makes one with "
                    f"{', '.join(keys)}"
                )
        with zipfile.ZipFile(path) as archive:
            for key in keys:
                empty = _without_values(archive, key, path, keys)
                if key.startswith("x"):
                    as_pixels(empty, f"{key} of {name!r}")
        with np.load(path, allow_pickle=False) as archive:
            return [archive[key] for key in keys]
    except UserError:
        raise
    except Exception as error:  # a damaged file may lead to nearly any
        raise UserError(
            f"the data file {str(path)!r} is damaged, or holds Python objects: {first_line(error)}"
        ) from error


def _without_values(
    archive: zipfile.ZipFile, key: str, path: Path, keys: Sequence[str]
) -> NDArray[Any]:
    """An array of the type and shape that a header names, which takes no memory."""
    if f"{key}.npy" not in archive.namelist():
        raise UserError(f"{str(path)!r} has no array {key!r}: it needs {', '.join(keys)}")
    info = archive.getinfo(f"{key}.npy")
    with archive.open(info) as entry:
        version = np.lib.format.read_magic(entry)
        first = version == (1, 0)
        read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(entry)
        begin = entry.tell()
    if dtype.hasobject:
        raise ValueError(f"the array {key!r} is of objects")
    claimed = math.prod(shape) * dtype.itemsize
    if claimed != info.file_size - begin or min(shape, default=0) < 0:
        raise UserError(
            f"the data file {str(path)!r} is damaged: its array {key!r} is said to be {dtype} "
            f"{shape}, {claimed} bytes, but has {info.file_size - begin}"
        )
    if claimed > max(LARGE, BOMB * info.compress_size):
        raise UserError(
            f"the data file {str(path)!r} is no file of images: its array {key!r} of {claimed} "
            f"bytes is packed into {info.compress_size}, as nothing but one value over and over is"
        )
    return np.broadcast_to(np.zeros((), dtype), shape)
