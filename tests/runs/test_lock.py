"""One writer a folder: the lock, and what holds around it."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import pytest
import torch
from zoo import Mine, config_of, journal

from amc.data.datasets import Dataset
from amc.deliver.export import export
from amc.deliver.finetune import finetune
from amc.errors import UserError
from amc.files import write_bytes
from amc.runs import lock
from amc.runs.directory import Run
from amc.runs.lock import Busy, is_written, writing
from amc.search import SearchResult, resume, search
from amc.views.page import report

HOLDER = """
import sys, time
from pathlib import Path
from amc.runs.lock import writing
with writing(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that writes a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def found(digits: Dataset, tmp_path: Path) -> SearchResult:
    torch.manual_seed(0)
    config = config_of("agent=random", "agent.episodes=3")
    return search(config, model=Mine(), dataset=digits, out=tmp_path)


def test_the_refusal_names_the_holder_and_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with holder(folder) as process:
        facts = json.loads((folder / ".writer.json").read_text())
        assert facts["pid"] == process.pid
        with pytest.raises(Busy) as caught, writing(folder):
            pass
        said = str(caught.value)
        for part in (str(folder), f"process {process.pid} on {facts['host']}", facts["since"]):
            assert part in said
        assert said == is_written(folder) and "\n" not in said and "try again" in said
        # what is told of the holder decides nothing
        (folder / ".writer.json").write_text("{torn")
        with pytest.raises(Busy, match="another process"), writing(folder):
            pass
        (folder / ".writer.json").unlink()
        assert is_written(folder)


def test_a_killed_holder_holds_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        (tmp_path / "checkpoint").mkdir()
        for name in ("a.part", "checkpoint/agent.pt.part"):
            (tmp_path / name).write_text("half")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert (tmp_path / ".writer.json").is_file()  # it had no time
        with writing(tmp_path):
            assert not list(tmp_path.rglob("*.part"))
            assert json.loads((tmp_path / ".writer.json").read_text())["pid"] == os.getpid()
    assert not (tmp_path / ".writer.json").exists() and is_written(tmp_path) == ""


def test_the_lock_goes_with_its_folder(tmp_path: Path) -> None:
    with holder(tmp_path / "a"):
        (tmp_path / "a").rename(tmp_path / "b")
        assert is_written(tmp_path / "b")
    shutil.copytree(tmp_path / "b", tmp_path / "c")
    for name in ("b", "c"):
        assert not is_written(tmp_path / name)


def test_a_folder_in_which_nothing_was_written_goes_again(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), writing(tmp_path / "new"):
        1 / 0  # noqa: B018
    assert not (tmp_path / "new").exists()
    with writing(tmp_path / "new"):
        (tmp_path / "new" / "file").touch()
    assert (tmp_path / "new" / "file").is_file()


def test_a_run_may_begin_in_a_locked_folder(tmp_path: Path) -> None:
    with writing(tmp_path):
        assert Run.create(tmp_path, config_of(), {}).path == tmp_path
        with pytest.raises(UserError, match="nothing is overwritten"):
            Run.create(tmp_path, config_of(), {})


def test_all_that_write_are_refused_and_all_that_read_are_not(
    found: SearchResult, digits: Dataset
) -> None:
    path = found.run.path
    before = (path / "episodes.jsonl").read_bytes()
    with holder(path):
        with pytest.raises(Busy, match="is being written by process"):
            resume(path, model=Mine(), dataset=digits)
        with pytest.raises(Busy):
            resume(path, model=Mine(), dataset=digits, repair=True)
        assert report(path).is_file() and found.run.best["reward"] == found.best["reward"]
        export(found, ["safetensors"])  # a folder of its own
    with holder(path / "export"), pytest.raises(Busy, match="export"):
        export(found, ["safetensors"])
    with holder(path / "finetune"), pytest.raises(Busy, match="finetune"):
        finetune(found, {"epochs": 1})
    finetune(found, {"epochs": 1})
    with holder(path / "finetune"):  # it has ended: there is nothing to write
        assert finetune(found).metrics["epochs"] == 1
    assert (path / "episodes.jsonl").read_bytes() == before


def test_a_second_resume_is_refused_and_the_journal_is_as_straight(
    found: SearchResult, digits: Dataset
) -> None:
    path = found.run.path
    expected = journal(path)
    lines = (path / "episodes.jsonl").read_bytes().splitlines(keepends=True)
    (path / "episodes.jsonl").write_bytes(lines[0])
    refused = []

    def second(what: str, done: int, total: int) -> None:
        if what.startswith("searching") and done == 2:
            code = "import sys, amc; amc.resume(sys.argv[1])"
            command = [sys.executable, "-c", code, str(path)]
            other = subprocess.run(command, capture_output=True, text=True, check=False)
            refused.append(other.stderr.splitlines()[-1])

    resume(path, model=Mine(), dataset=digits, report=second)
    assert len(refused) == 1 and f"is being written by process {os.getpid()}" in refused[0]
    assert journal(path) == expected


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_a_file_stands_in_and_it_is_said_once(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(self: filelock.FileLock, *arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(filelock.UnixFileLock, "acquire", none)
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING, "amc"):
        with writing(tmp_path), pytest.raises(Busy), writing(tmp_path):
            pass
        with writing(tmp_path):
            pass
    assert len(caplog.messages) == 1 and "has no locks" in caplog.messages[0]
    # of a process that has died it is taken over
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / ".lock.held").write_text(f"{dead.pid}\n{os.uname().nodename}\n")
    os.utime(tmp_path / ".lock.held", (0, 0))
    with writing(tmp_path):
        pass
    assert not (tmp_path / ".lock.held").exists()


def test_a_refused_lock_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: filelock.FileLock, *arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(filelock.UnixFileLock, "acquire", full)
    with pytest.raises(UserError, match="Read-only file system"), writing(tmp_path):
        pass


def test_files_written_at_once_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another writer between aside and rename; a sweep of what is aside, too."""
    path, replace, seen = tmp_path / "file", Path.replace, []

    def between(self: Path, target: Path) -> Path:
        if not seen:
            seen.append(self)
            write_bytes(path, b"other")
            with writing(tmp_path):
                pass
        seen.append(self)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", between)
    write_bytes(path, b"own")
    assert path.read_bytes() == b"own" and len(set(seen)) >= 3
    assert not list(tmp_path.glob("*.part"))
