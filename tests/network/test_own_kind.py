"""A user's own kind of layer: found, counted, cut and masked as ours are; `check_kind` sees what is
wrong with one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from amc.errors import UserError
from amc.network.growth import Growth
from amc.network.kinds import Kind, cut_part, kind_of
from amc.network.layers import LayerSpec, evaluating, example_input
from amc.network.trace import Network, trace
from amc.spaces.channel import ChannelSpace
from amc.testing import same_table
from amc.testing_kinds import check_kind


class Gated(nn.Module):
    """Two matrices (in, out)."""

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(ins, outs) / ins**0.5)
        self.b = nn.Parameter(torch.randn(ins, outs) / ins**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.a) * torch.sigmoid(x @ self.b)


class GatedKind(Kind):
    channel_dim = -1

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, Gated)

    def widths(self, module: Any) -> tuple[int, int]:
        ins, outs = module.a.shape
        return ins, outs

    def cut(self, module: nn.Module, gone_in: list[int], gone_out: list[int]) -> None:
        for name in ("a", "b"):
            cut_part(module, f"{name}:0", gone_in)
            cut_part(module, f"{name}:1", gone_out)

    def weight(self, module: Any) -> Tensor:
        return torch.stack([module.a.T, module.b.T], 2)

    def example(self) -> tuple[nn.Module, tuple[int, ...]]:
        return Gated(12, 20), (12,)


class LastConv(nn.Module):
    """A convolution with weights (height, width, in, out) and a bias, and a fixed sparse mask."""

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(3, 3, ins, outs) / (9 * ins) ** 0.5)
        self.bias = nn.Parameter(torch.randn(outs) / 4)
        self.register_buffer("mask", (torch.rand(3, 3, ins, outs) > 0.3).float())
        self.ins = ins

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.ins
        return F.conv2d(x, (self.kernel * self.mask).permute(3, 2, 0, 1), self.bias, padding=1)


class LastConvKind(Kind):
    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, LastConv)

    def widths(self, module: Any) -> tuple[int, int]:
        return module.ins, len(module.bias)

    def cut(self, module: nn.Module, gone_in: list[int], gone_out: list[int]) -> None:
        for name in ("kernel", "mask"):
            cut_part(module, f"{name}:2", gone_in)
            cut_part(module, f"{name}:3", gone_out)
        cut_part(module, "bias:0", gone_out)
        cut_part(module, ".ins", gone_in)

    def weight(self, module: Any) -> Tensor:
        return (module.kernel * module.mask).permute(3, 2, 0, 1)

    def example(self) -> tuple[nn.Module, tuple[int, ...]]:
        return LastConv(6, 8), (6, 6, 6)


class Swapped(nn.Module):
    """A linear layer with weights (in, out)."""

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(ins, outs) / ins**0.5)
        self.bias = nn.Parameter(torch.randn(outs) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix + self.bias


class SwappedKind(Kind):
    """Its weights are solved for."""

    channel_dim = -1

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, Swapped)

    def widths(self, module: Any) -> tuple[int, int]:
        ins, outs = module.matrix.shape
        return ins, outs

    def cut(self, module: nn.Module, gone_in: list[int], gone_out: list[int]) -> None:
        cut_part(module, "matrix:0", gone_in)
        cut_part(module, "matrix:1", gone_out)
        cut_part(module, "bias:0", gone_out)

    def weight(self, module: Any) -> Tensor:
        return module.matrix.T

    def by_its_weights(self, module: nn.Module, size: tuple[int, ...]) -> bool:
        return True

    def example(self) -> tuple[nn.Module, tuple[int, ...]]:
        return Swapped(12, 12), (5, 12)


class Scale(nn.Module):
    """A normalisation of each channel on its own, channels first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(1, width, 1, 1) + 0.5)
        self.shift = nn.Parameter(torch.randn(width) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return x / (1 + x.abs().amax((2, 3), keepdim=True)) * self.gain + self.shift[:, None, None]


class ScaleKind(Kind):
    name = "channelwise"

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, Scale)

    def widths(self, module: Any) -> tuple[int, int]:
        return len(module.shift), len(module.shift)

    def cut(self, module: nn.Module, gone_in: list[int], gone_out: list[int]) -> None:
        cut_part(module, "gain:1", gone_out)
        cut_part(module, "shift:0", gone_out)

    def example(self) -> tuple[nn.Module, tuple[int, ...]]:
        return Scale(8), (8, 6, 6)


