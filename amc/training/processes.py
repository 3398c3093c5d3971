"""The processes that train together: one, or as many as ``torchrun`` starts, each with a part of
every batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """This process among all of them, and what it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this one writes files and speaks."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """This process's part of a batch."""
        return batch[self.rank :: self.size]

    def total(self, values: Tensor) -> Tensor:
        """The sums over all processes."""
        if self.size == 1:
            return values
        summed = values.to(self.device)
        dist.all_reduce(summed)
        return summed.cpu()

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined() -> Iterator[Processes]:
    """Meet the others, where ``torchrun`` started several; a GPU each where there are some."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local = (int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", local % torch.cuda.device_count())
        torch.cuda.set_device(device)
    if size == 1 or dist.is_initialized():
        yield Processes(rank if size > 1 else 0, size, device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(rank, size, device)
    finally:
        dist.destroy_process_group()
