"""What is trained on what, and what each update is given: images, labels and random numbers, on the
compute.

Nothing waits for the compute. Images lie on it where they fit, else they are fetched and sent
ahead; order, labels and random numbers go there for many updates at once. What is random is drawn
on the host, from the seed and the number of the update.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from amc.compute import Compute
from amc.data.datasets import Dataset
from amc.data.images import Images
from amc.errors import UserError
from amc.network.layers import IntArray
from amc.training.augment import DRAWS
from amc.training.distill import Objective
from amc.training.processes import Processes

AHEAD = 32  # updates whose order, labels and random numbers are sent at once
FETCHED = 2  # batches of images that are fetched ahead
PIECE = 500  # images that are brought to an accelerator at once, when all go there


@dataclass(frozen=True, eq=False)
class Lesson:
    """What is trained on what."""

    objective: Objective
    dataset: Dataset
    train: IntArray  # of the training images
    heldout: IntArray | None = None  # likewise; none: the last epoch is the result
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Batch:
    """What an update is given: a process's part, on its compute."""

    pixels: Tensor  # (n, C, H, W): uint8, or float32 and normalised
    labels: Tensor  # (n,)
    draws: Tensor  # (n, DRAWS), for augmentation


class Pictures:
    """Some images of a dataset, by their place among these: on an accelerator where they fit, else
    where they come from.
    """

    def __init__(self, images: Images, chosen: IntArray, compute: Compute) -> None:
        self.images, self.chosen, self.compute = images, chosen, compute
        self.resident = self._brought() if compute.is_accelerator else None

    def _brought(self) -> Tensor | None:
        one, number = self.images.fetch(self.chosen[:1]), len(self.chosen)
        if not self.compute.holds(number * one.nbytes):
            return None
        size = (number, *one.shape[1:])
        there = torch.empty(size, dtype=one.dtype, device=self.compute.device)
        for start in range(0, number, PIECE):
            piece = slice(start, start + PIECE)
            there[piece] = self.compute.put(self.images.fetch(self.chosen[piece]))
        return there

    def fetch(self, places: IntArray) -> Tensor:
        """From where they come, on the host."""
        return pinned(self.images.fetch(self.chosen[places]), self.compute)

    def at(self, start: int, stop: int) -> Tensor:
        """Those of some places, on the compute."""
        if self.resident is not None:
            return self.resident[start:stop]
        return self.compute.put(self.fetch(np.arange(start, min(stop, len(self.chosen)))))


class Batches:
    """A training's batches, in an order that is another in each epoch."""

    def __init__(self, lesson: Lesson, size: int, processes: Processes) -> None:
        """Nothing is brought yet.

        Args:
            lesson: what is trained on what.
            size: of a batch over all processes, at most.
            processes: of which this one is.

        Raises:
            UserError: a batch cannot be divided among the processes.
        """
        self.lesson, self.processes = lesson, processes
        self.size = min(size, len(lesson.train))
        if self.size % processes.size:
            raise UserError(
                f"batch_size is {self.size}: it must be a multiple of the {processes.size} "
                "processes"
            )
        self.updates = len(lesson.train) // self.size  # in an epoch
        self._order = -1, lesson.train  # of an epoch's images: their places

    def __call__(self, steps: range) -> Iterator[Batch]:
        """What these updates are given."""
        compute = self.processes.compute
        pictures = Pictures(self.lesson.dataset.train, self.lesson.train, compute)
        if pictures.resident is not None:
            for _, there, labels, draws in self._rows(steps):
                yield Batch(pictures.resident.index_select(0, there), labels, draws)
            return
        with ThreadPoolExecutor(1) as thread:
            coming: deque[tuple[Future[Tensor], Tensor, Tensor]] = deque()
            for places, _, labels, draws in self._rows(steps):
                coming.append((thread.submit(pictures.fetch, places), labels, draws))
                if len(coming) > FETCHED:
                    yield self._arrived(*coming.popleft())
            while coming:
                yield self._arrived(*coming.popleft())

    def _arrived(self, pixels: Future[Tensor], labels: Tensor, draws: Tensor) -> Batch:
        return Batch(self.processes.compute.put(pixels.result()), labels, draws)

    def _rows(self, steps: range) -> Iterator[tuple[IntArray, Tensor, Tensor, Tensor]]:
        """The places of an update's images, on the host and on the compute, labels and draws."""
        compute, every = self.processes.compute, self.lesson.dataset.train.labels
        for start in range(steps.start, steps.stop, AHEAD):
            part = range(start, min(start + AHEAD, steps.stop))
            places = np.stack([self._places(step) for step in part])
            labels = torch.from_numpy(every[self.lesson.train[places]])
            draws = torch.stack([self._draws(step) for step in part])
            sent = (
                compute.put(pinned(values, compute)).unbind()
                for values in (torch.from_numpy(places), labels, draws)
            )
            yield from zip(places, *sent, strict=True)

    def _places(self, step: int) -> IntArray:
        epoch, update = divmod(step, self.updates)
        if self._order[0] != epoch:
            shuffle = np.random.default_rng([self.lesson.seed, epoch])
            self._order = epoch, shuffle.permutation(len(self.lesson.train))
        batch = self._order[1][update * self.size : (update + 1) * self.size]
        return batch[self.processes.rank :: self.processes.size]

    def _draws(self, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed_of(self.lesson.seed, step))
        return self.processes.share(torch.rand(self.size, DRAWS, generator=generator))


def pinned(tensor: Tensor, compute: Compute) -> Tensor:
    """In memory that an accelerator copies from while the host works on, where there is such."""
    if not compute.is_accelerator:
        return tensor
    try:
        return tensor.pin_memory()
    except RuntimeError:  # this accelerator has none, or the system gives no more
        return tensor


def seed_of(*numbers: int) -> int:
    """A seed of its own for each update."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
