"""What runs a network on a device, and how its time is taken.

A runtime of one's own is a class with the three attributes and the method of `Runtime`, named as
``module:Class``; nothing is registered.
"""

from __future__ import annotations

import contextlib
import io
import logging
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol
from unittest import mock

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amc.errors import UserError, first_line, root_cause
from amc.network.copying import private_copy
from amc.network.layers import evaluating
from amc.registry import lookup

Run = Callable[[], float]
"""Runs a prepared network once; returns the milliseconds that it took."""


class Runtime(Protocol):
    """Runs networks on one device. Made with the number of threads it may use."""

    name: str
    version: str
    threads: int

    def prepare(self, model: nn.Module, example: Tensor) -> Run:
        """Make a network ready to run on inputs like ``example``.

        Raises:
            UserError: this runtime cannot run it.
        """


class OnnxRuntime:
    """ONNX Runtime on the CPU."""

    name = "onnxruntime"
    version = onnxruntime.__version__

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads

    def prepare(self, model: nn.Module, example: Tensor) -> Run:
        session = onnx_session(onnx_bytes(model, example), self.threads)
        inputs = {one.name: example.numpy() for one in session.get_inputs()}
        if not inputs:
            raise UserError("the network as ONNX has no input: its output is taken for a constant")
        try:
            session.run(None, inputs)
        except Exception as error:
            raise UserError(f"ONNX Runtime cannot run the network: {first_line(error)}") from error
        return _timed(lambda: session.run(None, inputs))


class TorchCpu:
    """PyTorch, eager, on the CPU."""

    name = "torch"
    version = torch.__version__

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads

    def prepare(self, model: nn.Module, example: Tensor) -> Run:
        own = private_copy(model)

        def run() -> float:
            before = torch.get_num_threads()
            torch.set_num_threads(self.threads)
            try:
                with torch.inference_mode():
                    start = time.perf_counter()
                    own(example)
                    return 1e3 * (time.perf_counter() - start)
            finally:
                torch.set_num_threads(before)

        return run


class OpenVino:
    """OpenVINO on the CPU (``pip install amc-compression[openvino]``)."""

    name = "openvino"

    def __init__(self, threads: int = 1) -> None:
        try:
            import openvino
        except ImportError:
            raise UserError(
                "the runtime 'openvino' is not installed: pip install openvino"
            ) from None
        self.threads = threads
        self.version = metadata.version("openvino")
        self._core: Any = openvino.Core()

    def prepare(self, model: nn.Module, example: Tensor) -> Run:
        settings = {"INFERENCE_NUM_THREADS": self.threads, "PERFORMANCE_HINT": "LATENCY"}
        settings |= {"INFERENCE_PRECISION_HINT": "f32"}
        network = self._core.read_model(onnx_bytes(model, example))
        request = self._core.compile_model(network, "CPU", settings).create_infer_request()
        inputs = [example.numpy()]
        return _timed(lambda: request.infer(inputs))


def make_runtime(name: str = "onnxruntime", threads: int = 1) -> Runtime:
    """A runtime by name, or ``module:Class``.

    Raises:
        UserError: there is none, or it is not installed here.
    """
    runtime: Runtime = lookup("runtime", name)(threads=threads)
    return runtime


def onnx_session(content: bytes | str, threads: int = 0) -> Any:
    """An ONNX Runtime session on the CPU; 0 threads are as many as there are cores."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    # idle threads of one session would otherwise spin while another is timed
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(f"ONNX Runtime cannot run the network: {first_line(error)}") from error


def onnx_bytes(model: nn.Module, example: Tensor) -> bytes:
    """The network as ONNX for inputs of exactly this shape.

    torch's older exporter is tried first: it is 40 times faster, and hundreds of layers are timed.

    Raises:
        UserError: it cannot be exported.
    """
    with quiet(), evaluating(model):
        try:
            buffer = io.BytesIO()
            torch.onnx.export(model, (example,), buffer, dynamo=False)  # type: ignore[arg-type]
            return buffer.getvalue()
        except Exception:  # operators it does not know, or a torch that no longer has it
            try:
                program = torch.onnx.export(model, (example,), dynamo=True, verbose=False)
            except Exception as error:
                raise UserError(f"it cannot be exported to ONNX: {root_cause(error)}") from error
            assert program is not None
            content: bytes = program.model_proto.SerializeToString()
            return content


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' chatter."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    silence = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            # graphs of what could not be exported, written past Python otherwise
            mock.patch.object(torch._C, "_jit_onnx_log", print, create=True),
            contextlib.redirect_stdout(silence),
            contextlib.redirect_stderr(silence),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _timed(call: Callable[[], Any]) -> Run:
    def run() -> float:
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)

    return run


def interleaved(
    runs: Sequence[Run], rounds: int = 7, block_ms: float = 3.0, calls: int = 3
) -> NDArray[np.float64]:
    """Time several networks in turn, so that a slow moment of the machine meets all of them.

    In each round every one runs for at least ``block_ms`` and ``calls`` times; the first run of a
    block, which finds the caches filled by another network, does not count.

    Returns:
        milliseconds (rounds, len(runs)): the median of each block.
    """
    times = np.empty((rounds, len(runs)))
    for row in times:
        for index, run in enumerate(runs):
            run()
            block: list[float] = []
            while len(block) < calls or sum(block) < block_ms:
                block.append(run())
            row[index] = np.median(block)
    return times


def median_ms(run: Run) -> float:
    """The median of 30 blocks of one network."""
    return float(np.median(interleaved([run], rounds=30)))


def robust_spread(values: NDArray[np.float64]) -> float:
    """1.48 times the median absolute deviation: the standard deviation, were there no outliers."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


def timed_in_turn(
    runtime: Runtime, models: dict[str, nn.Module], example: Tensor, seconds: float = 2.0
) -> dict[str, dict[str, float]]:
    """Median and spread in ms of some networks, measured in turn, and the ratio to the first of
    them: the median of the ratios within a round.
    """
    runs = [runtime.prepare(model, example) for model in models.values()]
    once = interleaved(runs, rounds=1)[0]
    rounds = int(min(100, max(9, 1e3 * seconds / np.maximum(3.0, 4 * once).sum())))
    times = interleaved(runs, rounds)
    ratios = np.median(times / times[:, :1], axis=0)
    return {
        name: {
            "ms": float(np.median(times[:, index])),
            "spread_ms": robust_spread(times[:, index]),
            "ratio": float(ratios[index]),
        }
        for index, name in enumerate(models)
    }


def processor() -> str:
    """The name of this machine's processor."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    names = [
        line.partition(":")[2].strip()
        for line in text.splitlines()
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor()
