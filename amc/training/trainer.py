"""The trainer: SGD with Nesterov momentum, a linear warm-up and one cosine.

A training that was stopped at any moment, kill -9 included, and goes on from its last checkpoint
computes what it would have computed without the stop: what is random in an update depends on the
seed and the number of the update only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import nn

from amc.compute import HOST, Compute
from amc.data.datasets import Dataset
from amc.errors import UserError
from amc.network.layers import IntArray, evaluating
from amc.progress import Report, silent
from amc.randomness import own_randomness
from amc.reading import damaged
from amc.training.distill import Objective
from amc.training.graph import quickest
from amc.training.history import Epoch, Progress
from amc.training.keeper import InMemory, Keeper
from amc.training.lesson import Batch, Batches, Lesson, Pictures, seed_of
from amc.training.processes import Processes, joined
from amc.training.settings import TrainConfig
from amc.training.update import Update, repeatable

CHECKPOINT_SECONDS = 5.0  # between two, at least
CHECKPOINT_SHARE = 0.02  # of the time, at most
READ_EVERY = 50  # updates: so often the host waits for an accelerator, to see whether it diverged
VALIDATED = 4  # batches at once on an accelerator, where nothing is kept for a backward pass


class Trainer:
    """One training, in this process or several (`joined`)."""

    def __init__(
        self,
        lesson: Lesson,
        config: TrainConfig,
        processes: Processes,
        keeper: Keeper,
        what: str = "training",
        report: Report = silent,
    ) -> None:
        """Prepare, or take up what was stopped.

        Args:
            lesson: what is trained on what; its network is trained in place, and where it was
                afterwards.
            config: how.
            processes: of which this one is.
            keeper: of its state and its weights.
            what: the progress says.
            report: of progress.

        Raises:
            UserError: a batch cannot be divided among the processes.
        """
        self.lesson, self.config, self.processes = lesson, config, processes
        self.keeper, self.what, self.report = keeper, what, report
        self.batches = Batches(lesson, config.batch_size, processes)
        self.updates = self.batches.updates
        self.total = config.epochs * self.updates
        parameters = lesson.objective.model.parameters()
        self._home = next((p.device for p in parameters), HOST.device)
        self.update = Update(lesson, config, processes)
        self.graphed = False  # whether its updates are done as a graph
        self.progress = Progress()
        self._heldout: Pictures | None = None
        self._since = 0.0  # when the time began that is not yet in the progress
        self._resume()

    def run(self, after_epoch: Callable[[Progress], None] = lambda progress: None) -> Progress:
        """Train to the end; the network then has the weights of the result and is in eval mode.

        Raises:
            UserError: the training diverged.
        """
        with own_randomness(self.lesson.seed), repeatable():  # dropout draws from the global state
            self._train(after_epoch)
        self._take_result()
        return self.progress

    def _train(self, after_epoch: Callable[[Progress], None]) -> None:
        every = READ_EVERY if self.processes.compute.is_accelerator else 1
        saved, pause = time.monotonic(), CHECKPOINT_SECONDS
        self._since = time.perf_counter()
        do: Callable[[Batch, float], None] | None = None
        for batch in self.batches(range(self.progress.step, self.total)):
            step = self.progress.step
            rate = self._rate(step)
            if do is None:
                do = quickest(self.update, batch, rate)
                self.graphed = do is not self.update
            torch.manual_seed(seed_of(self.lesson.seed, step, self.processes.rank))
            do(batch, rate)
            self.progress.step = step + 1
            ended = self.progress.step % self.updates == 0
            due = ended or time.monotonic() - saved > pause
            if due or self.progress.step % every == 0:
                self._read()
            if ended:
                self._end_epoch()
                after_epoch(self.progress)
            if due:
                start = time.monotonic()
                self._save()
                saved = time.monotonic()
                pause = max(CHECKPOINT_SECONDS, (saved - start) / CHECKPOINT_SHARE)
                self._since = time.perf_counter()
            self._tell()

    def _read(self) -> None:
        """Wait for the updates that were begun, and read what they came to."""
        progress = self.progress
        progress.sums = self.update.sums.cpu().tolist()
        now = time.perf_counter()
        progress.seconds += now - self._since
        self._since = now
        if not math.isfinite(progress.sums[0]):
            raise UserError(
                f"the training diverged by update {progress.step}: take a smaller lr than "
                f"{self.config.lr:g}, or clip"
            )

    def _end_epoch(self) -> None:
        progress, start = self.progress, time.perf_counter()
        loss, correct, count = progress.sums
        self.processes.align(self.update.result)
        accuracy = None if self.lesson.heldout is None else self._accuracy(self.lesson.heldout)
        number = progress.step // self.updates
        seconds = round(progress.seconds + time.perf_counter() - start, 2)
        rate = self._rate(progress.step - 1)
        row = Epoch(number, rate, loss / count, correct / count, accuracy, seconds)
        progress.epochs.append(asdict(row))
        progress.sums, progress.seconds = [0.0, 0.0, 0.0], 0.0
        self.update.sums.zero_()
        if self.processes.first:
            self.keeper.keep(self.update.result, progress.best is progress.epochs[-1])

    def _accuracy(self, indices: IntArray) -> float:
        """Of what is kept, on held-out images: each process measures its share."""
        dataset, compute = self.lesson.dataset, self.processes.compute
        mine = indices[self.processes.rank :: self.processes.size]
        if self._heldout is None:
            self._heldout = Pictures(dataset.train, mine, compute)
        labels = compute.put(torch.from_numpy(dataset.train.labels[mine]))
        correct = torch.zeros(1, dtype=torch.float64, device=compute.device)
        size = self.batches.size * (VALIDATED if compute.is_accelerator else 1)
        result = self.update.result
        with evaluating(result), self.update.autocast():
            for start in range(0, len(mine), size):
                images = dataset.normalise(self._heldout.at(start, start + size))
                outputs = result(images.contiguous(memory_format=torch.channels_last))
                correct += (outputs.argmax(1) == labels[start : start + size]).sum()
        return float(self.processes.total(correct)) / len(indices)

    def _rate(self, step: int) -> float:
        """The learning rate: a linear warm-up, then a cosine to zero."""
        rising = max(1, round(self.config.warmup * self.total))
        if step < rising:
            return self.config.lr * ((step + 1) / rising)
        angle = math.pi * (step - rising) / max(1, self.total - rising)
        return self.config.lr * (0.5 * (1 + math.cos(angle)))

    def _tell(self) -> None:
        epochs = self.progress.epochs
        what = f"{self.what} | epoch {len(epochs)} of {self.config.epochs}"
        if epochs and epochs[-1]["heldout_accuracy"] is not None:
            what += f", held-out {100 * epochs[-1]['heldout_accuracy']:.2f}%"
        self.report(what, self.progress.step, self.total)

    def _save(self) -> None:
        if self.processes.first:
            self.keeper.save_state({"progress": asdict(self.progress), **self.update.save()})

    def _resume(self) -> None:
        state = self.keeper.load_state()
        if state is None:
            return
        with damaged(self.keeper.source):
            self.progress = Progress.of(state["progress"], self.updates, self.total)
            self.update.load(state, self.progress.sums)

    def _take_result(self) -> None:
        self.processes.wait()  # the first one has written it
        model = self.lesson.objective.model
        best = self.keeper.best()
        self.update.optimizer.zero_grad()  # what a graph has computed in lies there
        with damaged(self.keeper.source):
            model.load_state_dict(best)
        model.to(self._home, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        model.eval()
        self._heldout = None
        if self.processes.compute.is_accelerator:
            self.processes.compute.clear()


def train(
    model: nn.Module,
    dataset: Dataset,
    indices: IntArray,
    config: TrainConfig,
    seed: int = 0,
    report: Report = silent,
    compute: Compute = HOST,
) -> None:
    """Train ``model`` in place on the given training images, without a folder; it is in eval mode
    and where it was afterwards.
    """
    lesson = Lesson(Objective(model, config.label_smoothing), dataset, indices, seed=seed)
    with joined(compute) as processes:
        what = "training the base network"
        Trainer(lesson, config, processes, InMemory(processes), what, report).run()
