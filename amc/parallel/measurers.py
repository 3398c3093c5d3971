"""Measure candidates side by side: in processes of this machine, or by actors of a Ray cluster.

Each holds a copy of the evaluator, and takes the next candidate when it is done with one. What
comes out is what the evaluator itself would have measured with as many threads. One that dies, with
its machine or for want of memory, is replaced, and what it was at is measured again.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import cloudpickle
import torch

from amc.errors import UserError
from amc.evaluate.evaluator import Evaluator
from amc.evaluate.outcome import Candidate, Measured
from amc.parallel.children import deaf, end_with_parent
from amc.parallel.cluster import connect, find_modules

ATTEMPTS = 3  # to measure a batch, where measurers die


class LocalMeasurers:
    """Processes of this machine, which divide its threads between them."""

    def __init__(self, evaluator: Evaluator, jobs: int) -> None:
        self.jobs = jobs
        self._arguments = cloudpickle.dumps(evaluator), _threads(jobs)
        self._pool: ProcessPoolExecutor | None = None

    def measure(self, candidates: Sequence[Candidate]) -> Iterator[Measured]:
        waiting = deque(candidates)
        for _ in range(ATTEMPTS):
            try:
                with deaf():
                    futures = [self._running().submit(_measure, one) for one in waiting]
                for future in futures:
                    yield future.result()
                    waiting.popleft()
                return
            except BrokenProcessPool:
                self.close()
        raise _dying()

    def _running(self) -> ProcessPoolExecutor:
        if self._pool is None:
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.jobs, spawn, _begin, self._arguments)
        return self._pool

    def close(self) -> None:
        """Stop the processes: what one is still at, nobody waits for."""
        if self._pool is not None:
            processes = list((self._pool._processes or {}).values())
            self._pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:  # else Python waits for them when it ends
                process.terminate()
            self._pool = None


_here: list[Evaluator] = []  # of a process that measures


def _begin(evaluator: bytes, threads: int) -> None:
    end_with_parent()
    _here.append(_copied(evaluator, threads))


def _measure(candidate: Candidate) -> Measured:
    return _here[0].measure(candidate)


class RayMeasurers:
    """Actors of a Ray cluster."""

    def __init__(self, evaluator: Evaluator, jobs: int, address: str) -> None:
        threads = _threads(jobs)
        self._ray = connect(address, jobs * threads)
        restarts = {"max_restarts": ATTEMPTS, "max_task_retries": ATTEMPTS}
        actor = self._ray.remote(num_cpus=threads, **restarts)(_Actor)
        # in a list: an actor that is started again asks for it again
        self._shared = [self._ray.put(cloudpickle.dumps(evaluator))]
        self._actors = [actor.remote(self._shared, threads, sys.path) for _ in range(jobs)]

    def measure(self, candidates: Sequence[Candidate]) -> Iterator[Measured]:
        from ray.util import ActorPool

        pool = ActorPool(self._actors)
        send: Any = lambda actor, candidate: actor.measure.remote(candidate)  # noqa: E731
        try:
            yield from pool.map(send, list(candidates))
        except self._ray.exceptions.RayActorError as error:
            raise _dying() from error

    def close(self) -> None:
        self._ray.shutdown()


class _Actor:
    """Measures on a machine of the cluster."""

    def __init__(self, shared: list[Any], threads: int, paths: list[str]) -> None:
        import ray

        find_modules(paths)
        self._evaluator = _copied(ray.get(shared[0]), threads)

    def measure(self, candidate: Candidate) -> Measured:
        return self._evaluator.measure(candidate)


def _copied(evaluator: bytes, threads: int) -> Evaluator:
    torch.set_num_threads(threads)
    copy: Evaluator = cloudpickle.loads(evaluator)
    return copy


def _threads(jobs: int) -> int:
    """Of each of them."""
    return max(1, torch.get_num_threads() // jobs)


def _dying() -> UserError:
    return UserError(
        "what measures dies again and again, perhaps for want of memory: try fewer (--jobs), or "
        "fewer images (evaluate.images)"
    )
