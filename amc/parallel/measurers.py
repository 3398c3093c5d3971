"""Measure candidates side by side: in processes of this machine, or by actors of a Ray cluster.

Each holds a copy of the evaluator, and takes the next candidate when it is done with one. Where
there are several GPUs, process i takes GPU i of them, in turn. What comes out is what the evaluator
itself would have measured with as many threads. One that dies, with its machine or for want of
memory, is replaced, and what it was at is measured again.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from amc.compute import HOST, Compute, share
from amc.errors import UserError
from amc.evaluate.evaluator import Evaluator
from amc.evaluate.outcome import Candidate, Measured
from amc.parallel.children import deaf, end_with_parent
from amc.parallel.cluster import connect, find_modules
from amc.parallel.packing import packed, unpacked

ATTEMPTS = 3  # to measure a batch, where measurers die


class LocalMeasurers:
    """Processes of this machine, which divide its threads between them."""

    def __init__(self, evaluator: Evaluator, jobs: int) -> None:
        self.jobs = jobs
        self._packed, self._threads = packed(evaluator), _threads(jobs)
        self._computes = [evaluator.images.compute.of_worker(number) for number in range(jobs)]
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
            computes = spawn.SimpleQueue()
            for compute in self._computes:
                computes.put(compute)
            arguments = self._packed, self._threads, computes
            self._pool = ProcessPoolExecutor(self.jobs, spawn, _begin, arguments)
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


def _begin(evaluator: bytes, threads: int, computes: Any) -> None:
    end_with_parent()
    torch.set_num_threads(threads)
    _here.append(unpacked(evaluator, computes.get()))


def _measure(candidate: Candidate) -> Measured:
    return _here[0].measure(candidate)


class RayMeasurers:
    """Actors of a Ray cluster."""

    def __init__(self, evaluator: Evaluator, jobs: int, address: str) -> None:
        threads = _threads(jobs)
        self._ray = connect(address, jobs * threads)
        restarts = {"max_restarts": ATTEMPTS, "max_task_retries": ATTEMPTS}
        compute, gpus = evaluator.images.compute, 0.0
        if compute.is_accelerator:
            gpus = share(self._ray.cluster_resources().get("GPU", 0), jobs)
        place = Compute(torch.device(compute.device.type, 0)) if gpus else HOST
        actor = self._ray.remote(num_cpus=threads, num_gpus=gpus, **restarts)(_Actor)
        # in a list: an actor that is started again asks for it again
        self._shared = [self._ray.put(packed(evaluator))]
        self._actors = [actor.remote(self._shared, threads, place, sys.path) for _ in range(jobs)]

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

    def __init__(self, shared: list[Any], threads: int, compute: Compute, paths: list[str]) -> None:
        import ray

        find_modules(paths)
        torch.set_num_threads(threads)
        self._evaluator = unpacked(ray.get(shared[0]), compute)

    def measure(self, candidate: Candidate) -> Measured:
        return self._evaluator.measure(candidate)


def _threads(jobs: int) -> int:
    """Of each of them."""
    return max(1, torch.get_num_threads() // jobs)


def _dying() -> UserError:
    return UserError(
        "what measures dies again and again, perhaps for want of memory: try fewer (--jobs), or "
        "fewer images (evaluate.images)"
    )
