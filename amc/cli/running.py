"""Runs a command, and says in a sentence what went wrong."""

from __future__ import annotations

import os
import platform
import signal
import sys
import threading
import traceback

from amc import __version__

from amc.cli import searching, results, comparing, checking  # isort: skip - the order in --help
from amc.cli.console import Interrupted, app, err, say
from amc.errors import UserError, out_of_memory
from amc.files import refused

__all__ = ["app", "checking", "comparing", "results", "run", "searching"]

ISSUES = "the project's issue tracker"  # where a bug is reported
BUG = (
    "this is a bug of amc's, not a mistake of yours: please report it, with the lines above, to "
    f"{ISSUES} (amc {__version__}, Python {platform.python_version()}, {platform.platform()}); "
    "what is on the disk is whole, and `amc resume RUN` goes on with a search"
)
OUT_OF_MEMORY = (
    "there is not enough memory: what was done before is safe; take fewer images "
    "(evaluate.images, evaluate.calibration_images, batch_size) or --jobs, then resume"
)


def run() -> None:
    """The command that the arguments of this process name. It exits, with its status."""
    before, sys.unraisablehook = sys.unraisablehook, _unraisable
    try:
        app(standalone_mode=True)
    except UserError as error:
        _leave(2, str(error))
    except Interrupted as error:
        _leave(130, str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        _leave(2, refused(error, error.filename, "used"))
    except Exception as error:
        if _was_interrupted(error):
            sys.exit(130)
        if out_of_memory(error):
            _leave(1, OUT_OF_MEMORY)
        traceback.print_exc()
        _leave(1, BUG)
    finally:
        sys.unraisablehook = before
        if err.is_terminal:
            err.show_cursor()  # a progress bar hides it


def _leave(status: int, sentence: str) -> None:
    say(f"amc: {sentence}", to=err)
    sys.exit(status)


def _unraisable(lost: sys.UnraisableHookArgs) -> None:
    """Python drops what is raised in a finaliser: Ctrl-C comes again a moment later."""
    if isinstance(lost.exc_value, KeyboardInterrupt):
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(lost)


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether an error is what somebody else's code made of Ctrl-C."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None
