"""One writer a folder: of a run, a fine-tuning, an export, or a sweep.

Readers take no lock: whatever is in a folder is whole at any moment.

- The lock is the kernel's (``flock``), so it ends with its process, however that ends, and goes
  with its folder where that is moved. What `names.WRITER` tells of its holder is for the message
  only.
- Over NFS it holds between machines (NFS 4, or 3 with its lock service). Mounted with ``nolock`` or
  ``local_lock``, it holds on each machine only. The lock of a machine that is cut off ends when the
  server gives its lease up, which takes a minute or two.
- Where a filesystem has no locks, a file stands in. It is taken over from a process of this machine
  that has died; what a process of another machine has left must be deleted by hand.
- On Ray a run is written where its worker is; its files come to the disk of the machine that asked
  for it through `amc.parallel.workers.Shelf`, which holds the lock there.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from amc.errors import UserError
from amc.files import on_disk, sweep_asides, write_json
from amc.runs import names

PATIENCE_SECONDS = 1.0  # for a process that only asks (`is_written`), or is just ending
_NO_LOCKS = errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP
_warned: set[Path] = set()


class Busy(UserError):
    """Another process writes the folder. Later it may be free."""


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """No other process writes the folder meanwhile. It is made where it is missing, and goes again
    where nothing has come into it.

    Raises:
        Busy: another one writes it.
        UserError: nothing can be written there.
    """
    lock = _taken(folder, PATIENCE_SECONDS)
    try:
        sweep_asides(folder)
        sweep_asides((folder / names.CHECKPOINT).parent)
        write_json(folder / names.WRITER, _myself())
        yield
    finally:
        with suppress(OSError):
            (folder / names.WRITER).unlink(missing_ok=True)
            if {path.name for path in folder.iterdir()} <= set(names.LOCKS):
                (folder / names.LOCK).unlink(missing_ok=True)  # who waits for it notices
                folder.rmdir()
        lock.release()


def is_written(folder: Path) -> str:
    """Who writes a folder just now, as `Busy` says it; empty where nobody does."""
    try:
        _taken(folder, 0.0).release()
    except Busy as error:
        return str(error)
    return ""


def _taken(folder: Path, seconds: float) -> BaseFileLock:
    """The lock of a folder, within some seconds."""
    with on_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock: BaseFileLock = FileLock(
                folder / names.LOCK, thread_local=False, fallback_to_soft=False
            )
            try:
                lock.acquire(timeout=seconds)
            except OSError as error:
                if isinstance(error, Timeout) or error.errno not in _NO_LOCKS:
                    raise
                lock = _stand_in(folder)
                lock.acquire(timeout=seconds)
        except Timeout:
            raise Busy(_refusal(folder)) from None
    return lock


def _stand_in(folder: Path) -> BaseFileLock:
    """A lock where the filesystem has none."""
    path = folder / f"{names.LOCK}.held"
    if folder not in _warned:
        _warned.add(folder)
        logging.getLogger("amc").warning(
            "warning: the filesystem of %r has no locks, so a file stands in: two processes of one "
            "machine never write it at once; where one on another machine was killed, delete %r",
            str(folder),
            str(path),
        )
    return SoftFileLock(path, thread_local=False)


def _myself() -> dict[str, Any]:
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return {"pid": os.getpid(), "host": platform.node(), "since": since}


def _refusal(folder: Path) -> str:
    """Who writes a folder, as far as it is known: it may have just begun or just ended."""
    who, stop = "another process", "stop it"
    with suppress(OSError, ValueError, KeyError, TypeError):
        facts = json.loads((folder / names.WRITER).read_text(encoding="utf-8"))
        who = f"process {int(facts['pid'])} on {facts['host']}, since {facts['since']}"
        stop = f"stop it (kill {int(facts['pid'])})"
    return (
        f"{str(folder)!r} is being written by {who}: wait until that has ended, or {stop}, and try "
        "again"
    )