class Paired(nn.Module):
    """A matrix (pairs, 2, 2): channels 2i and 2i + 1 are mixed with each other alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.blocks = nn.Parameter(torch.randn(width // 2, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("npi,pio->npo", x.unflatten(1, (-1, 2)), self.blocks).flatten(1)


class PairedKind(Kind):
    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, Paired)

    def widths(self, module: Any) -> tuple[int, int]:
        return 2 * len(module.blocks), 2 * len(module.blocks)

    def links(self, module: Any) -> list[tuple[int, int]]:
        pairs = range(len(module.blocks))
        return [(2 * p + i, 2 * p + o) for p in pairs for i in (0, 1) for o in (0, 1)]

    def cut(self, module: nn.Module, gone_in: list[int], gone_out: list[int]) -> None:
        if gone_in != gone_out or any(channel ^ 1 not in gone_in for channel in gone_in):
            raise ValueError("it loses whole pairs")
        cut_part(module, "blocks:0", [channel // 2 for channel in gone_in[::2]])

    def example(self) -> tuple[nn.Module, tuple[int, ...]]:
        return Paired(12), (12,)


KINDS: list[type[Kind]] = [GatedKind, LastConvKind, SwappedKind, ScaleKind, PairedKind]


@pytest.mark.parametrize("kind", KINDS)
def test_right_kinds_conform(kind: type[Kind]) -> None:
    done = check_kind(kind)
    assert len(done) > 30 and len(set(done)) == len(done)


# each of these breaks one promise


class MatchesLinear(GatedKind):
    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, Gated | nn.Linear)


class MatchesNothing(GatedKind):
    def matches(self, module: nn.Module) -> bool:
        return False


class NoExample(GatedKind):
    example = Kind.example


class OfLayers(GatedKind):
    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, nn.ModuleList)

    def example(self) -> tuple[nn.Module, tuple[int, ...]]:
        return nn.ModuleList([nn.Linear(3, 3)]), (3,)


class WidthsTurned(GatedKind):
    def widths(self, module: Any) -> tuple[int, int]:
        outs, ins = module.a.shape
        return ins, outs


class Chance(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.randn(self.a.shape[1])


class ByChance(GatedKind):
    def example(self) -> tuple[nn.Module, tuple[int, ...]]:
        return Chance(12, 20), (12,)


class OverTheBatch(GatedKind):
    def example(self) -> tuple[nn.Module, tuple[int, ...]]:
        class Centred(Gated):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x - x.mean(0, keepdim=True))

        return Centred(12, 20), (12,)


class CutsOneMatrix(GatedKind):
    def cut(self, module: nn.Module, gone_in: list[int], gone_out: list[int]) -> None:
        cut_part(module, "a:0", gone_in)
        cut_part(module, "a:1", gone_out)


class CutsNothing(GatedKind):
    def cut(self, module: nn.Module, gone_in: list[int], gone_out: list[int]) -> None: ...


class Refuses(PairedKind):
    def links(self, module: Any) -> list[tuple[int, int]]:
        return [(channel, channel) for channel in range(2 * len(module.blocks))]


class CutsTheWrongOnes(GatedKind):
    def cut(self, module: Any, gone_in: list[int], gone_out: list[int]) -> None:
        outs = module.a.shape[1]
        super().cut(module, gone_in, sorted((channel + 1) % outs for channel in gone_out))


class LinksTooLittle(SwappedKind):
    def links(self, module: Any) -> list[tuple[int, int]]:
        return [(channel, channel) for channel in range(len(module.bias))]


class NothingLinked(GatedKind):
    def mixes(self, module: nn.Module) -> bool:
        return False


class WeightTurned(SwappedKind):
    def weight(self, module: Any) -> Tensor:
        return module.matrix  # a square one: its shape is right


class SolvedWrongly(LastConvKind):
    def by_its_weights(self, module: nn.Module, size: tuple[int, ...]) -> bool:
        return True


class NoView(SwappedKind):
    def weight(self, module: Any) -> Tensor:
        return module.matrix.T.clone()


class Squared(nn.Module):
    """Products of any two inputs, so costs grow with the square of a width."""

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outs, ins, ins) / ins)

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, :, None] * x[:, None]).flatten(1) @ self.weight.flatten(1).T


class GrowsOtherwise(Kind):
    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, Squared)

    def widths(self, module: Any) -> tuple[int, int]:
        outs, ins, _ = module.weight.shape
        return ins, outs

    def cut(self, module: nn.Module, gone_in: list[int], gone_out: list[int]) -> None:
        for side, gone in (("weight:0", gone_out), ("weight:1", gone_in), ("weight:2", gone_in)):
            cut_part(module, side, gone)

    def weight(self, module: Any) -> Tensor:
        return module.weight.diagonal(dim1=1, dim2=2)

    def example(self) -> tuple[nn.Module, tuple[int, ...]]:
        return Squared(12, 20), (12,)


class Complex(nn.Module):
    """It gives two tensors."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class NoTensor(GatedKind):
    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, Complex)

    def example(self) -> tuple[nn.Module, tuple[int, ...]]:
        return Complex(), (12,)


class NamedLinear(GatedKind):
    """Its facts say one matrix."""

    name = "linear"

    def facts(self, module: nn.Module) -> dict[str, Any]:
        return {}


WRONG: list[tuple[type[Kind], str]] = [
    (MatchesLinear, "matches its example.*says yes to a Linear, too"),
    (MatchesNothing, "matches its example.*says no to the layer that `example` gives"),
    (NoExample, "matches its example.*it has no `example`"),
    (OfLayers, "matches its example.*is made of layers"),
    (WidthsTurned, r"`widths` are those.*it says \(20, 12\)"),
    (NoTensor, "`widths` are those.*its output is a tuple"),
    (ByChance, "the same again.*called again"),
    (OverTheBatch, "each image of a batch.*depends on the other images"),
    (CutsOneMatrix, "`cut` gives.*it does not run"),
    (CutsNothing, r"`cut` gives.*`widths` are \(12, 20\), not \(6, 20\)"),
    (Refuses, "`cut` gives.*cannot lose.*it loses whole pairs"),
    (CutsTheWrongOnes, "cut = mask.*the outputs that stay differ"),
    (LinksTooLittle, r"`links` are all.*the inputs \[0\] reach"),
    (NothingLinked, "`links` are all.*neither mixes channels nor links any"),
    (WeightTurned, "`weight` is.*not that of the channels which stay"),
    (SolvedWrongly, "what repair solves for: "),
    (NoView, "what repair solves for.*no view of the parameters"),
    (GrowsOtherwise, "its costs are what PyTorch counts.*do not follow from its widths"),
    (NamedLinear, "its costs are what PyTorch counts.*something else than its type"),
]


@pytest.mark.parametrize(("kind", "sentence"), WRONG)
def test_a_broken_promise_is_named(kind: type[Kind], sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence) as error:
        check_kind(kind)
    assert "\n" not in str(error.value)
