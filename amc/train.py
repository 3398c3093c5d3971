"""Train a base network on the spot: SGD with Nesterov momentum, one cosine with a short warm-up."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amc.config import TrainConfig
from amc.evaluate.data import Dataset
from amc.network.layers import IntArray
from amc.progress import Report, silent


def train(
    model: nn.Module,
    dataset: Dataset,
    indices: IntArray,
    config: TrainConfig,
    seed: int = 0,
    report: Report = silent,
) -> None:
    """Train ``model`` in place on the given training images; it is in eval mode afterwards."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(
        _decayed(model, config.weight_decay), lr=config.lr, momentum=0.9, nesterov=True
    )
    updates = math.ceil(len(indices) / config.batch_size)
    total = config.epochs * updates
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, total))
    model.train()
    for epoch in range(config.epochs):
        order = torch.randperm(len(indices), generator=generator).numpy()
        for update in range(updates):
            chosen = indices[order[update * config.batch_size : (update + 1) * config.batch_size]]
            if len(chosen) < 2:  # BatchNorm cannot normalise a single image
                continue
            images = dataset.normalise(dataset.train.fetch(chosen))
            if config.augment:
                images = _augmented(images, generator)
            loss = F.cross_entropy(model(images), torch.from_numpy(dataset.train.labels[chosen]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            report("training the base network", epoch * updates + update + 1, total)
    report("training the base network", total, total)
    model.eval()


def _decayed(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay on matrices and kernels only."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def _rate(step: int, total: int) -> float:
    """A linear warm-up over 5% of the updates, then a cosine to zero."""
    warmup = max(1, total // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _augmented(images: Tensor, generator: torch.Generator, shift: int = 4) -> Tensor:
    """Each image shifted by up to ``shift`` pixels and mirrored half of the time."""
    count, _, height, width = images.shape
    padded = F.pad(images, (shift,) * 4)
    rows, columns = (torch.randint(2 * shift + 1, (count,), generator=generator) for _ in range(2))
    y = rows[:, None] + torch.arange(height)
    x = columns[:, None] + torch.arange(width)
    mirrored = torch.rand(count, generator=generator) < 0.5
    x = torch.where(mirrored[:, None], x.flip(1), x)
    return padded.permute(0, 2, 3, 1)[
        torch.arange(count)[:, None, None], y[:, :, None], x[:, None, :]
    ].permute(0, 3, 1, 2)
