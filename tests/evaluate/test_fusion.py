"""Fusing convolutions with what follows them changes nothing but the speed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import zoo_network

from amc.evaluate.fusion import FusedConv, fused
from amc.evaluate.prepare import prepared
from amc.network.layers import evaluating, example_input


def convolutions(model: nn.Module) -> int:
    return sum(isinstance(module, FusedConv) for module in model.modules())


class Block(nn.Module):
    """A convolution and what a test does with its output."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.inplace = inplace


class ReadTwice(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return F.relu(y) + y


class Broadcast(Block):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x.mean((2, 3), keepdim=True))


class InputChangedBetween(Block):
    """The sum comes after an operation that overwrites what the convolution has read."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + 1
        y = self.conv(x)
        return y + F.relu(x - 1, inplace=True) + x.mul_(2)


class Branching(Block):
    """Cannot be traced: what it computes depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(x))
        return y if y.sum() > 0 else -y


class Residual(Block):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv(x))


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("resnet20", 19),
        ("tv_mobilenet_v2", 40),
        ("tv_densenet", 20),
        ("tv_efficientnet_b0", 40),
        ("tv_shufflenet_v2", 30),
    ],
)
def test_networks_are_fused_and_give_the_same(name: str, least: int) -> None:
    network = zoo_network(name)
    fast = prepared(network.model, network)
    assert convolutions(fast) >= least
    images = example_input(network.model, network.input_shape, batch=5, seed=1)
    with torch.no_grad():
        got, expected = fast(images), network.model(images)
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    ("build", "count"),
    [(Residual, 1), (ReadTwice, 0), (Broadcast, 0), (InputChangedBetween, None), (Branching, 0)],
)
def test_only_what_may_be_fused_is(build: type[Block], count: int | None) -> None:
    model = build().eval()
    x = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    fast = fused(model, torch.randn(2, 4, 6, 6))
    with evaluating(model):
        assert torch.allclose(fast(x.clone()), model(x.clone()), atol=1e-5)
    assert count is None or convolutions(fast) == count


def test_a_fusion_that_gives_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: FusedConv, x: Tensor, other: Tensor | None = None) -> Tensor:
        return 1.1 * F.relu(self.conv(x) + (0 if other is None else other))

    monkeypatch.setattr(FusedConv, "forward", wrong)
    model = Residual().eval()
    assert fused(model, torch.randn(2, 4, 6, 6)) is model
