"""What a search and a fine-tuning run on: the processor, or an accelerator.

(A *device* is what the network will be deployed on.) What is random is drawn on the processor, so
that it does not depend on the compute.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from amc.errors import UserError, out_of_memory

AUTO = "auto"
NAME = re.compile(r"auto|[a-z0-9]+(:[0-9]{1,4})?")
CPU = torch.device("cpu")
RESIDENT = 0.5  # of an accelerator's free memory: so much may be filled with images


@dataclass(frozen=True)
class Compute:
    """A device of torch's, and how to use it."""

    device: torch.device = CPU
    alike: bool = False  # named without a number: what works beside it may take its neighbours

    @classmethod
    def of(cls, name: str = AUTO) -> Compute:
        """By its name: ``auto`` (the accelerator that torch finds, else the processor), ``cpu``,
        ``cuda``, ``cuda:1``, or another device that torch finds here.

        Raises:
            UserError: torch finds none of that name.
        """
        if name == AUTO:
            found = accelerator()
            return cls() if found is None or not _doubles(found) else cls(found, alike=True)
        try:
            device = torch.device(name)
        except RuntimeError:
            raise _missing(name) from None
        if device.type == "cpu":
            return cls()
        found = accelerator()
        if found is None or found.type != device.type or (device.index or 0) >= count():
            raise _missing(name)
        alike = device.index is None
        device = torch.device(device.type, found.index if alike else device.index)
        if not _doubles(device):
            raise UserError(
                f"compute is {name}, which does not know float64, and repair solves in it: take cpu"
            )
        return cls(device, alike)

    def of_worker(self, number: int) -> Compute:
        """What one of several takes that work side by side, of as many as there are."""
        if not self.is_accelerator or not self.alike:
            return self
        return Compute(torch.device(self.device.type, number % count()))

    @property
    def is_accelerator(self) -> bool:
        return self.device.type != "cpu"

    @property
    def name(self) -> str:
        """As the config has it."""
        return str(self.device)

    @property
    def hardware(self) -> str:
        """What it is, for people; of the processor nothing."""
        describe = getattr(self.module, "get_device_name", None)
        return "" if describe is None or not self.is_accelerator else str(describe(self.device))

    @property
    def module(self) -> Any:
        """What torch has for devices of this type: ``torch.cuda``, say."""
        return torch.get_device_module(self.device)

    @property
    def solver(self) -> torch.device:
        """Where float64 is solved: here, unless this is a GPU of which it is no strength (those of
        a compute capability with a minor number, or above 10.0, where it is at most a thirty-second
        of float32's rate).
        """
        capability = getattr(self.module, "get_device_capability", None)
        if not self.is_accelerator or capability is None:
            return self.device
        major, minor = capability(self.device)
        return CPU if minor or major > 10 else self.device

    def holds(self, size: int) -> bool:
        """Whether so many bytes can lie here and leave room to work."""
        info = getattr(self.module, "mem_get_info", None)
        if not self.is_accelerator or info is None:
            return True
        free, _ = info(self.device)
        return bool(size <= RESIDENT * free)

    def put(self, tensor: Tensor) -> Tensor:
        """A tensor here. From the host it goes while the host works on, where it is pinned."""
        # to the host it would be there only after a `wait`
        return tensor.to(self.device, non_blocking=self.is_accelerator)

    def resident(self, tensor: Tensor) -> Tensor:
        """A tensor here, where there is room for it; else as it is, for `put` a part at a time."""
        return self.put(tensor) if self.holds(tensor.nbytes) else tensor

    def wait(self) -> None:
        """Until what was begun here has ended."""
        if self.is_accelerator:
            self.module.synchronize(self.device)

    @contextmanager
    def aside(self) -> Iterator[Any]:
        """On a stream of its own, as graphs are captured; what was begun before ends before it, and
        what comes after waits for it.
        """
        stream = self.module.Stream(self.device)
        current = self.module.current_stream(self.device)
        stream.wait_stream(current)
        try:
            with self.module.stream(stream):
                yield stream
        finally:
            current.wait_stream(stream)

    def clear(self) -> None:
        """Give back memory that is kept for tensors to come."""
        gc.collect()
        if self.is_accelerator:
            self.module.empty_cache()


