"""PyTorch on a GPU: what a layer takes there, not what it takes to launch it.

A call of a small layer is launched more slowly than a GPU ends it. So calls are captured as a graph
(CUDA graphs), as many as take a millisecond together, and events on the device time the whole.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from amc.compute import Compute
from amc.device.runtimes import Run
from amc.errors import UserError, first_line
from amc.network.copying import private_copy

WARM_UPS = 3  # calls in which libraries set themselves up
BLOCK_MS = 1.0  # of work between two events
MOST = 200  # calls between them


class TorchCuda:
    """In float32, as PyTorch computes it by default (convolutions in TF32)."""

    name = "torch_cuda"
    version = torch.__version__
    kind, dtype = "cuda", torch.float32

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        try:
            self.compute = Compute.of(self.kind)
        except UserError:
            raise UserError(
                f"the runtime {self.name!r} needs a GPU, and torch finds none here"
            ) from None

    def prepare(self, model: nn.Module, example: Tensor) -> Run:
        """As `Runtime.prepare`; the milliseconds are those of one call, on average over a block."""
        half = self.dtype != torch.float32
        layout = torch.channels_last if half and example.dim() == 4 else torch.contiguous_format
        own = private_copy(model).to(self.compute.device, self.dtype)
        own = own.to(memory_format=layout)  # type: ignore[call-overload]
        images = self.compute.put(example).to(self.dtype, memory_format=layout)

        def call() -> None:
            with torch.inference_mode():
                own(images)

        try:
            with _tuned():
                return self._timed(call)
        except Exception as error:
            raise UserError(
                f"the network does not run on {self.compute.name}: {first_line(error)}"
            ) from error

    def _timed(self, call: Callable[[], None]) -> Run:
        for _ in range(WARM_UPS):
            call()
        once = _between(self.compute, self._replay(call, 1))
        calls = min(MOST, max(1, math.ceil(BLOCK_MS / max(once(), 1e-6))))
        block = _between(self.compute, self._replay(call, calls))
        return lambda: block() / calls

    def _replay(self, call: Callable[[], None], calls: int) -> Callable[[], None]:
        """So many calls as one graph; where there can be none, one after the other."""

        def work() -> None:
            for _ in range(calls):
                call()

        graph = self.compute.module.CUDAGraph()
        try:
            with self.compute.aside() as stream:  # also where a capture fails, which leaves its own
                call()
                with self.compute.module.graph(graph, stream=stream):
                    work()
        except RuntimeError as error:  # a forward that reads a value on the host
            logging.getLogger("amc").warning(
                "warning: the launch of its operations is timed too, for a graph of them cannot be "
                "had (%s)",
                first_line(error),
            )
            self.compute.wait()
            return work
        return partial(_replay_of, graph, call)


class TorchCudaHalf(TorchCuda):
    """In float16, channels last: on tensor cores."""

    name, dtype = "torch_cuda_fp16", torch.float16


def _replay_of(graph: Any, call: Callable[[], None]) -> None:
    """Launch a graph. It has no hold on the weights and images that it reads; ``call`` has."""
    graph.replay()


def _between(compute: Compute, work: Callable[[], None]) -> Run:
    """Milliseconds on the device."""
    module = compute.module
    start, end = (module.Event(enable_timing=True) for _ in range(2))

    def run() -> float:
        start.record()
        work()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    return run


@contextmanager
def _tuned() -> Iterator[None]:
    """cuDNN tries its algorithms, as who deploys a network lets it."""
    before: Any = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
