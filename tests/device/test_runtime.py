"""Runtimes, and timing in turn."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from amc.device.copies import Copies, layer_input
from amc.device.layer_times import Family
from amc.device.runtimes import interleaved, make_runtime, onnx_bytes, onnx_session, timed_in_turn
from amc.errors import UserError
from amc.network.builtin import CifarResNet
from amc.plugins import allow

SMALL = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()).eval()
LARGE = nn.Sequential(
    nn.Conv2d(3, 64, 3, padding=1), *(nn.Conv2d(64, 64, 3, padding=1) for _ in range(9))
).eval()
IMAGE = torch.randn(1, 3, 32, 32)
GPU = pytest.mark.cuda


def skip_without(name: str) -> None:
    if name.startswith("torch_cuda") and not torch.cuda.is_available():
        pytest.skip(f"{name} needs a GPU")
    if name == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed (an optional extra)")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "name",
    [
        "onnxruntime",
        "torch",
        pytest.param("torch_cuda", marks=GPU),
        pytest.param("torch_cuda_fp16", marks=GPU),
        "openvino",
    ],
)
def test_a_runtime_takes_longer_for_a_larger_network(name: str, threads: int) -> None:
    skip_without(name)
    runtime = make_runtime(name, threads)
    before = torch.get_num_threads()
    found = timed_in_turn(runtime, {"small": SMALL, "large": LARGE}, IMAGE, seconds=0.2)
    assert torch.get_num_threads() == before
    assert found["small"]["ratio"] == 1 and found["large"]["ratio"] > 1
    assert 0 < found["small"]["ms"] < found["large"]["ms"]
    assert runtime.name == name and runtime.version and runtime.threads == threads


def test_a_missing_gpu_is_said_in_a_sentence() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match=r"torch_cuda.*GPU"):
        make_runtime("torch_cuda")


def test_unknown_runtimes_and_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="did you mean 'onnxruntime'"):
        make_runtime("onnxruntme")
    (tmp_path / "my_runtime.py").write_text(
        "class Slow:\n"
        "    name, version = 'my_runtime:Slow', '1'\n"
        "    def __init__(self, threads=1):\n"
        "        self.threads = threads\n"
        "    def prepare(self, model, example):\n"
        "        return lambda: 7.0\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("my_runtime", None)
    with pytest.raises(UserError, match="you have not named yourself"):
        make_runtime("my_runtime:Slow", 3)
    allow("my_runtime:Slow")
    runtime = make_runtime("my_runtime:Slow", 3)
    assert runtime.threads == 3 and runtime.prepare(SMALL, IMAGE)() == 7.0


def test_timing_in_turn_is_robust_to_a_slow_moment() -> None:
    """A burst meets one round, and the median over the rounds does not see it."""
    calls = {"a": 0, "b": 0}

    def run(name: str, ms: float) -> Callable[[], float]:
        def once() -> float:
            calls[name] += 1
            return ms * (50 if 20 < calls[name] < 30 else 1)

        return once

    times = interleaved([run("a", 1.0), run("b", 2.0)], rounds=9)
    assert times.shape == (9, 2)
    assert np.median(times, axis=0).tolist() == [1.0, 2.0]
    assert calls["a"] >= 9 * 4, "at least three calls a block, and one that does not count"


def test_onnx_says_what_cannot_be_exported() -> None:
    class Refuses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no way")

    with pytest.raises(UserError, match="cannot be exported to ONNX"):
        onnx_bytes(Refuses(), IMAGE)


@pytest.mark.parametrize("older", [True, False])
def test_onnx_computes_the_same(older: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With either of torch's exporters: the newer one serves what the older one refuses."""
    whole = torch.onnx.export

    def refuses(*args: object, **options: object) -> object:
        if not options["dynamo"]:
            raise RuntimeError("unsupported operator")
        return whole(*args, **options)  # type: ignore[arg-type]

    if not older:
        monkeypatch.setattr(torch.onnx, "export", refuses)
    model = CifarResNet(1, 10, 3).eval()
    session = onnx_session(onnx_bytes(model, IMAGE), 1)
    got = session.run(None, {session.get_inputs()[0].name: IMAGE.numpy()})[0]
    assert np.allclose(got, model(IMAGE).detach().numpy(), atol=1e-4)
    assert onnxruntime.__version__ == make_runtime().version


@pytest.mark.parametrize(
    "facts",
    [
        {"followed_by": "batchnorm+relu"},
        {"followed_by": ""},
        {"followed_by": "batchnorm+hardtanh"},
        {"followed_by": "batchnorm+relu", "stride": (2, 2), "output_size": (8, 8)},
        {"followed_by": "batchnorm+hardtanh", "group": (1, 1)},
    ],
)
def test_the_copies_are_fused_as_in_a_network(facts: dict[str, object], tmp_path: Path) -> None:
    """What ONNX Runtime makes of five copies: no BatchNorm and no activation is left alone."""
    values: dict[str, object] = {
        "kind": "conv",
        "kernel": (3, 3),
        "stride": (1, 1),
        "input_size": (16, 16),
        "output_size": (16, 16),
    }
    family = Family(**{**values, **facts})  # type: ignore[arg-type]
    content = onnx_bytes(Copies(family, (16, 16), 5).eval(), layer_input(family, 16, 1))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node]
    assert operators.count("Conv") == 5
    assert not {"BatchNormalization", "Relu", "Clip"} & set(operators)
