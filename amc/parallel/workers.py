"""What runs the runs of a sweep: processes on this machine, or the workers of a Ray cluster."""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from amc.compute import only, share
from amc.errors import UserError, first_line
from amc.files import ASIDE, on_disk, write_bytes
from amc.parallel.children import deaf, end_with_parent
from amc.parallel.cluster import LOCAL, connect, find_modules
from amc.runs import names
from amc.runs.lock import Busy, writing

Work = Callable[["Task", int, Callable[[str, int, int], None]], None]
"""Does a task in this process, with so many threads, and reports."""


@dataclass(frozen=True)
class Task:
    """A run to begin, or to go on with."""

    folder: Path  # of the sweep
    name: str
    config: dict[str, Any]
    path: Path | None  # of the run, where it has begun
    work: Work


@dataclass(frozen=True)
class End:
    """How a worker ended."""

    message: str = ""  # what went wrong
    died: bool = False  # without a word: another may take the run up
    busy: bool = False  # another process writes the run: later it may be free


class Workers(Protocol):
    """Runs tasks side by side."""

    jobs: int

    def start(self, task: Task) -> int:
        """Begin; returns the task's number."""

    def ended(self) -> dict[int, End]:
        """Those that have ended since the last call."""

    def close(self) -> None:
        """Stop all; their journals are whole."""


class LocalWorkers:
    """A process a run, on this machine; of several GPUs each has one, in turn."""

    def __init__(self, jobs: int, threads: int) -> None:
        self.jobs, self.threads = jobs, threads
        self._numbers = itertools.count()
        self._running: dict[int, tuple[Any, Connection, int]] = {}  # the last: which GPU

    def start(self, task: Task) -> int:
        context = get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        taken = {gpu for _, _, gpu in self._running.values()}
        gpu = next(number for number in itertools.count() if number not in taken)
        arguments = task, self.threads, only(gpu), theirs
        process = context.Process(target=_local, args=arguments, daemon=True)
        with deaf():
            process.start()
        theirs.close()
        number = next(self._numbers)
        self._running[number] = process, ours, gpu
        return number

    def ended(self) -> dict[int, End]:
        found = {}
        for number, (process, pipe, _) in list(self._running.items()):
            if not process.is_alive():
                del self._running[number]
                try:
                    found[number] = pipe.recv()
                except EOFError:
                    code = process.exitcode
                    found[number] = End(f"its process died (exit status {code})", died=code != 0)
        return found

    def close(self) -> None:
        for process, *_ in self._running.values():
            process.terminate()
        for process, *_ in self._running.values():
            process.join()


def _local(task: Task, threads: int, gpu: dict[str, str], pipe: Connection) -> None:
    end_with_parent()
    os.environ |= {"OMP_NUM_THREADS": str(threads), **gpu}
    try:
        task.work(task, threads, lambda what, done, total: None)
    except UserError as error:
        pipe.send(End(str(error), busy=isinstance(error, Busy)))
    except Exception as error:
        pipe.send(End(f"{type(error).__name__}: {first_line(error)}"))
        raise


