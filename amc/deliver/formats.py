"""A network in formats that others run, each checked against PyTorch on real images."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from amc.device.runtimes import onnx_session, quiet
from amc.files import write_bytes
from amc.network.layers import evaluating

TOLERANCE = 1e-3  # of the largest output, between a format and PyTorch
_BATCH = 50


@dataclass(frozen=True)
class Parity:
    """How well a format agrees with PyTorch."""

    max_abs_diff: float  # of the outputs
    top1_agreement: float  # the part of the images that both give one class
    images: int

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


def write_onnx(model: nn.Module, images: Tensor, path: Path, metadata: Mapping[str, str]) -> Parity:
    """ONNX with a dynamic batch, in the exporter's current opset.

    Args:
        model: in fp32.
        images: real ones, normalised (n, C, H, W), to check it on.
        path: of the file.
        metadata: for its ``metadata_props``.

    Raises:
        ArithmeticError: it does not agree with PyTorch.
    """
    with quiet(), evaluating(model):
        program = torch.onnx.export(
            model,
            (images[:2],),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(metadata)
    with tempfile.TemporaryDirectory() as scratch:
        program.save(str(Path(scratch) / path.name), external_data=False)
        content = (Path(scratch) / path.name).read_bytes()
    write_bytes(path, content)
    session = onnx_session(content)
    parts = [session.run(None, {"images": part.numpy()})[0] for part in images.split(_BATCH)]
    return Parity.of(torch.from_numpy(np.concatenate(parts)), _outputs(model, images))


def write_program(model: nn.Module, images: Tensor, path: Path) -> Parity:
    """A `torch.export` program with a dynamic batch (``torch.export.load`` reads it).

    Args:
        model: in fp32.
        images: real ones, normalised (n, C, H, W), to check it on.
        path: of the file.

    Raises:
        ArithmeticError: it does not agree with PyTorch.
    """
    buffer = io.BytesIO()
    with quiet(), evaluating(model):
        batch = torch.export.Dim("batch")
        program = torch.export.export(model, (images[:2],), dynamic_shapes=({0: batch},))
        torch.export.save(program, buffer)
    write_bytes(path, buffer.getvalue())
    buffer.seek(0)
    with quiet(), torch.no_grad():
        loaded = torch.export.load(buffer).module()
        got = torch.cat([loaded(part) for part in images.split(_BATCH)])
    return Parity.of(got, _outputs(model, images))


def _outputs(model: nn.Module, images: Tensor) -> Tensor:
    with evaluating(model):
        return torch.cat([model(part) for part in images.split(_BATCH)])
