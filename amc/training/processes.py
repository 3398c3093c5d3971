"""The processes that train together: one, or as many as ``torchrun`` starts, each with a part of
every batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from amc.compute import HOST, Compute, count


@dataclass(frozen=True)
class Processes:
    """This process among all of them, and what it computes on."""

    rank: int = 0
    size: int = 1
    compute: Compute = HOST

    @property
    def first(self) -> bool:
        """Whether this one writes files and speaks."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """This process's part of a batch."""
        return batch[self.rank :: self.size]

    def total(self, values: Tensor) -> Tensor:
        """The sums over all processes of what is on their computes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def align(self, model: nn.Module) -> None:
        """Give all the first one's buffers: each has seen other images, and BatchNorm's statistics
        are of these.
        """
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined(compute: Compute = HOST) -> Iterator[Processes]:
    """Meet the others, where ``torchrun`` started several; of several accelerators each takes its
    own.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local = (int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK"))
    device = compute.device
    if size > 1 and compute.is_accelerator:
        compute = Compute(torch.device(device.type, local % count()))
    chosen = compute.module.device(compute.device) if compute.is_accelerator else nullcontext()
    with chosen:
        if size == 1 or dist.is_initialized():
            yield Processes(rank if size > 1 else 0, size, compute)
            return
        dist.init_process_group(_backend(compute.device))
        try:
            yield Processes(rank, size, compute)
        finally:
            dist.destroy_process_group()


def _backend(device: torch.device) -> str:
    """What processes talk by: on the host they always can, too."""
    own = dist.get_default_backend_for_device(device)
    return own if device.type == "cpu" else f"cpu:gloo,{device.type}:{own}"