@dataclass
class RayWorkers:
    """Tasks of a Ray cluster. The files of a run come to this machine's disk after each episode, so
    a run outlives the machine that it was on. There `Shelf` holds the run's lock until its task has
    ended. A cluster ends what a driver that was killed had begun.
    """

    jobs: int
    threads: int
    address: str = LOCAL
    gpus: float | None = None  # a run; none: a share, where the cluster has some
    _shelves: dict[Path, Any] = field(default_factory=dict)
    _running: dict[Any, tuple[int, Any]] = field(default_factory=dict)  # number, shelf

    def __post_init__(self) -> None:
        self._numbers = itertools.count()
        self._ray = connect(self.address, self.jobs * self.threads)
        if self.gpus is None:
            self.gpus = share(self._ray.cluster_resources().get("GPU", 0), self.jobs)
        resources = {"num_cpus": self.threads, "num_gpus": self.gpus, "max_retries": 0}
        self._task = self._ray.remote(**resources)(_on_ray)

    def start(self, task: Task) -> int:
        number = next(self._numbers)
        shelf = self._shelf(task.folder)
        reference = self._task.remote(number, task, self.threads, shelf, sys.path)
        self._running[reference] = number, shelf
        return number

    def _shelf(self, folder: Path) -> Any:
        if folder not in self._shelves:
            strategies = self._ray.util.scheduling_strategies
            here = self._ray.get_runtime_context().get_node_id()
            pinned = strategies.NodeAffinitySchedulingStrategy(here, soft=False)
            shelf = self._ray.remote(num_cpus=0, scheduling_strategy=pinned)(Shelf)
            self._shelves[folder] = shelf.remote(folder.resolve())
        return self._shelves[folder]

    def ended(self) -> dict[int, End]:
        found = {}
        references = list(self._running)
        ready, _ = self._ray.wait(references, num_returns=len(references), timeout=0)
        for reference in ready:
            number, shelf = self._running.pop(reference)
            try:
                self._ray.get(shelf.release.remote(number))
                found[number] = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                died = not isinstance(error, self._ray.exceptions.RayTaskError)
                found[number] = End(first_line(error), died)
        return found

    def close(self) -> None:
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._ray.shutdown()


class Shelf:
    """Keeps the files of runs on the disk of the machine that asked for them, and holds the locks
    of those that tasks write. A Ray actor.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held: dict[int, ExitStack] = {}  # by the number of the task

    def hold(self, number: int, name: str) -> str:
        """Lock a task's run until `release`; what `Busy` says where another process writes it."""
        if number not in self._held:
            held = ExitStack()
            try:
                held.enter_context(writing(self.folder / name))
            except Busy as error:
                return str(error)
            self._held[number] = held
        return ""

    def release(self, number: int) -> None:
        """A task has ended."""
        if number in self._held:
            self._held.pop(number).close()

    def put(self, number: int, name: str, start: int, content: bytes) -> None:
        """Replace a file of a task's run, or let it grow from a place on."""
        if refusal := self.hold(number, "/".join(Path(name).parts[:2])):
            raise Busy(refusal)
        path = self.folder / name
        if start == 0:
            write_bytes(path, content)
            return
        with on_disk(path), path.open("r+b") as file:
            file.truncate(start)
            file.seek(start)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def read(self, name: str) -> dict[str, bytes]:
        """All files of a run: path in the folder -> content."""
        files = (path for path in (self.folder / name).rglob("*") if _is_kept(path))
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files}


def _on_ray(number: int, task: Task, threads: int, shelf: Any, paths: list[str]) -> End:
    """On a worker: a run in a folder of its own, whose files go to the shelf."""
    import ray

    find_modules(paths)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        path, sent = None, dict[Path, bytes]()
        if task.path is not None:
            name = task.path.resolve().relative_to(task.folder.resolve())
            if refusal := ray.get(shelf.hold.remote(number, str(name))):
                return End(refusal, busy=True)
            for file, content in ray.get(shelf.read.remote(str(name))).items():
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).write_bytes(content)
                sent[folder / file] = content
            path = folder / name

        def send(what: str = "", done: int = 0, total: int = 0) -> None:
            if what and not what.startswith("searching"):
                return
            files = (file for file in (folder / task.name).rglob("*") if _is_kept(file))
            # the config and then the journal last: a folder that has a config is a whole run
            order = names.CONFIG, names.JOURNAL
            for file in sorted(files, key=lambda file: (file.name in order, file)):
                content, before = file.read_bytes(), sent.get(file, b"")
                if content != before or file not in sent:
                    grows = file.name == names.JOURNAL and content.startswith(before)
                    start, place = len(before) if grows else 0, str(file.relative_to(folder))
                    ray.get(shelf.put.remote(number, place, start, content[start:]))
                    sent[file] = content

        try:
            task.work(replace(task, folder=folder, path=path), threads, send)
        except UserError as error:
            return End(str(error), busy=isinstance(error, Busy))
        finally:
            send()
    return End()


def _is_kept(file: Path) -> bool:
    """Whether a file of a run belongs on the shelf. (The journal is enough to go on.)"""
    passing = file.name in names.LOCKS or file.suffix == ASIDE or "checkpoint" in file.parts
    return file.is_file() and not passing
