"""Ctrl-C at any moment, and the last net for what goes wrong."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from amc.cli import running
from amc.cli.console import Interrupted
from amc.errors import UserError

INTERRUPTED = """
import os, runpy, signal, sys

class Finder:
    sent = False
    def find_spec(self, name, path, target=None):
        if name == os.environ["AT"] and not Finder.sent:
            Finder.sent = True
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("module", "at"),
    [
        ("amc", "amc.cli.running"),  # the first thing that is imported
        ("amc", "typer"),
        ("amc.cli", "amc.cli.searching"),
        ("amc.cli", "torch"),
        ("amc.cli", "amc.search"),
        ("amc", "amc.agents.random"),  # while it listens
    ],
)
def test_ctrl_c_while_modules_are_imported_is_no_traceback(
    module: str, at: str, tmp_path: Path
) -> None:
    search = "search", "digits_resnet8_channel_macs50", "agent=random", "--out", str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, module, *search],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "AT": at},
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr in (
        "",
        "amc: stopped before the search began: the same command starts it again\n",
    )
    assert not list(tmp_path.iterdir())


FINALISED = """
import os, signal, time
from amc import cli
from amc.cli import running

class Finalised:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)

def app(standalone_mode):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as a command that listens
    Finalised()
    for _ in range(1000):
        time.sleep(0.02)
    raise AssertionError("it was lost")

running.app = app
cli.main()
"""


def test_ctrl_c_in_a_finaliser_comes_again_and_is_no_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FINALISED], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (130, "")


def interrupted_import() -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt as error:
        raise ImportError("initialization failed") from error


def raising(error: BaseException) -> Callable[[], None]:
    def body() -> None:
        raise error

    return body


DISK = OSError(errno.EMFILE, "", "some/file")
ALLOCATOR = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (raising(UserError("a mistake")), 2, "a mistake"),
        (raising(Interrupted("go on with")), 130, "go on with"),
        (raising(KeyboardInterrupt()), 130, ""),
        (interrupted_import, 130, ""),
        (raising(DISK), 2, "'some/file' cannot be used (Too many open files)"),
        (raising(OSError("no space for temporary files")), 2, "no space for temporary files"),
        (lambda: Path(os.devnull, "below").read_text(), 2, "/below' cannot be used (Not a dir"),
        (raising(MemoryError()), 1, "not enough memory"),
        (raising(RuntimeError(ALLOCATOR)), 1, "not enough memory"),
        (raising(torch.OutOfMemoryError("of a GPU")), 1, "not enough memory"),
    ],
)
def test_what_goes_wrong_is_one_line(
    body: Callable[[], None],
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(running, "app", lambda standalone_mode: body())
    with pytest.raises(SystemExit) as caught:
        running.run()
    printed = capsys.readouterr().err
    assert caught.value.code == status
    assert said in printed and printed.count("\n") == bool(said)


def test_a_bug_of_ours_is_a_traceback_and_where_to_report_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(running, "app", lambda standalone_mode: 1 / 0)
    with pytest.raises(SystemExit) as caught:
        running.run()
    printed = capsys.readouterr().err
    assert caught.value.code == 1
    for part in ("Traceback", "ZeroDivisionError", "bug of amc's", running.ISSUES, "amc resume"):
        assert part in printed
