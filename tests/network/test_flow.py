"""Which layer reads what which other layer wrote: exactly what is known, on paper as on metal."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from strangers import Around, Do
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from zoo import zoo_network, zoo_space

from amc.network.builtin import BasicBlock, CifarResNet
from amc.network.trace import Network, trace
from amc.spaces.lowrank import LowRankSpace
from amc.spaces.mixed import MixedSpace

Edges = set[tuple[str, str]]


def edges(model: nn.Module, size: int = 16, channels: int = 3) -> Edges:
    found = trace(model, (channels, size, size)).edges
    assert len(set(found)) == len(found)
    return set(found)


def chain(*names: str) -> Edges:
    return set(pairwise(names))


def test_a_chain() -> None:
    """Through BatchNorm, in-place activations, pooling, views."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.PReLU(8),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(512, 5),
        nn.Hardswish(),
        nn.Linear(5, 2),
    )
    assert edges(model) == chain("0", "3", "8", "10")


@pytest.mark.parametrize("name", ["plain20", "vgg16_bn", "mobilenet_v1"])
def test_a_plain_network_is_a_chain_of_its_layers(name: str) -> None:
    table = zoo_network(name).table
    layers = [spec.name for spec in table if spec.kind in ("conv", "linear")]
    assert table.edges == tuple(pairwise(layers))


@pytest.mark.parametrize("shortcut", ["padded", "projection"])
def test_resnet20(shortcut: str) -> None:
    """Each block reads all that was ever added to what it is given; a projection reads it, too, and
    what is behind it does not.
    """
    model, expected, stream = CifarResNet(3), set(), ["conv1"]
    for name, block in model.named_modules():
        if not isinstance(block, BasicBlock):
            continue
        expected |= {(writer, f"{name}.conv1") for writer in stream}
        expected |= {(f"{name}.conv1", f"{name}.conv2")}
        if shortcut == "projection" and not isinstance(block.shortcut, nn.Identity):
            width, given = block.conv1.weight.shape[:2]
            projection = nn.Conv2d(given, width, 1, block.conv1.stride)
            block.shortcut = nn.Sequential(projection, nn.BatchNorm2d(width))
            expected |= {(writer, f"{name}.shortcut.0") for writer in stream}
            stream = [f"{name}.shortcut.0"]
        stream.append(f"{name}.conv2")
    expected |= {(writer, "linear") for writer in stream}
    assert edges(model, 32) == expected


FIRST_TO_LAST = chain("first", "second", "head")


def conv(given: int = 12, width: int = 12) -> nn.Conv2d:
    return nn.Conv2d(given, width, 3, padding=1)


def into_a_buffer(self: Do, x: Tensor) -> Tensor:
    found = x.new_zeros(len(x), 24, *x.shape[2:])
    found[:, :12] = self.a(x)
    found[:, 12:] = self.b(x)
    return found


def in_place(self: Do, x: Tensor) -> Tensor:
    x += self.a(x)
    return x


BRANCHES = {("first", "middle.a"), ("first", "middle.b"), ("second", "head")}
BOTH = BRANCHES | {("middle.a", "second"), ("middle.b", "second")}
SUM = chain("first", "middle.a", "second", "head") | FIRST_TO_LAST
MIDDLES = {
    "a functional sum": (Do(lambda s, x: torch.add(x, s.a(x)), a=conv()), SUM),
    "a sum in place": (Do(in_place, a=conv()), SUM),
    "a concatenation": (
        Do(lambda s, x: torch.cat([s.a(x), s.b(x)], 1), a=conv(), b=conv()),
        BOTH,
    ),
    "a buffer that is filled": (Do(into_a_buffer, a=conv(), b=conv()), BOTH),
    "a gate": (
        Do(
            lambda s, x: x * torch.sigmoid(s.b(torch.relu(s.a(x.mean((2, 3), keepdim=True))))),
            a=nn.Conv2d(12, 3, 1),
            b=nn.Conv2d(3, 12, 1),
        ),
        chain("first", "middle.a", "middle.b", "second", "head") | FIRST_TO_LAST,
    ),
    "only a shape": (
        Do(lambda s, x: torch.cat([s.b(x), torch.zeros_like(s.a(x))], 1), a=conv(), b=conv()),
        BOTH - {("middle.a", "second")},
    ),
    "an unknown layer": (parametrizations.weight_norm(conv(12, 24)), FIRST_TO_LAST),
    "a layer called twice": (
        Do(lambda s, x: s.a(torch.relu(s.a(x))), a=conv()),
        chain("first", "middle.a", "middle.a@2", "second", "head"),
    ),
}
WIDE = ("a concatenation", "a buffer that is filled", "only a shape", "an unknown layer")


@pytest.mark.parametrize("name", MIDDLES)
def test_what_stands_between_two_layers(name: str) -> None:
    middle, expected = MIDDLES[name]
    assert edges(Around(middle, 24 if name in WIDE else 12)) == expected


def test_attention() -> None:
    """Products of activations pass on both sides."""

    def attend(self: Do, x: Tensor) -> Tensor:
        q, k, v = (part(x.flatten(2).mT) for part in (self.q, self.k, self.v))
        y = self.out(torch.softmax(q @ k.mT, -1) @ v)
        return y.mT.unflatten(2, x.shape[2:])

    parts = {name: nn.Linear(12, 12) for name in ("q", "k", "v", "out")}
    expected = chain("middle.out", "second", "head")
    for name in "qkv":
        expected |= chain("first", f"middle.{name}", "middle.out")
    assert edges(Around(Do(attend, **parts))) == expected


def test_edges_stay_when_channels_go() -> None:
    space = zoo_space("resnet20")
    strategy = space.uniform(0.5)
    edges = trace(space.apply(strategy), (3, 32, 32)).edges
    assert space.resize(strategy).edges == edges == space.network.table.edges


@pytest.mark.parametrize("kind", [LowRankSpace, MixedSpace])
def test_edges_on_paper_are_those_on_metal(kind: type[LowRankSpace | MixedSpace]) -> None:
    """Law 1: also where layers become several."""
    network = Network.of(CifarResNet(1, width=8), (3, 16, 16))
    space = kind(network, {"repair": "none"})
    strategy = space.uniform(0.4)
    table = space.resize(strategy)
    assert len(table.layers) > len(network.table.layers)
    assert set(table.edges) == set(trace(space.apply(strategy), (3, 16, 16)).edges)
