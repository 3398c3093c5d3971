"""`check_kind` lets right kinds pass, and names the promise that a wrong one breaks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from own_kinds import KINDS, Gated, GatedKind, LastConvKind, PairedKind, SwappedKind
from torch import Tensor, nn

from amc.errors import UserError
from amc.network.kinds import Kind, cut_part
from amc.testing_kinds import check_kind


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


def test_a_kind_of_an_unknown_name_is_refused() -> None:
    class Gates(GatedKind):
        name = "gated"

    with pytest.raises(UserError, match=r"unknown name of the kind 'Gates', 'gated'.*channelwise"):
        check_kind(Gates)


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
