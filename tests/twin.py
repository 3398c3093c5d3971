"""A second device, ``twin``, that is the CPU under another name: what runs on it takes the path of
a GPU. Mixing its tensors with those of the CPU fails, as it does with a GPU's.

Its memory can be made small (`memory`), and it has graphs, as CUDA has: what is captured is done
again with the same tensors, and nothing may be read by the host meanwhile.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

aten = torch.ops.aten
CPU, COUNT = torch.device("cpu"), 2


@dataclass
class _State:
    here: bool = False  # whether torch finds it
    bytes: float = math.inf  # the largest tensor that it has room for
    capability: tuple[int, int] = (9, 0)
    captured: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] | None = None
    calls: int = 0  # of operations on it
    reads: int = 0  # of values by the host
    strict: int = 0  # 2: they fail


STATE = _State()


class Twin(torch.Tensor):
    """A tensor of the twin."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device) -> Twin:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=device,
        )
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Twin({self.inner})"


_COPIES = {aten._to_copy.default, aten.copy_.default, aten._copy_from.default}
_ALLOCATES = {aten.empty.memory_format, aten.empty_strided.default, aten.resize_.default}
_INDEXED = {aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default}
_READS = {aten._local_scalar_dense.default, aten.item.default, aten.equal.default}


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensors = [one for one in tree_iter((args, kwargs)) if isinstance(one, Tensor)]
    ours = [one for one in tensors if isinstance(one, Twin)]
    mixed = [args[0], *args[2:]] if func in _INDEXED else tensors  # a GPU takes the host's indices
    if ours and func not in _COPIES and any(_is_apart(one) for one in mixed):
        raise RuntimeError(f"Expected all tensors to be on the same device ({func})")
    if STATE.captured is not None and (func in _READS or _leaves(func, ours, kwargs)):
        raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
    reads = func in _READS or _leaves(func, ours, kwargs)
    if reads and STATE.strict:
        raise RuntimeError(f"called a synchronizing operation: {func}")
    STATE.calls += 1
    STATE.reads += reads
    plain_args, plain_kwargs = tree_map(_inner, (args, kwargs))
    result = func(*plain_args, **plain_kwargs)
    device = kwargs.get("device") or (ours[0].device if ours else CPU)
    if torch.device(device).type == "cpu" or func in _READS:
        return result
    _refuse_large(result)
    place = torch.device(device)
    place = torch.device(place.type, place.index or 0)
    out = tree_map(lambda one: Twin(one, place) if isinstance(one, Tensor) else one, result)
    out = return_and_correct_aliasing(func, args, kwargs, out)
    if STATE.captured is not None and func not in _ALLOCATES:  # a graph's memory is its own
        STATE.captured.append((func, args, kwargs, out))
    return out


def _is_apart(value: Any) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, Twin) and value.dim() > 0


def _leaves(func: Any, ours: list[Twin], kwargs: dict[str, Any]) -> bool:
    """Whether a copy to the host waits for what was begun here."""
    device = kwargs.get("device")
    leaves = func is aten._to_copy.default and device is not None
    return bool(ours) and leaves and torch.device(device).type == "cpu"


def _inner(value: Any) -> Any:
    if isinstance(value, Twin):
        return value.inner
    return CPU if isinstance(value, torch.device) and value.type == "twin" else value


def _refuse_large(result: Any) -> None:
    for one in tree_iter(result):
        if isinstance(one, Tensor) and one.nbytes > STATE.bytes:
            raise torch.OutOfMemoryError(f"twin out of memory: tried to allocate {one.nbytes}")


class Graph:
    """As ``torch.cuda.CUDAGraph``."""

    def __init__(self) -> None:
        self.steps: list[Any] = []

    def replay(self) -> None:
        for func, args, kwargs, out in self.steps:
            outs = [one for one in tree_iter(out) if isinstance(one, Twin)]
            with torch.inference_mode(any(one.inner.is_inference() for one in outs)):
                again = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
                found = [one for one in tree_iter(again) if isinstance(one, Tensor)]
                for old, new in zip(outs, found, strict=True):
                    if old.inner is not new:
                        old.inner.copy_(new)


class Stream:
    """As ``torch.cuda.Stream``: all is done at once here."""

    def __init__(self, device: Any = None) -> None:
        pass

    def wait_stream(self, stream: Stream) -> None:
        pass


class Event:
    """As ``torch.cuda.Event``."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        STATE.reads += 1

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.at - self.at)


class _Module:
    """What torch has for devices of this type: ``torch.twin``."""

    CUDAGraph, Stream, Event = Graph, Stream, Event

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return STATE.here

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        yield

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        yield

    def current_stream(self, device: Any = None) -> Stream:
        return Stream()

    def device_count(self) -> int:
        return COUNT if STATE.here else 0

    def synchronize(self, device: Any = None) -> None:
        if STATE.captured is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        STATE.reads += 1

    def get_sync_debug_mode(self) -> int:
        return STATE.strict

    def set_sync_debug_mode(self, mode: int | str) -> None:
        STATE.strict = {"default": 0, "error": 2}.get(str(mode), 0)

    def empty_cache(self) -> None:
        pass

    def get_device_name(self, device: Any = None) -> str:
        return "the processor's twin"

    def get_device_capability(self, device: Any = None) -> tuple[int, int]:
        return STATE.capability

    def mem_get_info(self, device: Any = None) -> tuple[float, float]:
        return STATE.bytes, STATE.bytes

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    @contextmanager
    def graph(self, graph: Graph, **options: Any) -> Iterator[None]:
        """As ``torch.cuda.graph``."""
        STATE.captured = []
        try:
            yield
        finally:
            graph.steps, STATE.captured = STATE.captured, None


class _Hook(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return STATE.here

    def has_primary_context(self, dev_id: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True


def _made(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``torch.tensor``, which goes past the dispatcher."""

    def tensor(data: Any, *, device: Any = None, **options: Any) -> Tensor:
        made = make(data, **options)
        return made if device is None else made.to(device)

    return tensor


_library: torch.library.Library | None = None


def _install() -> None:
    global _library  # noqa: PLW0603
    if _library is None:
        _setup_privateuseone_for_python_backend("twin", _Module(), _Hook())
        _library = torch.library.Library("_", "IMPL")
        _library.fallback(lambda op, *args, **kwargs: _run(op, args, kwargs), "PrivateUse1")


def is_installed() -> bool:
    """Whether this process has had it: torch then takes it, not a GPU, for the accelerator, and
    backward passes forget a GPU's streams. Until the process ends: tests of GPUs need another.
    """
    return _library is not None


@contextmanager
def twin(memory: float = math.inf) -> Iterator[_State]:
    """Let torch find it, with so much memory for a tensor."""
    _install()
    before, future = torch.tensor, torch.__future__
    swaps = future.get_swap_module_params_on_conversion()
    future.set_swap_module_params_on_conversion(True)  # else what is inside stays as it was
    torch.tensor = _made(before)
    STATE.here, STATE.bytes, STATE.calls, STATE.reads = True, memory, 0, 0
    try:
        # autograd counts devices at its first backward pass, and has threads for no others
        with torch.autograd.set_multithreading_enabled(False):
            yield STATE
    finally:
        torch.tensor = before
        future.set_swap_module_params_on_conversion(swaps)
        STATE.here, STATE.bytes = False, math.inf
