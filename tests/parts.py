"""Small networks, each with one thing in it that is cut with the channels around it: normalisations
across channels, tensors that hold a value a channel, heads, parts that stay equal, shuffled pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHAPE = (3, 16, 16)


class Plain(nn.Module):
    """Convolutions with something between each two."""

    def __init__(self, *between: nn.Module, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.between = nn.ModuleList(between)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in between)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for between, conv in zip(self.between, self.convs, strict=True):
            x = conv(F.relu(between(x)))
        return self.head(F.relu(x).mean((2, 3)))


class Tokens(nn.Module):
    """Patches, a class token, positions, blocks, and a normalisation before the head."""

    def __init__(self, width: int, norm: Callable[[int], nn.Module], *blocks: nn.Module) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.3 * torch.randn(1, 17, width))
        self.blocks, self.norm = nn.Sequential(*blocks), norm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class Block(nn.Module):
    """Attention and a perceptron before which is a normalisation, with a scale behind each."""

    def __init__(self, width: int, norm: Callable[[int], nn.Module], attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = norm(width), attention, norm(width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.scale = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.scale * self.narrow(F.gelu(self.wide(self.norm2(x))))


class FusedHeads(nn.Module):
    """One projection inwards; the numbers of heads and of channels are attributes; a bias table
    holds a column a head.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = heads, width // heads, width
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.table = nn.Parameter(torch.randn(17, heads))

    def forward(self, x: Tensor) -> Tensor:
        images, places, _ = x.shape
        qkv = self.qkv(x).reshape(images, places, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table.T[None, :, None]
        y = (q @ k.transpose(-1, -2) * self.head_dim**-0.5 + bias).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(images, places, self.attn_dim))


class SeparateHeads(nn.Module):
    """Three projections inwards, attention by hand."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size = heads, width // heads
        self.all_head_size = width
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.dense = nn.Linear(width, width), nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        each = self.num_attention_heads, self.attention_head_size
        return x.view(*x.shape[:2], *each).permute(0, 2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        weights = (q @ k.transpose(-1, -2) / self.attention_head_size**0.5).softmax(-1)
        y = (weights @ v).permute(0, 2, 1, 3).contiguous()
        return self.dense(y.view(*y.shape[:2], self.all_head_size))


class ByInputWidth(nn.Module):
    """The width of a head is taken from that of the input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        images, places, width = x.shape
        each = width // self.num_heads
        qkv = self.qkv(x).reshape(images, places, 3, self.num_heads, each).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        weights = (q @ k.transpose(-2, -1) * each**-0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(images, places, width))


class Whole(nn.Module):
    """``nn.MultiheadAttention`` on its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.inside = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x, x, x, need_weights=False)[0]


class Either(nn.Module):
    """A LayerNorm for channels that are first or last, as ConvNeXt's authors wrote it."""

    def __init__(self, width: int, first: bool = False) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(width)), nn.Parameter(torch.randn(width))
        self.eps, self.first, self.normalized_shape = 1e-6, first, (width,)

    def forward(self, x: Tensor) -> Tensor:
        if not self.first:
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        mean = x.mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt((x - mean).square().mean(1, keepdim=True) + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class Response(nn.Module):
    """Global response normalisation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(1, 1, 1, width))
        self.beta = nn.Parameter(torch.randn(1, 1, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        norms = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        return self.gamma * (x * norms / (norms.mean(-1, keepdim=True) + 1e-6)) + self.beta + x


class ConvNeXt(nn.Module):
    """Its stem, two blocks, and its head."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 4, 4), Either(width, first=True)
        self.blocks = nn.Sequential(ConvNeXtBlock(width), ConvNeXtBlock(width))
        self.last, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.blocks(self.norm(self.stem(x))).mean((2, 3))))


class ConvNeXtBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm, self.response = Either(width), Response(4 * width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.narrow(self.response(F.gelu(self.wide(y))))
        return x + y.permute(0, 3, 1, 2)


class FrozenByHand(nn.Module):
    """A BatchNorm whose statistics and weights are buffers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ("weight", "running_var"):
            self.register_buffer(name, torch.rand(width) + 0.5)
        for name in ("bias", "running_mean"):
            self.register_buffer(name, torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


class Bottleneck(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(width, width, 3, padding=1)
        self.two = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.silu(self.two(F.silu(self.one(x))))


class Split(nn.Module):
    """C2f: half of the channels pass by two bottlenecks, and everything is joined."""

    def __init__(self, width: int, by_number: bool) -> None:
        super().__init__()
        self.c, self.by_number = width // 2, by_number
        self.inward, self.outward = nn.Conv2d(width, width, 1), nn.Conv2d(2 * width, width, 1)
        self.inside = nn.ModuleList(Bottleneck(self.c) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x)
        parts = list(x.split((self.c, self.c), 1) if self.by_number else x.chunk(2, 1))
        for bottleneck in self.inside:
            parts.append(bottleneck(parts[-1]))
        return self.outward(torch.cat(parts, 1))


class Scales(nn.Module):
    """Res2Net: four parts of an output, each added to what became of the one before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width // 4
        self.inward, self.outward = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        convs = (nn.Conv2d(self.width, self.width, 3, padding=1) for _ in range(3))
        self.convs = nn.ModuleList(convs)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(F.relu(self.inward(x)), self.width, 1)
        outputs: list[Tensor] = []
        for conv, part in zip(self.convs, parts, strict=False):
            outputs.append(F.relu(conv(part + outputs[-1] if outputs else part)))
        return x + self.outward(torch.cat([*outputs, parts[3]], 1))


class Pixels(nn.Module):
    """Pixels become channels, and channels pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(12, 32, 3, padding=1)
        self.shuffle, self.second = nn.PixelShuffle(2), nn.Conv2d(8, 8, 3, padding=1)
        self.third, self.head = nn.Conv2d(32, 12, 3, padding=1), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(self.shuffle(F.relu(self.first(F.pixel_unshuffle(x, 2))))))
        return self.head(F.relu(self.third(F.pixel_unshuffle(x, 2))).mean((2, 3)))


def group_norm(groups: int, width: int = 16) -> nn.Module:
    return nn.GroupNorm(groups, width)


def attention(kind: Callable[[int, int], nn.Module]) -> nn.Module:
    return Tokens(16, nn.LayerNorm, Block(16, nn.LayerNorm, kind(16, 4)))


PARTS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "group norm": (
        lambda: Plain(group_norm(8), group_norm(2), group_norm(1)),
        {"stem", "convs.0", "convs.1", "convs.2"},
    ),
    "instance norm": (
        lambda: Plain(nn.InstanceNorm2d(16), nn.InstanceNorm2d(16, affine=True), nn.PReLU(16)),
        {"stem", "convs.0", "convs.1", "convs.2"},
    ),
    "frozen by hand": (lambda: Plain(FrozenByHand(16)), {"stem", "convs.0"}),
    "rms norm": (
        lambda: Tokens(12, nn.RMSNorm, Block(12, nn.RMSNorm, nn.Identity())),
        {"patches", "blocks.0.wide"},
    ),
    "fused heads": (
        lambda: attention(FusedHeads),
        {"patches", "blocks.0.attention.qkv", "blocks.0.wide"},
    ),
    "separate heads": (
        lambda: attention(SeparateHeads),
        {"patches", "blocks.0.attention.query", "blocks.0.wide"},
    ),
    "heads by input": (
        lambda: attention(ByInputWidth),
        {"patches", "blocks.0.attention.qkv", "blocks.0.wide"},
    ),
    "multi-head": (
        lambda: attention(Whole),
        {"patches", "blocks.0.attention.inside.q_proj", "blocks.0.wide"},
    ),
    "convnext": (ConvNeXt, {"stem", "blocks.0.wide", "blocks.1.wide"}),
    "split by number": (
        lambda: Plain(Split(16, by_number=True)),
        {"stem", "convs.0", "between.0.inward", "between.0.outward"}
        | {f"between.0.inside.{n}.one" for n in range(2)},
    ),
    "split in two": (
        lambda: Plain(Split(16, by_number=False)),
        {"stem", "convs.0", "between.0.inward", "between.0.outward"}
        | {f"between.0.inside.{n}.one" for n in range(2)},
    ),
    "scales": (
        lambda: Plain(Scales(16)),
        {"stem", "convs.0", "between.0.inward", "between.0.convs.2"},
    ),
    "pixels": (lambda: nn.Sequential(nn.Identity(), Pixels()), {"1.first", "1.second", "1.third"}),
}


def part(name: str) -> nn.Module:
    """One of them, no two channels of which are alike."""
    torch.manual_seed(0)
    model = PARTS[name][0]()
    for parameter in model.parameters():
        if parameter.dim() == 1 and bool((parameter == parameter[0]).all()):
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval()
