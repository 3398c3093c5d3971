"""Many runs: every combination of some values, each an ordinary run.

What has ended is skipped, what was cut short goes on. A worker that dies, by kill -9 or with its
machine, leaves a journal from which another takes the run up. Workers end with their sweep, however
that ends. One process at a time runs a sweep; a run that another process writes is waited for.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from amc.compute import HOST, count
from amc.config import load_config, parse_config
from amc.errors import UserError, whole_number
from amc.evaluate.outcome import Outcome
from amc.files import folder_name
from amc.parallel.children import cores, named_threads
from amc.parallel.workers import End, LocalWorkers, Task, Workers
from amc.runs.directory import Run
from amc.runs.lock import is_written, writing
from amc.sections import Config

ATTEMPTS = 3  # of a run whose worker died
POLL_SECONDS = 0.5

State = Literal["waiting", "held", "running", "done", "failed"]
"""Held: another process writes the run; it is waited for."""


@dataclass
class Planned:
    """One run of a sweep."""

    name: str  # of its folder
    config: Config
    state: State = "waiting"
    run: Run | None = None  # where it has begun
    episodes: int = 0  # in its journal
    accuracy: float | None = None  # search accuracy of the best so far
    before: int = 0  # episodes that were there when the sweep was started
    attempts: int = 0
    error: str = ""

    @property
    def path(self) -> Path | None:
        return None if self.run is None else self.run.path

    @property
    def total(self) -> int | None:
        """Episodes that it will have, with the uniform one; none where the agent decides."""
        episodes = self.config.agent.get("episodes")
        return None if episodes is None else episodes + 1


@dataclass
class Sweep:
    """All runs of a sweep, and what has become of them."""

    folder: Path
    planned: list[Planned]
    threads: int
    started: float = field(default_factory=time.monotonic)

    @property
    def failed(self) -> list[Planned]:
        return [one for one in self.planned if one.state == "failed"]

    @property
    def ended(self) -> list[Path]:
        """The directories of the runs that are done."""
        return [one.path for one in self.planned if one.state == "done" and one.path is not None]

    @property
    def seconds_left(self) -> float | None:
        """By the episodes done since the sweep was started; none before the first."""
        known = [one.total for one in self.planned if one.total is not None]
        done = sum(one.episodes - one.before for one in self.planned)
        if not known or not done:
            return None
        mean = sum(known) / len(known)
        every = sum(mean if one.total is None else one.total for one in self.planned)
        ended = sum(one.episodes for one in self.planned)
        return max(0.0, (time.monotonic() - self.started) / done * (every - ended))


def values_of(text: str) -> list[str]:
    """The values in ``0.3,0.5`` or ``[a,b],[c]``: split at the commas outside of brackets and
    quotes.
    """
    parts, depth, quote, start = [], 0, "", 0
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "[{(":
            depth += 1
        elif letter in ")}]":
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    return [*parts, text[start:]]


def plan(preset: str, overrides: Sequence[str], trust: bool = False) -> tuple[str, list[Planned]]:
    """The name of a sweep, and its runs: all combinations, in the order of the values.

    Raises:
        UserError: a configuration is wrong, or two runs would be the same.
    """
    pairs = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"{override!r} is not of the form key=value or key=value,value,...")
        pairs.append((key, values_of(text)))
    varied = [key for key, values in pairs if len(values) > 1 and key != "seed"]
    planned: list[Planned] = []
    base = preset
    for combination in itertools.product(*(values for _, values in pairs)):
        chosen = list(zip((key for key, _ in pairs), combination, strict=True))
        base, config = load_config(preset, [f"{key}={value}" for key, value in chosen], trust)
        parts = [f"{key.split('.')[-1]}={value}" for key, value in chosen if key in varied]
        name = folder_name(",".join(parts).replace(",", "+") or base)
        if any((other.name, other.config.seed) == (name, config.seed) for other in planned):
            raise UserError(f"two runs of the sweep are the same: {name}, seed {config.seed}")
        planned.append(Planned(name, config))
    return base, planned


def sweep(
    preset: str,
    overrides: Sequence[str] = (),
    *,
    out: str | Path = "runs",
    jobs: int | None = None,
    workers: Callable[[int, int], Workers] = LocalWorkers,
    show: Callable[[Sweep], None] = lambda sweep: None,
    trust: bool = False,
) -> Sweep:
    """Run all combinations of ``key=value,value,...`` of a preset.

    Args:
        preset: a preset's name or a YAML file.
        overrides: with one value or several each.
        out: the folder for runs; the sweep's is made in it.
        jobs: how many at a time; by default as many as there are cores for, or runs, or GPUs where
            there are some. Each takes one of the GPUs, in turn, and
            OMP_NUM_THREADS threads; where that is not set, the cores are divided between them.
        workers: makes what runs them, from jobs and threads.
        show: called often, with what has become of them.
        trust: import the code that a YAML file names (`amc.plugins`).

    Raises:
        Busy: another process runs this sweep.
        UserError: a configuration is wrong. A run that fails does not stop the others.
    """
    name, planned = plan(preset, overrides, trust)
    if jobs is not None:
        jobs = whole_number(jobs, "jobs", 1, 1024)
    on_gpus = count() if any(one.config.compute != HOST.name for one in planned) else 0
    jobs, threads = _divided(jobs, len(planned), on_gpus)
    found = Sweep(Path(out) / f"sweep_{folder_name(name)}", planned, threads)
    for one in planned:
        _look(found.folder, one)
        one.before = one.episodes
    show(found)
    if all(one.state == "done" for one in planned):
        return found
    with writing(found.folder):
        for one in planned:
            _look(found.folder, one)  # again: now nobody else begins any
        pool = workers(jobs, found.threads)
        try:
            _run_all(found, pool, show)
        finally:
            pool.close()
    return found


def _divided(jobs: int | None, runs: int, gpus: int) -> tuple[int, int]:
    """How many runs at a time, and the threads of each."""
    named = named_threads()
    jobs = jobs or max(1, min(cores() // (named or 1), runs, gpus or runs))
    return jobs, named or max(1, cores() // jobs)


def _run_all(found: Sweep, pool: Workers, show: Callable[[Sweep], None]) -> None:
    running: dict[int, Planned] = {}
    waiting = [one for one in found.planned if one.state not in ("done", "failed")]
    while waiting or running:
        for one in list(waiting):
            if len(running) < pool.jobs and _is_free(found.folder, one):
                waiting.remove(one)
                one.attempts, one.state = one.attempts + 1, "running"
                config = one.config.model_dump(mode="json")
                running[pool.start(Task(found.folder, one.name, config, one.path, work))] = one
        waiting = [one for one in waiting if one.state not in ("done", "failed")]
        time.sleep(POLL_SECONDS)
        for number, end in pool.ended().items():
            one = running.pop(number)
            if _judge(found.folder, one, end) == "waiting":
                waiting.insert(0, one)
        for one in running.values():
            _look(found.folder, one)
            one.state = "running"
        show(found)


def _judge(folder: Path, one: Planned, end: End) -> State:
    """What has become of a run whose worker has ended."""
    _look(folder, one)
    if one.state in ("done", "failed"):
        return one.state
    one.error = end.message
    one.attempts -= end.busy  # another process was quicker: it was none
    one.state = "failed"
    if end.busy or (end.died and one.attempts < ATTEMPTS):
        one.state = "waiting"  # goes on from its journal
    return one.state


def _is_free(folder: Path, one: Planned) -> bool:
    """Whether a run that waits can be begun or gone on with now."""
    if one.path is None:
        return True
    try:
        one.error = is_written(one.path)
    except UserError as error:  # its disk cannot be written: the others do not suffer
        one.state, one.error = "failed", str(error)
        return False
    _look(folder, one)  # who held it may have brought it to its end
    if one.state not in ("done", "failed"):
        one.state = "held" if one.error else "waiting"
    return one.state == "waiting"


def _look(folder: Path, one: Planned) -> None:
    """What its directory says of a run."""
    if one.run is None and (folder / one.name).is_dir():
        one.run = _run_of(folder / one.name, one.config)
    if one.run is None:
        return
    try:
        lines = one.run.lines()
    except UserError as error:  # a damaged journal: the others do not suffer
        one.state, one.error = "failed", str(error)
        return
    one.episodes = len(lines)
    measured = [line for line in lines if Outcome.from_line(line).can_be_best]
    best = max(measured, key=lambda line: line["reward"], default=None)
    one.accuracy = None if best is None else best["search_accuracy"]
    if one.run.has_ended:
        one.state = "done"


def _run_of(folder: Path, config: Config) -> Run | None:
    """The run of this configuration in a folder."""
    for path in sorted(folder.iterdir()):
        with suppress(UserError):  # no run, or one whose config was changed
            run = Run.open(path)
            if run.config == config:
                return run
    return None


def work(task: Task, threads: int, report: Callable[[str, int, int], None]) -> None:
    """One run, in this process."""
    import torch

    from amc.search import resume, search  # not where a sweep is only watched

    torch.set_num_threads(threads)
    config = parse_config(task.config)  # whose code the sweep was told to import
    if task.path is not None:
        resume(task.path, report=report)
    else:
        search(config, out=task.folder, name=task.name, report=report)
