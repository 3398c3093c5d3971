"""Decoded images of a folder, kept on disk as they are asked for.

A file of records of one length, an image a record: whose it is (`Decoded.identities`), a checksum,
and its pixels. What is missing, torn (kill -9, a power cut), damaged, or of an image that has
changed since does not match, and is decoded again. So several processes may fill one file at once
without a lock, and nothing that was written needs to be believed.

It is read with ``preadv`` and not through a memory map: mapped pages count as memory of the
process, and a map whose file is cut short, or whose disk is full, ends it with a signal.
"""

from __future__ import annotations

import errno
import logging
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amc.errors import first_line
from amc.files import write_bytes
from amc.network.layers import IntArray

HEAD_BYTES = 16  # of a record: an identity and a checksum, uint64 each
RESERVE_BYTES = 2**30  # that are left free on the disk, for runs and others
PIXELS, CHECKED = "pixels", "checked"  # files

Decode = Callable[[int], NDArray[np.uint8]]
"""The pixels (C, H, W) of an image, by its number."""


class Decoded:
    """The decoded images of one folder at one size. Where its place cannot be written, or the disk
    is full, images are decoded each time; that is said once.
    """

    def __init__(
        self, place: Path, identities: NDArray[np.uint64], shape: tuple[int, int, int], whose: str
    ) -> None:
        """Nothing is written yet; where there is nothing, what will be is said.

        Args:
            place: a folder of its own.
            identities: a number for each image (N,), another one when the image or the way in which
                it is decoded has changed; 0: of none.
            shape: of each image (C, H, W).
            whose: the images are: a folder, for messages.
        """
        self.place, self.identities, self.shape = place, identities, shape
        self._record = HEAD_BYTES + shape[0] * shape[1] * shape[2]
        self._refusal, self._told = "", False  # why what is decoded is not kept
        if not (place / PIXELS).exists() and os.access(_existing(place), os.W_OK):
            logging.getLogger("amc").warning(
                "the %d images in %r are checked once, and kept decoded in %r as they are asked "
                "for: up to %s (%s are free there); delete it as you like",
                len(identities),
                whose,
                str(place),
                _size(len(identities) * self._record),
                _size(_free_bytes(place)),
            )

    def unchecked(self) -> IntArray:
        """The images that `keep_checked` does not know."""
        known = np.zeros(0, np.uint64)
        with suppress(OSError, ValueError):  # missing or cut short
            known = np.frombuffer((self.place / CHECKED).read_bytes(), np.uint64)
        return np.flatnonzero(~np.isin(self.identities, known) | (self.identities == 0))

    def keep_checked(self) -> None:
        """All images have been checked."""
        try:
            write_bytes(self.place / CHECKED, self.identities.tobytes())
        except Exception as error:  # without it they are checked again
            self._refusal = first_line(error)

    def fetch(self, indices: IntArray, decode: Decode) -> NDArray[np.uint8]:
        """Pixels (n, C, H, W) of some images; what is not kept yet is decoded, in threads."""
        pixels = np.empty((len(indices), *self.shape), np.uint8)
        with self._opened() as file:
            missing = [
                (at, index)
                for at, index in enumerate(indices.tolist())
                if not self._read(file, index, pixels[at])
            ]
            self._refuse_where_full(len(missing))

            def make(one: tuple[int, int]) -> None:
                at, index = one
                pixels[at] = decode(index)
                if file is not None and not self._refusal:
                    self._write(file, index, pixels[at])

            if missing:
                with ThreadPoolExecutor() as threads:  # decoding lets other threads run
                    for _ in threads.map(make, missing):
                        pass
        if missing and self._refusal and not self._told:
            self._told = True
            logging.getLogger("amc").warning(
                "warning: decoded images cannot be kept in %r (%s), so they are decoded each time: "
                "make room, or name a folder that can be written as data_dir",
                str(self.place),
                self._refusal,
            )
        return pixels

    @contextmanager
    def _opened(self) -> Iterator[int | None]:
        """The file's descriptor; none where there is none."""
        file = self._open()
        try:
            yield file
        finally:
            if file is not None:
                try:
                    os.close(file)
                except OSError as error:  # what a server had put off
                    self._refusal = first_line(error)

    def _open(self) -> int | None:
        path, length = self.place / PIXELS, len(self.identities) * self._record
        if not self._refusal:
            try:
                self.place.mkdir(parents=True, exist_ok=True)
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except OSError as error:
                self._refusal = first_line(error)
            else:
                self._size_to(file, length)
                return file
        with suppress(OSError):
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # what is there is of use
        return None

    def _size_to(self, file: int, length: int) -> None:
        """A sparse file: it takes what is written."""
        try:
            if os.fstat(file).st_size != length:
                os.ftruncate(file, length)
        except OSError as error:  # filesystems have limits
            self._refusal = first_line(error)

    def _read(self, file: int | None, index: int, pixels: NDArray[np.uint8]) -> bool:
        """Fill in an image (C, H, W); whether it is kept."""
        if file is None:
            return False
        head = np.zeros(2, np.uint64)
        try:
            count = os.preadv(file, [head.data, pixels.reshape(-1).data], index * self._record)
        except OSError:  # a bad block
            return False
        whose, checksum = head.tolist()
        whole = count == self._record and whose == self.identities[index] != 0
        return bool(whole) and checksum == zlib.crc32(pixels.data)

    def _write(self, file: int, index: int, pixels: NDArray[np.uint8]) -> None:
        head = np.array([self.identities[index], zlib.crc32(pixels.data)], np.uint64)
        try:
            parts = [head.data, pixels.reshape(-1).data]
            if os.pwritev(file, parts, index * self._record) < self._record:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._refusal = first_line(error)

    def _refuse_where_full(self, count: int) -> None:
        """Whether so many images more would take the room that a run needs for its own files."""
        needed = RESERVE_BYTES + count * self._record
        if count and not self._refusal and _free_bytes(self.place) < needed:
            self._refusal = f"less than {_size(RESERVE_BYTES)} would be left free"


def _existing(place: Path) -> Path:
    """The folder, or the one that it will be made in."""
    return next(one for one in (place, *place.absolute().parents) if one.exists())


def _free_bytes(place: Path) -> int:
    found = os.statvfs(_existing(place))
    return found.f_bavail * found.f_frsize


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
