"""The runtime that times networks on a GPU, here on the processor's twin, too."""

from __future__ import annotations

import gc
import logging
import weakref

import pytest
import torch
from torch import Tensor, nn
from twin import Graph, twin

from amc.compute import Compute
from amc.device import cuda
from amc.device.cuda import TorchCuda, TorchCudaHalf
from amc.errors import UserError

IMAGES = torch.randn(4, 3, 8, 8)


def runtime_on(compute: Compute, kind: type[TorchCuda] = TorchCuda) -> TorchCuda:
    return type("OnTwin", (kind,), {"kind": compute.device.type})()


class Net(nn.Module):
    """Remembers what it has computed last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return self.conv(x)


@pytest.mark.parametrize("kind", [TorchCuda, TorchCudaHalf])
def test_a_network_is_timed_as_a_graph(elsewhere: Compute, kind: type[TorchCuda]) -> None:
    run = runtime_on(elsewhere, kind).prepare(nn.Conv2d(3, 5, 3), IMAGES)
    times = [run() for _ in range(5)]
    assert all(0 < one < 1e4 for one in times)
    assert torch.backends.cudnn.benchmark is False


def test_a_graph_holds_as_many_calls_as_take_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[Graph] = []

    class Counted(Graph):
        def __init__(self) -> None:
            super().__init__()
            graphs.append(self)

    with twin():
        monkeypatch.setattr(torch.get_device_module("twin"), "CUDAGraph", Counted, raising=False)
        monkeypatch.setattr(cuda, "BLOCK_MS", 1e9)
        monkeypatch.setattr(cuda, "MOST", 7)
        runtime_on(Compute.of("twin")).prepare(nn.Conv2d(3, 5, 3), IMAGES)
    one, block = (len(graph.steps) for graph in graphs)
    assert one >= 1 and block == 7 * one


def test_what_is_timed_has_its_precision_and_layout(elsewhere: Compute) -> None:
    for kind, dtype, layout in (
        (TorchCuda, torch.float32, torch.contiguous_format),
        (TorchCudaHalf, torch.float16, torch.channels_last),
    ):
        runtime, seen = runtime_on(elsewhere, kind), list[Tensor]()
        model = Net()
        model.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0]))
        runtime.prepare(model, IMAGES)
        assert seen[0].dtype == dtype and seen[0].is_contiguous(memory_format=layout)
        assert seen[0].device == elsewhere.device and len(seen[0]) == 4
        assert model.conv.weight.device.type == "cpu" and model.conv.weight.dtype == torch.float32


def test_what_a_graph_reads_is_not_freed(elsewhere: Compute) -> None:
    model, seen = nn.Conv2d(3, 5, 3), list[weakref.ref[nn.Module]]()
    model.register_forward_pre_hook(
        lambda module, inputs, seen=seen: seen.append(weakref.ref(module))
    )
    run = runtime_on(elsewhere).prepare(model, IMAGES)
    gc.collect()
    assert seen[-1]() is not None and run() > 0


def test_a_forward_that_asks_for_a_value_is_timed_without_a_graph(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Asks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (2 if float(x.sum()) > 0 else 3)

    with twin(), caplog.at_level(logging.WARNING):
        assert runtime_on(Compute.of("twin")).prepare(Asks(), IMAGES)() > 0
    assert "the launch of its operations is timed too" in caplog.text


def test_what_does_not_run_is_refused(elsewhere: Compute) -> None:
    with pytest.raises(UserError, match=f"does not run on {elsewhere.name}"):
        runtime_on(elsewhere).prepare(nn.Conv2d(4, 5, 3), IMAGES)
