"""Checkpoints as people have them: what a training script wrapped around the weights is taken off
where the keys fit the network then. Nothing but tensors and plain containers is unpickled.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from amc.errors import UserError, first_line, short
from amc.reading import damaged

# Under which scripts keep a state dict; of several that fit equally well the first is taken.
WRAPPERS = (
    *("state_dict", "model", "model_state_dict", "net", "network", "params"),
    *("ema", "state_dict_ema", "model_ema", "module"),
)
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "net.")
AVERAGED = "n_averaged"  # the counter of torch's AveragedModel, beside the weights
_DEPTH = 4  # wrappers within wrappers

State = dict[str, Tensor]


@dataclass(frozen=True)
class Candidate:
    """One state dict in a file, as a network may take it."""

    place: str  # the wrappers on the way to it, as "model.ema"
    prefix: str  # what was taken off its keys
    state: State


def read_checkpoint(path: Path, expected: State) -> tuple[State, str]:
    """The state dict in a file that fits ``expected`` best, and in words what had to be done for it
    (empty: nothing).

    Raises:
        UserError: the file is damaged, holds no state dict, or holds more than tensors.
    """
    found = _read(path)
    dicts = list(_state_dicts(found))
    if not dicts:
        keys = f" (its keys: {', '.join(map(str, list(found)[:5]))})" if _named(found) else ""
        raise UserError(
            f"the weights file {str(path)!r} holds no state dict{keys}: save model.state_dict() "
            "alone, with torch.save or as safetensors"
        )
    most = path.stat().st_size
    for _, state in dicts:
        if odd := next((key for key, value in state.items() if not _plain(value, most)), None):
            raise UserError(
                f"the weights file {str(path)!r} is damaged: {short(odd)} is no ordinary "
                "tensor, or larger than the file"
            )
    candidates = [one for place, state in dicts for one in _stripped(place, state)]
    best = min(candidates, key=lambda one: len(misfits(one.state, expected)))  # first of equals
    return best.state, _said(best, [place for place, _ in dicts], expected)


def misfits(state: State, expected: State) -> list[str]:
    """What keeps a state dict from a network, a few words each."""
    twins = _twins(expected)
    wrong = [
        f"{key} is missing"
        for key in expected
        if key not in state
        and not key.endswith("num_batches_tracked")  # which evaluation does not use
        and not any(twin in state for twin in twins[key])
    ]
    wrong += [f"{key} is unknown" for key in state if key not in expected]
    for key in (key for key in state if key in expected):
        value, like = state[key], expected[key]
        if value.shape != like.shape:
            wrong.append(f"{key} is {tuple(value.shape)}, not {tuple(like.shape)}")
        elif like.is_floating_point() and not value.is_floating_point():
            wrong.append(f"{key} is {_dtype(value)}, not {_dtype(like)}")
        elif any(twin in state and not torch.equal(state[twin], value) for twin in twins[key]):
            wrong.append(f"{key} is not equal to {twins[key][0]}, with which it is one tensor")
    return wrong


def classes_differ(state: State, expected: State) -> tuple[int, int] | None:
    """The classes of the file and of the network, where nothing but their number differs: outputs
    that no other layer reads.
    """
    if set(state) != set(expected):
        return None
    pairs = {(state[key].shape, expected[key].shape) for key in state}
    different = [(a, b) for a, b in pairs if a != b]
    counts = {(a[0], b[0]) for a, b in different if a[1:] == b[1:] and a and b}
    alike = all(a[1:] == b[1:] for a, b in different)
    return counts.pop() if alike and len(counts) == 1 else None


def _twins(expected: State) -> dict[str, tuple[str, ...]]:
    """For every key the others under which a network holds the same tensor."""
    same: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for key, value in expected.items():
        place = value.untyped_storage().data_ptr(), value.storage_offset()
        same[(*place, value.shape, value.stride()) if value.numel() else (key,)].append(key)
    keys = list(same.values())
    return {key: tuple(k for k in group if k != key) for group in keys for key in group}


def _said(best: Candidate, places: Sequence[str], expected: State) -> str:
    parts = [f"taken from {best.place!r}"] if best.place else []
    others = [repr(place) for place in places if place not in ("", best.place)]
    if parts and others:
        parts[0] += f" (it also holds {', '.join(others)}: save what you want instead alone)"
    if best.prefix:
        parts.append(f"without the prefix {best.prefix!r} of its keys")
    pairs = ((value, expected[key]) for key, value in best.state.items() if key in expected)
    cast = {_dtype(value) for value, like in pairs if value.dtype != like.dtype}
    if cast:
        parts.append(f"cast from {', '.join(sorted(cast))}")
    return ", ".join(parts)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _named(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _state_dicts(value: Any, place: str = "", depth: int = 0) -> Iterator[tuple[str, State]]:
    """Every state dict in what a file holds, and where it lies; what wraps others comes last."""
    if not _named(value) or depth > _DEPTH:
        return
    for key in WRAPPERS:
        yield from _state_dicts(value.get(key), f"{place}.{key}" if place else key, depth + 1)
    state = {key: one for key, one in value.items() if isinstance(one, Tensor)}
    state.pop(AVERAGED, None)
    if state:
        yield place, state


def _stripped(place: str, state: State) -> Iterator[Candidate]:
    """A state dict as it is, and without each prefix that keys of it have, one after the other."""
    yield Candidate(place, "", state)
    taken = ""
    while prefix := next((p for p in PREFIXES if any(key.startswith(p) for key in state)), ""):
        shorter = {key.removeprefix(prefix): value for key, value in state.items()}
        if len(shorter) < len(state):  # two keys would be one
            return
        taken, state = taken + prefix, shorter
        yield Candidate(place, taken, state)


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of what a safetensors file holds; only its header is read.

    Raises:
        UserError: it is damaged.
    """
    with damaged(path), safe_open(path, "pt") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118


def _check_size(path: Path) -> None:
    """Refuse a zip file that is far larger when it is unpacked: torch stores without compression.

    Raises:
        UserError: it is.
    """
    if not zipfile.is_zipfile(path):
        return
    with damaged(path), zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > 2 * path.stat().st_size + (1 << 20):
        raise UserError(
            f"the weights file {str(path)!r} is damaged: {unpacked:,} bytes are packed into "
            f"{path.stat().st_size:,}, which torch.save does not do"
        )


def _plain(tensor: Tensor, most: int) -> bool:
    """Whether a tensor is an ordinary one, and no larger than its file."""
    ordinary = tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not ordinary or tensor.is_quantized or tensor.is_complex():
        return False
    return tensor.numel() * tensor.element_size() <= most


def _read(path: Path) -> Any:
    """What a file holds: tensors in plain containers.

    Raises:
        UserError: it is damaged, or would run code.
    """
    _check_size(path)
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            if file.read(9)[8:] == b"{":  # safetensors, behind the length of its header
                return load_file(path)
            file.seek(0)
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        text, reason = str(error), first_line(error)
        if "Unsupported operand" in text:
            reason = "neither torch.save nor safetensors has written it"
        elif "weights_only" in text:
            what = re.search(r"GLOBAL ([\w.]+)", text)
            holds = what.group(1) if what else "a program"
            raise UserError(
                f"the weights file {str(path)!r} cannot be read without running code from it, as "
                f"it holds {holds}: where it was made, save the state dict alone, "
                "torch.save(model.state_dict(), FILE), or as safetensors"
            ) from error
        raise UserError(
            f"the weights file {str(path)!r} is damaged or not a weights file: {short(reason)}"
        ) from error
