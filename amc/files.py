"""Files that are whole whenever a process is killed: written aside, flushed, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amc.errors import UserError, first_line

ASIDE = ".part"  # the end of the name of what is being written
NAME_BYTES = 200  # of a folder's name; filesystems take 255

_IN_THE_WAY = errno.EEXIST, errno.ENOTDIR, errno.EISDIR  # a file stands where a folder should
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room"),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS), "let it be written, or name another place"
    ),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "allow more open files (ulimit -n)"),
    errno.ENAMETOOLONG: "name a shorter one",
    errno.ENOENT: "see that its folder is there",
}
"""What to do; of other errors: see that the disk is there."""


@contextmanager
def on_disk(path: Path) -> Iterator[None]:
    """Turn whatever a disk refuses into one sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(refused(error, path)) from error


def refused(error: OSError, path: object, verb: str = "written") -> str:
    """What a disk refused, what is safe, and what to do, in one sentence.

    Args:
        error: of the disk.
        path: of the file; none where it is not known.
        verb: what was tried.
    """
    name = "a file" if path is None else repr(str(path))
    if error.errno in _IN_THE_WAY and verb == "written":
        what = "folder" if error.errno == errno.EISDIR else "file"
        return f"{name} cannot be made: a {what} is in its way"
    remedy = _REMEDIES.get(error.errno or 0, "see that the disk is there")
    why = os.strerror(error.errno) if error.errno else first_line(error)
    return f"{name} cannot be {verb} ({why}): what was done before is safe; {remedy}, then resume"


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file aside, flush it to the disk, and rename it into place. Of several processes that
    write it at once the last one's is there, whole.

    Raises:
        UserError: the disk does not take it; the file is as it was before.
    """
    with on_disk(path):
        try:
            _write(path, content)
        except FileNotFoundError:  # who took the folder's lock has swept it (`sweep_asides`)
            _write(path, content)


def _write(path: Path, content: bytes) -> None:
    aside = path.with_name(f"{os.getpid()}-{secrets.token_hex(4)}{ASIDE}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with aside.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def sweep_asides(folder: Path) -> None:
    """Remove what killed processes have left half-written. For the one that writes the folder."""
    with on_disk(folder):
        for aside in folder.glob(f"*{ASIDE}"):
            aside.unlink(missing_ok=True)


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


def folder_name(text: str) -> str:
    """A text as the name of one folder: it leads nowhere else, and every filesystem takes it. Of
    one that is too long the end is exchanged for its digest.
    """
    name = re.sub(r"[^\w.=+-]+", "_", text).lstrip(".") or "_"
    if len(name.encode()) <= NAME_BYTES:
        return name
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
    whole = name.encode()[: NAME_BYTES - 1 - len(digest)].decode(errors="ignore")
    return f"{whole}-{digest}"
