"""What a kind of layer is checked on: a layer that it gives, and small networks around it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amc.errors import first_line
from amc.network.copying import copied, private_copy
from amc.network.kinds import Kind, adopt
from amc.network.kinds.convolution import CONVOLUTIONS
from amc.network.layers import evaluating, example_input
from amc.network.measured import Cut, cut_alone, half_cuts
from amc.network.trace import Network

IMAGES = 4


@dataclass(frozen=True)
class Example:
    """A layer of the kind, and inputs (IMAGES, ...) of it."""

    kind: Kind
    layer: nn.Module
    x: Tensor

    @classmethod
    def of(cls, kind: Kind) -> Example:
        """A copy of the kind's own example, its parameters a little different, so that no two
        channels are alike.
        """
        layer, shape = kind.example()
        own = private_copy(layer, "example")
        holder = adopt(nn.Sequential(own), [kind])
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in holder.parameters():
                noise = torch.randn(parameter.shape, generator=generator, device="cpu")
                parameter.add_(0.1 * noise)
        return cls(kind, own, example_input(holder, tuple(shape), batch=IMAGES))

    def run(self, layer: nn.Module, x: Tensor) -> Tensor:
        with evaluating(layer):
            output = layer(x.clone())
        assert isinstance(output, Tensor), f"its output is a {type(output).__name__}, no tensor"
        return output

    @property
    def dim(self) -> int:
        """Where the channels are: 1, or the last."""
        return self.kind.dim(self.layer) % self.x.dim()

    def cuts(self) -> Iterator[Cut]:
        """Some that its links and ties allow."""
        yield from (cut for cut in half_cuts(self.kind, self.layer)[1:] if any(cut))

    def smaller(self, gone: Cut) -> tuple[nn.Module, Tensor]:
        """A smaller copy of the layer, and inputs for it."""
        try:
            return cut_alone(self.layer, self.x, gone)
        except ValueError as error:
            raise AssertionError(
                f"it cannot lose {told(gone)}, which `links` and `ties` allow: {first_line(error)}"
            ) from error


def told(gone: Cut) -> str:
    """Of channels that go, for people."""
    return f"the inputs {gone[0]} and the outputs {gone[1]}"


def networks_around(example: Example) -> list[Network]:
    """Small random networks with the layer between two others, before the head, and twice in a
    sum.
    """
    torch.manual_seed(0)
    x = example.x
    width, spread = example.kind.widths(example.layer)
    last = example.dim == x.dim() - 1
    places = tuple(x.shape[1:-1]) if last else tuple(x.shape[2:])
    shape = (*places, 5) if last else (5, *places)
    after = example.run(example.layer, x)

    def mixing(ins: int, outs: int) -> nn.Module:
        if last:
            return nn.Linear(ins, outs)
        return CONVOLUTIONS[len(places) - 1](ins, outs, 3, padding=1)

    def head(outs: int) -> list[nn.Module]:
        count = after[0].numel() // spread * outs
        return [nn.ReLU(), nn.Flatten(), nn.Linear(count, 4)]

    def layer() -> nn.Module:
        return copied(example.layer)

    between = [mixing(5, width), nn.ReLU(), layer(), nn.ReLU(), mixing(spread, 6), *head(6)]
    before = [mixing(5, width), nn.ReLU(), layer(), *head(spread)]
    twice = [mixing(5, width), nn.ReLU(), _Sum(layer(), layer()), *head(spread)]
    found = {"between two layers": between, "before the head": before, "twice in a sum": twice}
    return [
        Network.of(nn.Sequential(*parts), shape, name, [example.kind])
        for name, parts in found.items()
    ]


class _Sum(nn.Module):
    """Two layers of one input, added."""

    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.one, self.other = one, other

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.one(x) + self.other(x)
        return result
