"""Layers that surgery does not know, and right kinds for them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amc.network.kinds import Kind, cut_part


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
