"""Processes that are started: they end with who started them, who alone hears Ctrl-C; and the cores
that they are divided between.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


@contextmanager
def deaf() -> Iterator[None]:
    """Processes that are started meanwhile do not hear Ctrl-C, from their first moment on: not
    while they import either. What this one is sent meanwhile it hears at the end.
    """
    resource_tracker.ensure_running()  # it would let the signal through when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """In a process that was started: end at once when its parent has ended, killed or not."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started it hears it
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def cores() -> int:
    """How many this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def named_threads() -> int | None:
    """What OMP_NUM_THREADS says; none where it says nothing."""
    found = re.match(r"\s*(\d+)\s*(,|$)", os.environ.get("OMP_NUM_THREADS", ""))
    return max(1, int(found[1])) if found else None
