"""An evaluator as bytes, which can be unpacked on another compute."""

from __future__ import annotations

import io
import pickle
from typing import Any

import cloudpickle
import torch
from torch import Tensor, nn

from amc.compute import HOST, Compute
from amc.evaluate.evaluator import Evaluator

_there = HOST  # where what is unpacked just now comes to lie


def packed(evaluator: Evaluator) -> bytes:
    """All of it; what lies on an accelerator does not say on which."""
    content = io.BytesIO()
    _Packer(content).dump(evaluator)
    return content.getvalue()


def unpacked(content: bytes, compute: Compute) -> Evaluator:
    """The inverse of `packed`: what lay on an accelerator lies on ``compute``."""
    global _there  # noqa: PLW0603
    _there = compute
    evaluator: Evaluator = pickle.loads(content)  # of this search's own process
    return evaluator


class _Packer(cloudpickle.Pickler):  # type: ignore[misc]
    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, torch.device) and obj.type != "cpu":
            return _device, ()
        if isinstance(obj, Tensor) and obj.device.type != "cpu":
            parameter = isinstance(obj, nn.Parameter)
            return _tensor, (obj.detach().cpu(), parameter, obj.requires_grad)
        return super().reducer_override(obj)


def _device() -> torch.device:
    return _there.device


def _tensor(value: Tensor, parameter: bool, requires_grad: bool) -> Tensor:
    value = _there.put(value)
    return nn.Parameter(value, requires_grad) if parameter else value.requires_grad_(requires_grad)
