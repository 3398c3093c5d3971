"""Files that are whole whenever a process is killed: written aside, flushed, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amc.errors import UserError


@contextmanager
def on_disk(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTDIR):  # a file stands where a folder should
            raise UserError(f"{str(path)!r} cannot be made: a file is in its way") from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG):
            raise UserError(
                f"{str(path)!r} cannot be written ({os.strerror(error.errno)}): what was done "
                "before is safe; make room, then resume"
            ) from error
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file aside, flush it to the disk, and rename it into place.

    Raises:
        UserError: the disk is full or read-only; the file is as it was before.
    """
    aside = path.with_name(path.name + ".part")
    with on_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with aside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


def sha256(path: Path) -> str:
    """The checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_same(path: Path, checksum: str | None) -> None:
    """Refuse a file that is not what was written; None: nobody knows.

    Raises:
        UserError: its checksum is another.
    """
    if checksum is not None and path.is_file() and sha256(path) != checksum:
        raise UserError(
            f"{str(path)!r} is not what was written there: its checksum (sha256) is another, so "
            "bits of it were flipped, or it was put there later"
        )


def write_json(path: Path, value: Any) -> None:
    """`write_bytes`, as indented JSON."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())