HOST = Compute()


@dataclass
class Frugal:
    """Does something in pieces, which are halved where memory does not suffice."""

    size: int  # of a piece
    least: int = 1
    what: str = "batches of {} images"

    def __call__(self, compute: Compute, work: Callable[[int], Any]) -> Any:
        """What ``work`` gives for a size of pieces that fits.

        Raises:
            Exception: what ``work`` raises, out of memory with the smallest pieces too.
        """
        while True:
            try:
                return work(self.size)
            except Exception as error:
                if not out_of_memory(error) or self.size <= self.least:
                    raise
                self.size = max(self.least, self.size // 2)
            compute.clear()  # here: the error has let go of what it held
            logging.getLogger("amc").warning(
                "warning: the memory of %s did not suffice: from now on %s",
                compute.name,
                self.what.format(self.size),
            )


def accelerator() -> torch.device | None:
    """The accelerator that torch finds here, the current one of several."""
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None or not torch.accelerator.device_count():
        return None
    return torch.device(found.type, torch.accelerator.current_device_index())


def count() -> int:
    """How many accelerators there are."""
    return 0 if accelerator() is None else int(torch.accelerator.device_count())


def share(accelerators: float, jobs: int) -> float:
    """The part of an accelerator that each of some jobs asks for, so that all can work at once."""
    return 1 / math.ceil(jobs / accelerators) if accelerators >= 1 else 0.0


def only(number: int) -> dict[str, str]:
    """The environment in which a process finds one of the GPUs that this one finds, of as many as
    there are; empty where there are none, or they are no NVIDIA's.
    """
    found = accelerator()
    if found is None or found.type != "cuda":
        return {}
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = named.split(",") if named else [str(one) for one in range(count())]
    return {"CUDA_VISIBLE_DEVICES": names[number % count()].strip()}


@contextmanager
def full_precision() -> Iterator[None]:
    """float32 is float32 inside, whatever the process allows elsewhere (convolutions of NVIDIA's
    GPUs take TF32 by default, matrix products TF32 or bf16 where asked to), and the same each time.
    """
    cudnn, products = torch.backends.cudnn, _operations()
    before, deterministic = _read(cudnn, "allow_tf32"), cudnn.deterministic
    each = [_read(place, "fp32_precision") for place in products]  # since torch 2.9
    if deterministic and set(each) == {"ieee"}:  # inside of another one
        yield
        return
    whole = _read(torch, "get_float32_matmul_precision")
    if before is not None:
        cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    for place, value in zip(products, each, strict=True):
        if value is not None:  # what is not set falls back on ``torch.backends.fp32_precision``
            place.fp32_precision = "ieee"
    cudnn.deterministic = True
    try:
        yield
    finally:
        cudnn.deterministic = deterministic
        if before is not None:
            cudnn.allow_tf32 = before
        torch.set_float32_matmul_precision(whole or "highest")
        for place, value in zip(products, each, strict=True):
            if value is not None:
                place.fp32_precision = value


def _operations() -> list[Any]:
    """Where torch has settings for products of matrices, convolutions and recurrent layers."""
    backends = torch.backends.cuda, torch.backends.mkldnn, torch.backends.cudnn
    names = "matmul", "conv", "rnn"
    found = (getattr(backend, name, None) for backend in backends for name in names)
    return [place for place in found if place is not None]


def _read(place: Any, name: str) -> Any:
    """A setting; None where there is none, or what it covers was set one by one to be apart."""
    try:
        value = getattr(place, name, None)
        return value() if callable(value) else value
    except RuntimeError:
        return None


def _doubles(device: torch.device) -> bool:
    """Whether a device computes in float64."""
    try:
        return bool((torch.ones(2, dtype=torch.float64, device=device) + 1).sum() == 4)
    except (RuntimeError, TypeError):
        return False


def _missing(name: str) -> UserError:
    number = count()
    found = accelerator()
    have = "no accelerator" if found is None else f"{number} x {found.type}"
    return UserError(
        f"compute is {name}, but torch finds {have} here: take auto or cpu"
        + ("" if found is None else f", or {found.type}:0 to {found.type}:{number - 1}")
    )
