"""The trainer: SGD with Nesterov momentum, a linear warm-up and one cosine.

A training that was stopped at any moment, kill -9 included, and goes on from its last checkpoint
computes what it would have computed without the stop: what is random in an update depends on the
seed and the number of the update only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from amc.data.datasets import Dataset
from amc.errors import UserError
from amc.evaluate.prepare import has_bf16_units
from amc.network.layers import IntArray, evaluating
from amc.progress import Report, silent
from amc.randomness import own_randomness
from amc.reading import damaged
from amc.training.augment import DRAWS, augmented
from amc.training.distill import Objective
from amc.training.history import Epoch, Progress
from amc.training.keeper import InMemory, Keeper
from amc.training.processes import Processes, joined
from amc.training.settings import TrainConfig

CHECKPOINT_SECONDS = 5.0  # between two, at least
CHECKPOINT_SHARE = 0.02  # of the time, at most


@dataclass(frozen=True, eq=False)
class Lesson:
    """What is trained on what."""

    objective: Objective
    dataset: Dataset
    train: IntArray  # of the training images
    heldout: IntArray | None = None  # likewise; none: the last epoch is the result
    seed: int = 0


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
            lesson: what is trained on what; its network is trained in place.
            config: how.
            processes: of which this one is.
            keeper: of its state and its weights.
            what: the progress says.
            report: of progress.

        Raises:
            UserError: a batch cannot be divided among the processes.
        """
        self.lesson, self.config, self.processes = lesson, config, processes
        self.keeper, self.what = keeper, what
        self.report = report
        self.batch = min(config.batch_size, len(lesson.train))
        if self.batch % processes.size:
            raise UserError(
                f"batch_size is {self.batch}: it must be a multiple of the {processes.size} "
                "processes"
            )
        self.updates = len(lesson.train) // self.batch  # the order is another in each epoch
        self.total = config.epochs * self.updates
        self.bf16 = uses_bf16(config, processes.device)
        objective = lesson.objective.to(processes.device)
        objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = _sgd(objective, config)
        self.average: AveragedModel | None = None
        if config.ema is not None:
            average = get_ema_multi_avg_fn(config.ema)
            self.average = AveragedModel(objective.model, multi_avg_fn=average, use_buffers=True)
        self.progress = Progress()
        self._order = -1, lesson.train  # of the images in an epoch
        self._resume()
        self._parallel: nn.Module = objective
        if processes.size > 1:
            self._parallel = DistributedDataParallel(objective)

    @property
    def result(self) -> nn.Module:
        """What is validated and kept: the network, or the average of its weights."""
        if self.average is not None:
            return self.average.module
        return self.lesson.objective.model

    def run(self, after_epoch: Callable[[Progress], None] = lambda progress: None) -> Progress:
        """Train to the end; the network then has the weights of the result and is in eval mode."""
        with own_randomness(self.lesson.seed):  # dropout draws from the global state
            saved, pause = time.monotonic(), CHECKPOINT_SECONDS
            for images, labels in self._batches():
                self._update(images, labels)
                ended = self.progress.step % self.updates == 0
                if ended:
                    self._end_epoch()
                    after_epoch(self.progress)
                if ended or time.monotonic() - saved > pause:
                    start = time.monotonic()
                    self._save()
                    saved = time.monotonic()
                    pause = max(CHECKPOINT_SECONDS, (saved - start) / CHECKPOINT_SHARE)
                self._tell()
        self._take_result()
        return self.progress

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented images and labels for each update that is left; the next one is fetched while
        one is trained on.
        """
        with ThreadPoolExecutor(1) as ahead:
            steps = range(self.progress.step, self.total)
            coming = ahead.submit(self._fetch, steps[0]) if steps else None
            for step in steps:
                assert coming is not None
                pixels, labels = coming.result()
                if step + 1 < self.total:
                    coming = ahead.submit(self._fetch, step + 1)
                torch.manual_seed(_seed(self.lesson.seed, step, self.processes.rank))
                generator = torch.Generator().manual_seed(_seed(self.lesson.seed, step))
                draws = self.processes.share(torch.rand(self.batch, DRAWS, generator=generator))
                images = self.lesson.dataset.normalise(pixels.to(self.processes.device))
                images = augmented(images, draws.to(images.device), self.config.augment)
                yield images.contiguous(memory_format=torch.channels_last), labels.to(images.device)

    def _fetch(self, step: int) -> tuple[Tensor, Tensor]:
        epoch, update = divmod(step, self.updates)
        if self._order[0] != epoch:
            shuffle = np.random.default_rng([self.lesson.seed, epoch])
            self._order = epoch, shuffle.permutation(self.lesson.train)
        chosen = self._order[1][update * self.batch : (update + 1) * self.batch]
        chosen = chosen[self.processes.rank :: self.processes.size]
        source = self.lesson.dataset.train
        return source.fetch(chosen), torch.from_numpy(source.labels[chosen])

    def _update(self, images: Tensor, labels: Tensor) -> None:
        start = time.perf_counter()
        self._parallel.train()
        rate = self.config.lr * _rate(self.progress.step, self.total, self.config.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with self._autocast():
            loss, outputs = self._parallel(images, labels)
        self.optimizer.zero_grad()
        loss.backward()
        if self.config.clip is not None:
            nn.utils.clip_grad_norm_(self._parallel.parameters(), self.config.clip)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.lesson.objective.model)
        correct = (outputs.argmax(1) == labels).sum().item()
        own = torch.tensor([loss.item() * len(labels), correct, len(labels)], dtype=torch.float64)
        found = self.processes.total(own).tolist()
        self.progress.sums = [a + b for a, b in zip(self.progress.sums, found, strict=True)]
        self.progress.step += 1
        self.progress.seconds += time.perf_counter() - start
        if not math.isfinite(found[0]):
            raise UserError(
                f"the training diverged in update {self.progress.step}: take a smaller lr than "
                f"{self.config.lr:g}, or clip"
            )

    def _end_epoch(self) -> None:
        progress, start = self.progress, time.perf_counter()
        loss, correct, count = progress.sums
        accuracy = None if self.lesson.heldout is None else self._accuracy(self.lesson.heldout)
        number = progress.step // self.updates
        rate = self.config.lr * _rate(progress.step - 1, self.total, self.config.warmup)
        seconds = round(progress.seconds + time.perf_counter() - start, 2)
        row = Epoch(number, rate, loss / count, correct / count, accuracy, seconds)
        progress.epochs.append(asdict(row))
        progress.sums, progress.seconds = [0.0, 0.0, 0.0], 0.0
        if self.processes.first:
            self.keeper.keep(self.result, progress.best is progress.epochs[-1])

    def _accuracy(self, indices: IntArray) -> float:
        dataset, correct = self.lesson.dataset, 0
        mine = indices[self.processes.rank :: self.processes.size]
        with evaluating(self.result), self._autocast():
            for start in range(0, len(mine), self.batch):
                chosen = mine[start : start + self.batch]
                images = dataset.normalise(dataset.train.fetch(chosen).to(self.processes.device))
                outputs = self.result(images.contiguous(memory_format=torch.channels_last))
                labels = torch.from_numpy(dataset.train.labels[chosen]).to(outputs.device)
                correct += int((outputs.argmax(1) == labels).sum())
        return float(self.processes.total(torch.tensor([float(correct)]))[0]) / len(indices)

    def _autocast(self) -> torch.autocast:
        device = self.processes.device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.bf16)

    def _tell(self) -> None:
        epochs = self.progress.epochs
        what = f"{self.what} | epoch {len(epochs)} of {self.config.epochs}"
        if epochs and epochs[-1]["heldout_accuracy"] is not None:
            what += f", held-out {100 * epochs[-1]['heldout_accuracy']:.2f}%"
        self.report(what, self.progress.step, self.total)

    def _save(self) -> None:
        if self.processes.first:
            average = None if self.average is None else self.average.state_dict()
            self.keeper.save_state(
                {
                    "progress": asdict(self.progress),
                    "objective": self.lesson.objective.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "average": average,
                }
            )

    def _resume(self) -> None:
        state = self.keeper.load_state(self.processes.device)
        if state is None:
            return
        with damaged(self.keeper.source):
            self.progress = Progress.of(state["progress"], self.updates, self.total)
            self.lesson.objective.load_state_dict(state["objective"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])

    def _take_result(self) -> None:
        self.processes.wait()  # the first one has written it
        model = self.lesson.objective.model
        best = self.keeper.best()
        with damaged(self.keeper.source):
            model.load_state_dict(best)
        model.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        model.eval()


def train(
    model: nn.Module,
    dataset: Dataset,
    indices: IntArray,
    config: TrainConfig,
    seed: int = 0,
    report: Report = silent,
) -> None:
    """Train ``model`` in place on the given training images, without a folder; it is in eval mode
    afterwards.
    """
    lesson = Lesson(Objective(model, config.label_smoothing), dataset, indices, seed=seed)
    with joined() as processes:
        what = "training the base network"
        Trainer(lesson, config, processes, InMemory(processes), what, report).run()


def uses_bf16(config: TrainConfig, device: torch.device) -> bool:
    """Whether a training computes in bf16 (autocast) on a device."""
    if config.precision != "auto":
        return config.precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return has_bf16_units()


def _sgd(model: nn.Module, config: TrainConfig) -> torch.optim.SGD:
    """With weight decay on matrices and kernels only."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    nesterov = config.momentum > 0
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov)


def _rate(step: int, total: int, warmup: float) -> float:
    """A linear warm-up, then a cosine to zero, as a part of the peak."""
    rising = max(1, round(warmup * total))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))


def _seed(*numbers: int) -> int:
    """A seed of its own for each update."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
