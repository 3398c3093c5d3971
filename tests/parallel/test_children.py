"""Processes that are started, and sweeps beside other processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from zoo import command, journal

from amc.config import load_config
from amc.errors import UserError
from amc.parallel.children import cores, named_threads
from amc.parallel.workers import End, Shelf, Task
from amc.runs.lock import Busy, is_written, writing
from amc.search import search
from amc.sweep import Sweep, _divided, plan, sweep

PRESET = "digits_resnet8_channel_macs50"
TINY = [
    "train.epochs=1",
    "evaluate.images=60",
    "evaluate.calibration_images=60",
    "agent=random",
    "agent.episodes=5",
]


def children(pid: int) -> set[int]:
    """The processes that a process has started, and theirs."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found |= {int(child), *children(int(child))}
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def wait_for(what: str, happened: object, seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not happened():  # type: ignore[operator]
        assert time.monotonic() < until, what
        time.sleep(0.05)


def test_a_killed_sweep_leaves_no_workers_and_a_second_one_is_refused(tmp_path: Path) -> None:
    overrides = [*TINY, "agent.episodes=200", "seed=0,1"]
    options = "sweep", PRESET, *overrides, "--out", str(tmp_path), "--jobs", "2"
    process = subprocess.Popen([sys.executable, "-m", "amc.cli", *options])
    try:
        begun = lambda: len(list(tmp_path.rglob("episodes.jsonl"))) == 2  # noqa: E731
        wait_for("two runs", begun)
        workers = children(process.pid)
        assert len(workers) >= 2
        second = command(*options)
        assert second.returncode == 2 and second.stderr.count("\n") == 1, second.stderr
        assert f"is being written by process {process.pid} " in second.stderr
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_for("the workers' end", lambda: not any(map(alive, workers)), seconds=30)
    assert is_written(tmp_path / f"sweep_{PRESET}") == ""
    assert not any(is_written(path.parent) for path in tmp_path.rglob("episodes.jsonl"))


class Here:
    """Runs a task in this process, when it is asked what has ended."""

    jobs = 1

    def __init__(self, jobs: int, threads: int) -> None:
        self.tasks: dict[int, Task] = {}
        self.ends: list[End] = []

    def start(self, task: Task) -> int:
        self.tasks[len(self.tasks)] = task
        return len(self.tasks) - 1

    def ended(self) -> dict[int, End]:
        found = {}
        for number in list(self.tasks):
            task = self.tasks.pop(number)
            try:
                task.work(task, torch.get_num_threads(), lambda what, done, total: None)
                found[number] = End()
            except UserError as error:
                found[number] = End(str(error), busy=isinstance(error, Busy))
        return found

    def close(self) -> None:
        pass


def half(folder: Path, seed: int) -> Path:
    """A run of a sweep that was stopped after an episode."""
    config = load_config(PRESET, [*TINY, f"seed={seed}"])[1]
    path = search(config, out=folder, name=PRESET).run.path
    lines = (path / "episodes.jsonl").read_bytes().splitlines(keepends=True)
    (path / "episodes.jsonl").write_bytes(b"".join(lines[:2]))
    (path / "best.json").unlink()
    return path


def test_a_run_that_another_process_writes_is_waited_for(tmp_path: Path) -> None:
    path = half(tmp_path / f"sweep_{PRESET}", 0)
    seen: list[tuple[str, ...]] = []
    with ExitStack() as held:
        held.enter_context(writing(path))

        def show(found: Sweep) -> None:
            seen.append(tuple(one.state for one in found.planned))
            if seen[-1] == ("held", "done"):
                held.close()

        found = sweep(PRESET, [*TINY, "seed=0,1"], out=tmp_path, workers=Here, show=show)
    assert ("held", "done") in seen and seen[-1] == ("done", "done")
    assert not any("failed" in states for states in seen)
    assert found.planned[0].path == path and len(journal(path)) == 6


def test_a_run_that_another_process_takes_first_is_no_failure(tmp_path: Path) -> None:
    path = half(tmp_path / f"sweep_{PRESET}", 0)
    held = ExitStack()
    states = []

    class Late(Here):
        """Between its start and its end somebody else takes the run."""

        def start(self, task: Task) -> int:
            held.enter_context(writing(path))
            return super().start(task)

        def ended(self) -> dict[int, End]:
            found = super().ended()
            assert all(end.busy for end in found.values())
            return found

    class Once(Late):
        """Then no more."""

        def ended(self) -> dict[int, End]:
            found = super().ended()
            held.close()
            Once.start, Once.ended = Here.start, Here.ended  # type: ignore[method-assign]
            return found

    def show(found: Sweep) -> None:
        states.append(found.planned[0].state)

    found = sweep(PRESET, [*TINY, "seed=0"], out=tmp_path, workers=Once, show=show)
    assert found.planned[0].state == "done" and found.planned[0].attempts == 1
    assert "failed" not in states


def test_a_damaged_journal_fails_one_run_and_not_the_sweep(tmp_path: Path) -> None:
    path = half(tmp_path / f"sweep_{PRESET}", 0)
    (path / "episodes.jsonl").write_text("garbage\n")
    found = sweep(PRESET, [*TINY, "seed=0,1"], out=tmp_path, workers=Here)
    assert [one.state for one in found.planned] == ["failed", "done"]
    assert f"amc resume {path} --repair" in found.planned[0].error


def test_a_run_without_an_episode_is_taken_up(tmp_path: Path) -> None:
    path = half(tmp_path / f"sweep_{PRESET}", 0)
    (path / "episodes.jsonl").unlink()
    found = sweep(PRESET, [*TINY, "seed=0"], out=tmp_path, workers=Here)
    assert found.planned[0].path == path and found.planned[0].state == "done"


def test_the_shelf_holds_the_lock_of_a_run_while_its_task_goes_on(tmp_path: Path) -> None:
    shelf, run = Shelf(tmp_path), tmp_path / "name" / "s0"
    shelf.put(0, "name/s0/episodes.jsonl", 0, b"one\n")
    assert is_written(run)
    shelf.put(0, "name/s0/episodes.jsonl", 4, b"two\n")
    assert Shelf(tmp_path).hold(1, "name/s0") == is_written(run)
    with pytest.raises(Busy):
        Shelf(tmp_path).put(1, "name/s0/episodes.jsonl", 4, b"three\n")
    assert (run / "episodes.jsonl").read_text() == "one\ntwo\n"
    assert shelf.read("name/s0") == {"name/s0/episodes.jsonl": b"one\ntwo\n"}  # no lock
    shelf.release(0)
    shelf.release(0)
    assert not is_written(run) and shelf.hold(2, "name/s0") == ""


@pytest.mark.parametrize(
    ("omp", "jobs", "expected"),
    [
        (None, None, (3, 2)),  # the cores divided among three runs
        (None, 4, (4, 1)),
        ("1", None, (3, 1)),
        ("3", None, (2, 3)),
        ("4", None, (1, 4)),
        ("16", None, (1, 16)),
        ("2,1", 5, (5, 2)),
        ("many", None, (3, 2)),
    ],
)
def test_threads_of_a_run(
    omp: str | None,
    jobs: int | None,
    expected: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("amc.sweep.cores", lambda: 6)
    if omp is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", omp)
    assert _divided(jobs, 3, gpus=0) == expected
    assert named_threads() == (None if omp in (None, "many") else int(omp.split(",")[0]))


@pytest.mark.parametrize(
    "gpus, jobs, expected",
    [(1, None, (1, 6)), (2, None, (2, 3)), (8, None, (3, 2)), (1, 3, (3, 2))],
)
def test_gpus_are_divided_as_cores_are(
    gpus: int, jobs: int | None, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run a GPU, unless more are asked for."""
    monkeypatch.setattr("amc.sweep.cores", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert _divided(jobs, 3, gpus) == expected


def test_the_cores_are_those_that_the_process_may_use() -> None:
    may = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(may)})
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, may)
    assert cores() == len(may)


def test_what_is_started_does_not_hear_ctrl_c_and_who_starts_it_does() -> None:
    """Not in its first moment either: the signal is there before it runs a line. (In a process of
    its own, which has one thread: another could take the signal.)
    """
    inner = "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('whole')"
    code = f"""
import os, signal, subprocess, sys
from amc.parallel.children import deaf
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    with deaf():
        subprocess.run([sys.executable, "-c", {inner!r}], check=True)
        os.kill(os.getpid(), signal.SIGINT)
        print("not before the end", flush=True)
    print("never")
except KeyboardInterrupt:
    print("then")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "whole\nnot before the end\nthen\n", done.stderr


def test_long_values_give_names_that_fit(tmp_path: Path) -> None:
    keys = ",".join(f"[layer{number},conv{number}]" for number in range(40))
    _, planned = plan(PRESET, [f"space.keep=[{keys.replace('[', '').replace(']', '')}],[conv1]"])
    names = {one.name for one in planned}
    assert len(names) == 2 and all(len(name.encode()) <= 200 for name in names)
