"""Updates as a graph of the accelerator's, as CUDA has them: a small network's update is a thousand
short kernels, which the host launches more slowly than a GPU ends them; a graph is launched at
once.

A graph holds what was done while it was captured, no Python. So one is taken only where an update
draws no random numbers and where it gives what the plain update gives.
"""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amc.compute import Compute
from amc.errors import first_line, short
from amc.randomness import own_randomness
from amc.training.lesson import Batch
from amc.training.update import Update

TOLERANCE = 0.01  # of how far two updates move: by so much those of a graph may be elsewhere

Sample = tuple[Batch, float]  # what an update is given, and its learning rate
State = list[list[Tensor]]


class Graphed:
    """An `Update` that was captured once and is done again with what is put into its batch."""

    def __init__(self, update: Update, batch: Batch, stream: Any) -> None:
        self.update = update
        self.batch = Batch(batch.pixels.clone(), batch.labels.clone(), batch.draws.clone())
        module = update.processes.compute.module
        self.graph = module.CUDAGraph()
        # thread_local: another thread may be pinning memory for the batches to come
        with module.graph(self.graph, stream=stream, capture_error_mode="thread_local"):
            update.step(self.batch)

    def __call__(self, batch: Batch, rate: float) -> None:
        """As the update is called."""
        self.update.begin(rate)
        self.batch.pixels.copy_(batch.pixels)
        self.batch.labels.copy_(batch.labels)
        self.batch.draws.copy_(batch.draws)
        self.graph.replay()
        self.update.end()


class _Refused(Exception):
    """There is no graph, and why."""


def quickest(update: Update, batch: Batch, rate: float) -> Callable[[Batch, float], None]:
    """A graph of an update where there can be one, else the update itself. Nothing has changed
    afterwards.

    Args:
        update: that is done many times.
        batch: to try it with.
        rate: the learning rate, likewise.
    """
    compute = update.processes.compute
    known = all(hasattr(compute.module, name) for name in ("CUDAGraph", "graph"))
    if not compute.is_accelerator or not known or update.processes.size > 1:
        return update
    before: State = []
    try:
        before = _copied(update)
        with own_randomness():
            graph = _checked(update, ((batch, rate), (_other(batch), rate / 2)), before)
        _restore(update, before)
        return graph
    except Exception as error:  # whatever a user's forward does that a graph cannot hold
        why = short(first_line(error))
    if before:
        _restore(update, before)
    update.optimizer.zero_grad()
    compute.clear()
    logging.getLogger("amc").warning(
        "warning: updates are launched operation by operation, which is slower for small "
        "networks: a graph of an update cannot be had (%s)",
        why,
    )
    return update


def _checked(update: Update, samples: tuple[Sample, Sample], before: State) -> Graphed:
    """A graph that gives what the update gives, twice in succession.

    Plain updates come first, and on the stream that is captured: libraries are to have set
    themselves up there (PyTorch's notes on CUDA semantics, "CUDA Graphs").
    """
    compute = update.processes.compute
    with compute.aside() as stream:
        drawn = _random_states(compute)
        update(*samples[0])
        with _unwaited(compute):
            update(*samples[1])
        if _random_states(compute) != drawn:
            raise _Refused("the network draws random numbers, as dropout does")
        expected = _copied(update)
        graph = Graphed(update, samples[0][0], stream)
        _restore(update, before)
        for sample in samples:
            graph(*sample)
        if not _agree(before, expected, update.state()):
            raise _Refused("it gives other weights than the update itself")
    return graph


@contextmanager
def _unwaited(compute: Compute) -> Iterator[None]:
    """What waits for the compute fails inside, where that can be had: a capture fails of it, too,
    but leaves a GPU's random generator unusable.
    """
    module = compute.module
    if not hasattr(module, "set_sync_debug_mode"):
        yield
        return
    before = module.get_sync_debug_mode()
    with warnings.catch_warnings():  # torch says that it does not find all that waits
        warnings.simplefilter("ignore")
        module.set_sync_debug_mode("error")
    try:
        yield
    finally:
        module.set_sync_debug_mode(before)


def _other(batch: Batch) -> Batch:
    """Another one: the images have other labels."""
    return Batch(batch.pixels.flip(0), batch.labels, batch.draws)


def _copied(update: Update) -> State:
    return [[tensor.clone() for tensor in part] for part in update.state()]


def _restore(update: Update, state: State) -> None:
    for part, saved in zip(update.state(), state, strict=True):
        for tensor, value in zip(part, saved, strict=True):
            tensor.copy_(value)


def _agree(before: State, expected: State, found: State) -> bool:
    """Whether two states are as good as one, seen against the way from the one before."""
    return all(
        _distance(mine, theirs) <= TOLERANCE * _distance(mine, start) + 1e-9
        for start, mine, theirs in zip(before, expected, found, strict=True)
    )


def _distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    if not first:
        return 0.0
    squares = [(a.double() - b.double()).square().sum() for a, b in zip(first, second, strict=True)]
    return float(torch.stack(squares).sum().sqrt())


def _random_states(compute: Compute) -> tuple[object, ...]:
    """Of all that a network may draw from."""
    of_compute = getattr(compute.module, "get_rng_state", None)
    states = [torch.get_rng_state()]
    if of_compute is not None:
        states.append(of_compute(compute.device))
    _, numbers, *place = np.random.get_state()
    return (
        *(state.numpy().tobytes() for state in states),
        np.asarray(numbers).tobytes(),
        place,
        random.getstate(),
    )
