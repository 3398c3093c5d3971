"""The layer table."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ptflops import get_model_complexity_info
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from zoo import ZOO, zoo_network

from amc.errors import UserError
from amc.network.layers import Activations, example_input
from amc.network.trace import Network, trace


@pytest.mark.parametrize("name", ZOO)
def test_macs_and_params_agree_with_torch(name: str) -> None:
    network = zoo_network(name)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network.model(example_input(network.model, network.input_shape))
    assert network.table.macs == counter.get_total_flops() // 2  # 1 MAC = 2 FLOPs
    assert network.table.params == sum(p.numel() for p in network.model.parameters())


@pytest.mark.parametrize("name", ["resnet20", "tv_mobilenet_v2"])
def test_macs_agree_with_ptflops(name: str) -> None:
    network = zoo_network(name)
    macs, _ = get_model_complexity_info(
        network.model,
        network.input_shape,
        as_strings=False,
        print_per_layer_stat=False,
        verbose=False,
        backend="pytorch",
        ignore_modules=[nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.AdaptiveAvgPool2d],
    )
    assert network.table.macs == pytest.approx(macs, rel=0.01)  # it counts biases and functions too


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        return x + torch.relu(self.two(x))


def test_peak_of_live_activations_by_hand() -> None:
    table = trace(Residual(), (3, 10, 10))
    # image 300, one 800, two 800, relu 800, sum 800 values of 4 bytes; at the ReLU: one, two,
    # relu; at the sum: one, relu, sum
    assert table.activations.peak_bytes() == 4 * (800 + 800 + 800)


def test_in_place_operations_share_a_buffer() -> None:
    outer = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(inplace=False), nn.Conv2d(8, 4, 1))
    inner = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 1))
    assert trace(outer, (3, 10, 10)).activations.peak_bytes() == 4 * (800 + 800)
    assert trace(inner, (3, 10, 10)).activations.peak_bytes() == 4 * (800 + 400)


def test_no_activations_no_peak() -> None:
    empty = np.zeros(0, dtype=np.int64)
    assert Activations(empty, empty, empty).peak_bytes() == 0


def test_layer_facts() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 8, (3, 5), (2, 1), (1, 2), dilation=(1, 1), groups=2),
        nn.BatchNorm2d(8),
        nn.Flatten(),
        nn.Linear(640, 7),
    )
    conv, norm, linear = trace(model, (4, 16, 10))
    assert (conv.kernel, conv.stride, conv.groups) == ((3, 5), (2, 1), 2)
    assert (conv.input_size, conv.output_size) == ((16, 10), (8, 10))
    assert conv.macs == 80 * 8 * 2 * 15 and conv.params == 8 * 2 * 15 + 8
    assert norm.kind == "channelwise" and norm.params == 16 and norm.macs == 0
    assert linear.macs == 4480 and linear.params == 4487


def test_hooks_and_modes_are_restored() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    model[1].eval()
    trace(model, (3, 8, 8))
    assert [module.training for module in model] == [True, False, True]
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(UserError):
        trace(model, (5, 8, 8))
    assert [module.training for module in model] == [True, False, True]
    assert not any(module._forward_hooks for module in model.modules())


def test_a_shared_layer_costs_macs_twice_and_params_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(torch.relu(self.conv(x)))

    table = trace(Twice(), (4, 8, 8))
    assert [layer.name for layer in table] == ["conv", "conv@2"]
    assert table.macs == 2 * 64 * 144 and table.params == 144


def test_networks_that_cannot_run_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="'mine' does not run on an input of shape"):
        Network.of(nn.Conv2d(3, 4, 3), (1, 8, 8), "mine")
    with pytest.raises(UserError, match="nothing to decide"):
        Network.of(nn.Sequential(nn.ReLU()), (3, 8, 8))
