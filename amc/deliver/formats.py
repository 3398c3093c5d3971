"""A network in formats that others run, each checked against PyTorch on real images."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amc.device.runtimes import onnx_session, quiet
from amc.network.layers import evaluating

TOLERANCE = 1e-3  # of the largest output, between a format and PyTorch
_BATCH = 50

Run = Callable[[Tensor], Tensor]
"""Of a file: images (n, C, H, W) -> outputs."""


@dataclass(frozen=True)
class Parity:
    """How well a format agrees with PyTorch."""

    max_abs_diff: float  # of the outputs
    top1_agreement: float  # the part of the images that both give one class
    images: int
    batch: int | None = None  # of every call; None: any

    @classmethod
    def of(cls, got: Tensor, expected: Tensor) -> Parity:
        """Compare outputs (n, classes).

        Raises:
            ArithmeticError: they do not agree.
        """
        difference = float((got - expected).abs().max())
        if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
            raise ArithmeticError(f"the exported network and PyTorch differ by {difference:.3g}")
        same = (got.argmax(1) == expected.argmax(1)).float().mean()
        return cls(difference, float(same), len(got))


def as_onnx(model: nn.Module, images: Tensor, metadata: Mapping[str, str]) -> tuple[bytes, Parity]:
    """ONNX in the exporter's current opset, with a batch of any size; for one image at a time where
    the network does not leave its batch open.

    Args:
        model: in fp32.
        images: real ones, normalised (n, C, H, W), to check it on.
        metadata: for its ``metadata_props``.

    Raises:
        ArithmeticError: it does not agree with PyTorch.
        Exception: whatever the exporter and the runtime have against the network.
    """
    return _any_batch(partial(_onnx, metadata), model, images)


def _onnx(
    metadata: Mapping[str, str], model: nn.Module, example: Tensor, shapes: Any
) -> tuple[bytes, Run]:
    with quiet(), evaluating(model):
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(metadata)
    with tempfile.TemporaryDirectory() as scratch:
        program.save(str(Path(scratch) / "model.onnx"), external_data=False)
        content = (Path(scratch) / "model.onnx").read_bytes()
    session = onnx_session(content)
    return content, lambda part: torch.from_numpy(session.run(None, {"images": part.numpy()})[0])


def as_program(model: nn.Module, images: Tensor) -> tuple[bytes, Parity]:
    """A `torch.export` program (``torch.export.load`` reads it), with a batch as in `as_onnx`.

    Args:
        model: in fp32.
        images: real ones, normalised (n, C, H, W), to check it on.

    Raises:
        ArithmeticError: it does not agree with PyTorch.
        Exception: whatever the exporter has against the network.
    """
    return _any_batch(_program, model, images)


def _program(model: nn.Module, example: Tensor, shapes: Any) -> tuple[bytes, Run]:
    buffer = io.BytesIO()
    with quiet(), evaluating(model):
        program = torch.export.export(model, (example,), dynamic_shapes=shapes)
        torch.export.save(program, buffer)
    content = buffer.getvalue()
    buffer.seek(0)
    with quiet():
        return content, torch.export.load(buffer).module()


def _any_batch(
    make: Callable[[nn.Module, Tensor, Any], tuple[bytes, Run]], model: nn.Module, images: Tensor
) -> tuple[bytes, Parity]:
    """A file with its batch open, or with a batch of one; and how well it agrees."""
    try:
        content, run = make(model, images[:2], ({0: torch.export.Dim("batch")},))
        return content, _parity(run, model, images, _BATCH)
    except ArithmeticError:
        raise
    except Exception:  # the network computes with the number of images, say
        content, run = make(model, images[:1], None)
        return content, replace(_parity(run, model, images[:_BATCH], 1), batch=1)


def _parity(run: Run, model: nn.Module, images: Tensor, size: int) -> Parity:
    with quiet(), torch.no_grad():
        got = torch.cat([run(part) for part in images.split(size)])
    return Parity.of(got, _outputs(model, images))


def _outputs(model: nn.Module, images: Tensor) -> Tensor:
    with evaluating(model):
        return torch.cat([model(part) for part in images.split(_BATCH)])
