"""One update: augmentation, both passes, the optimizer's step, and the average of the weights.
Nothing in it waits for the compute.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from amc.compute import Compute
from amc.evaluate.prepare import has_bf16_units
from amc.training.augment import augmented
from amc.training.lesson import Batch, Lesson
from amc.training.processes import Processes
from amc.training.settings import TrainConfig


class Update:
    """All that an update changes, and how."""

    def __init__(self, lesson: Lesson, config: TrainConfig, processes: Processes) -> None:
        """Bring the objective to the compute.

        Args:
            lesson: what is trained on what; its network is trained in place.
            config: how.
            processes: of which this one is.
        """
        self.lesson, self.config, self.processes = lesson, config, processes
        compute = processes.compute
        self.bf16 = uses_bf16(config, compute)
        objective = lesson.objective.to(compute.device)
        objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = _sgd(objective, config, compute)
        self.average: AveragedModel | None = None
        if config.ema is not None:
            self.average = AveragedModel(objective.model, use_buffers=True)
        self.sums = torch.zeros(3, dtype=torch.float64, device=compute.device)
        """Of the epoch: loss, correct images, images; over all processes."""
        self._parallel: nn.Module = objective
        if processes.size > 1:
            self._parallel = DistributedDataParallel(objective)
        self._begin_momentum()

    @property
    def result(self) -> nn.Module:
        """What is validated and kept: the network, or the average of its weights."""
        if self.average is not None:
            return self.average.module
        return self.lesson.objective.model

    def __call__(self, batch: Batch, rate: float) -> None:
        """Do it, with a learning rate."""
        self.begin(rate)
        self.step(batch)
        self.end()

    def begin(self, rate: float) -> None:
        """Set the learning rate: on an accelerator it is a tensor, which a graph reads."""
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def step(self, batch: Batch) -> None:
        """What is done on the compute, and can be captured in a graph."""
        self._parallel.train()
        images = self.lesson.dataset.normalise(batch.pixels)
        images = augmented(images, batch.draws, self.config.augment)
        images = images.contiguous(memory_format=torch.channels_last)
        with self.autocast():
            loss, outputs = self._parallel(images, batch.labels)
        self.optimizer.zero_grad()
        loss.backward()
        if self.config.clip is not None:
            nn.utils.clip_grad_norm_(self._parallel.parameters(), self.config.clip)
        self.optimizer.step()
        if self.config.ema is not None:
            average = get_ema_multi_avg_fn(self.config.ema)
            for ours, theirs in self._averaged():
                average(ours, theirs, None)
        self._count(loss, outputs, batch.labels)

    def end(self) -> None:
        """The average begins with the weights after the first update."""
        if self.average is not None:
            if not self.average.n_averaged:
                with torch.no_grad():
                    for ours, theirs in self._averaged():
                        for own, other in zip(ours, theirs, strict=True):
                            own.copy_(other)
            self.average.n_averaged += 1

    def autocast(self) -> torch.autocast:
        device = self.processes.compute.device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.bf16)

    def state(self) -> list[list[Tensor]]:
        """All that an update changes, in parts; the tensors themselves."""
        objective = self.lesson.objective
        moments = [own.get("momentum_buffer") for own in self.optimizer.state.values()]
        average = self.average
        parts: list[list[Tensor]] = [
            list(objective.parameters()),
            list(objective.buffers()),
            [moment for moment in moments if moment is not None],
            [] if average is None else _tensors(average.module),
            [] if average is None else [average.n_averaged],
            [self.sums],
        ]
        return [[tensor.detach() for tensor in part] for part in parts]

    def save(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "objective": self.lesson.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
        }

    def load(self, saved: dict[str, Any], sums: list[float]) -> None:
        """The inverse of `save`; ``sums`` are those of the epoch until then."""
        self.lesson.objective.load_state_dict(saved["objective"])
        own = self.optimizer.state_dict()["param_groups"]  # the settings are this compute's
        self.optimizer.load_state_dict({**saved["optimizer"], "param_groups": own})
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
        self.sums.copy_(torch.tensor(sums, dtype=torch.float64))
        self._begin_momentum()

    def _begin_momentum(self) -> None:
        """From zero, which is what it is before the first update: a graph finds it there."""
        if self.config.momentum and self.processes.compute.is_accelerator:
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    own = self.optimizer.state[parameter]
                    if own.get("momentum_buffer") is None:
                        own["momentum_buffer"] = torch.zeros_like(parameter)

    def _averaged(self) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """The average's tensors and the network's, those of one type together."""
        assert self.average is not None
        ours, theirs = _tensors(self.average.module), _tensors(self.lesson.objective.model)
        for dtype in dict.fromkeys(tensor.dtype for tensor in ours):
            pairs = [pair for pair in zip(ours, theirs, strict=True) if pair[0].dtype == dtype]
            yield [own for own, _ in pairs], [other for _, other in pairs]

    @torch.no_grad()
    def _count(self, loss: Tensor, outputs: Tensor, labels: Tensor) -> None:
        correct = (outputs.argmax(1) == labels).sum().double()
        count = torch.full_like(correct, len(labels))
        own = torch.stack([loss.double() * len(labels), correct, count])
        self.sums.add_(self.processes.total(own))


def uses_bf16(config: TrainConfig, compute: Compute) -> bool:
    """Whether a training computes in bf16 (autocast) on a compute."""
    if config.precision != "auto":
        return config.precision == "bf16"
    if not compute.is_accelerator:
        return has_bf16_units()
    known = getattr(compute.module, "is_bf16_supported", None)
    return known is not None and bool(known(including_emulation=False))


@contextmanager
def repeatable() -> Iterator[None]:
    """Convolutions of NVIDIA's GPUs come to the same each time inside: a training that was stopped
    goes on as if it had not been.
    """
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


def _sgd(model: nn.Module, config: TrainConfig, compute: Compute) -> torch.optim.SGD:
    """With weight decay on matrices and kernels only; on an accelerator one kernel for all."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    nesterov = config.momentum > 0
    if not compute.is_accelerator:
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov)
    rate = torch.tensor(config.lr, dtype=torch.float32, device=compute.device)
    return torch.optim.SGD(groups, lr=rate, momentum=config.momentum, nesterov=nesterov, fused=True)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in chain(model.parameters(), model.buffers())]
