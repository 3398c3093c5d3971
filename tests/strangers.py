"""Small networks built the way people build theirs: each holds one thing that a tool may take for
something else.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

SIZE = 16


class Around(nn.Module):
    """Two convolutions, something in between, and two layers behind it."""

    def __init__(self, middle: nn.Module, width: int = 12, given: int = 12) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, given, 3, padding=1)
        self.middle = middle
        self.second = nn.Conv2d(width, 10, 3, padding=1)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(F.relu(self.first(x)))
        return self.head(F.relu(self.second(x)).mean((2, 3)))


class Do(nn.Module):
    """A function with parts of its own."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class NormAndSwish(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x))


class PadsItself(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias)


class Doubles(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, 2 * self.weight, self.bias)


class Standardises(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        weight = weight - weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return self._conv_forward(x, weight, self.bias)


class HasGains(nn.Conv2d):
    """A parameter more than its type has."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.gain * self.weight, self.bias)


class Attention(nn.Module):
    """Tokens, attention by hand or by PyTorch, and a perceptron."""

    def __init__(self, how: str, width: int = 12) -> None:
        super().__init__()
        self.how = how
        self.norm = nn.LayerNorm(width)
        self.whole = nn.MultiheadAttention(width, 2, batch_first=True) if how == "module" else None
        self.inward = nn.Linear(width, 3 * width) if how != "module" else None
        self.outward = nn.Linear(width, width) if how != "module" else None
        self.position = nn.Parameter(0.1 * torch.randn(1, 16, width))
        self.wide, self.narrow = nn.Linear(width, 30), nn.Linear(30, width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(x, 4).flatten(2).transpose(1, 2) + self.position
        y = self.norm(x)
        if self.whole is not None:
            x = x + self.whole(y, y, y, need_weights=False)[0]
        else:
            q, k, v = self.inward(y).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
            if self.how == "fused":
                y = F.scaled_dot_product_attention(q, k, v)
            else:
                y = (q @ k.transpose(-1, -2) / 2.5).softmax(-1) @ v
            x = x + self.outward(y.transpose(1, 2).flatten(2))
        x = x + self.narrow(F.gelu(self.wide(x)))
        return x.transpose(1, 2).unflatten(2, (4, 4))


def _shared_conv(self: Any, x: Tensor) -> Tensor:
    a = F.relu(self.n1(self.conv(x)))
    return a + F.interpolate(F.relu(self.n2(self.conv(F.avg_pool2d(x, 2)))), scale_factor=2.0)


def _shared_norm(self: Any, x: Tensor) -> Tensor:
    return F.relu(self.norm(self.b(F.relu(self.norm(self.a(x))))))


def _in_windows(self: Any, x: Tensor) -> Tensor:
    """Each 4 x 4 window becomes an image of the batch."""
    n, c, h, w = x.shape
    x = x.unflatten(3, (-1, 4)).unflatten(2, (-1, 4)).permute(0, 2, 4, 3, 5, 1)
    x = self.b(F.relu(self.a(x.reshape(-1, 16, c))))
    x = x.reshape(n, h // 4, w // 4, 4, 4, c).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(n, c, h, w)


def _by_width(self: Any, x: Tensor) -> Tensor:
    x = self.conv(x)
    return F.relu(x) if x.shape[1] % 2 == 0 else torch.tanh(x)


def _spatial_sum(self: Any, x: Tensor) -> Tensor:
    """Every channel is multiplied with one map: work of no layer that shrinks with the channels."""
    x = F.relu(self.conv(x))
    weights = self.map(x).flatten(2).softmax(-1)  # (n, 1, h w)
    return x + (x.flatten(2) @ weights.transpose(1, 2))[..., None]


def strange_forward(model: nn.Module) -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.middle(F.relu(self.first(x)))
        return self.head(F.relu(self.second(x)).amax((2, 3)))

    model.forward = types.MethodType(forward, model)
    return model


def _with_hook(model: Around) -> nn.Module:
    model.middle[0].register_forward_hook(lambda module, inputs, output: 1.5 * output)
    return model


class WithUnused(Around):
    """A head that is for training only."""

    def __init__(self) -> None:
        super().__init__(_conv_norm())
        self.auxiliary = nn.Linear(10, 4)


class Viewed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 10, 3, padding=1)
        self.c, self.d = nn.Linear(10 * 64, 20), nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.b(F.relu(self.a(x)))), 2).view(-1, 640)
        return self.d(F.relu(self.c(x)))


def _conv(kind: type[nn.Conv2d] = nn.Conv2d, size: int = 3, padding: int = 1) -> nn.Conv2d:
    return kind(12, 12, size, padding=padding, bias=False)


def _conv_norm(conv: nn.Module | None = None, norm: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(conv or _conv(), norm or nn.BatchNorm2d(12), nn.ReLU())


def _tied() -> nn.Module:
    a, b = _conv(), _conv()
    b.weight = a.weight
    return nn.Sequential(a, nn.ReLU(), b, nn.ReLU())


def _two_names() -> nn.Module:
    model = Around(_conv_norm())
    model.stem = model.middle[0]
    return model


def _volume(self: Any, x: Tensor) -> Tensor:
    return F.relu(self.conv(x[:, None]).flatten(1, 2))


STRANGERS: dict[str, Callable[[], nn.Module]] = {
    "norm with an activation": lambda: Around(_conv_norm(norm=NormAndSwish(12))),
    "one convolution, two norms": lambda: Around(
        Do(_shared_conv, conv=_conv(), n1=nn.BatchNorm2d(12), n2=nn.BatchNorm2d(12))
    ),
    "one norm, two convolutions": lambda: Around(
        Do(_shared_norm, a=_conv(), b=_conv(), norm=nn.BatchNorm2d(12))
    ),
    "a norm without parameters": lambda: Around(_conv_norm(norm=nn.BatchNorm2d(12, affine=False))),
    "pads itself": lambda: Around(_conv_norm(PadsItself(12, 12, 2, bias=False))),
    "doubles its weights": lambda: Around(_conv_norm(_conv(Doubles))),
    "standardises its weights": lambda: Around(_conv_norm(_conv(Standardises))),
    "has gains": lambda: Around(_conv_norm(_conv(HasGains))),
    "a hook": lambda: _with_hook(Around(_conv_norm())),
    "a forward of the instance": lambda: strange_forward(Around(_conv_norm())),
    "a view": Viewed,
    "parametrised": lambda: Around(_conv_norm(parametrizations.weight_norm(_conv()))),
    "masked": lambda: Around(_conv_norm(prune.l1_unstructured(_conv(), "weight", 0.5))),
    "tied": lambda: Around(_tied()),
    "two names": _two_names,
    "unused": WithUnused,
    "transposed": lambda: Around(nn.ConvTranspose2d(12, 12, 3, padding=1)),
    "one dimension": lambda: Around(
        Do(lambda s, x: s.c(x.flatten(2)).unflatten(2, x.shape[2:]), c=nn.Conv1d(12, 12, 3, 1, 1))
    ),
    "three dimensions": lambda: Around(Do(_volume, conv=nn.Conv3d(1, 2, 3, padding=1)), width=24),
    "functional": lambda: Around(
        Do(
            lambda s, x: F.conv2d(x, s.w, padding=1),
            w=nn.Parameter(0.1 * torch.randn(12, 12, 3, 3)),
        )
    ),
    "functional on a layer's weights": lambda: Around(
        Do(lambda s, x: F.relu(F.conv2d(x, s.c.weight, s.c.bias)), c=nn.Conv2d(12, 12, 1))
    ),
    "gains of channels": lambda: Around(
        Do(lambda s, x: x + s.g * s.conv(x), conv=_conv(), g=nn.Parameter(torch.rand(12, 1, 1)))
    ),
    "recurrent": lambda: Around(
        Do(
            lambda s, x: (
                s.l(x.flatten(2).transpose(1, 2))[0].transpose(1, 2).unflatten(2, (16, 16))
            ),
            l=nn.LSTM(12, 12, batch_first=True),
        )
    ),
    "attention by hand": lambda: Around(Attention("hand")),
    "attention, fused": lambda: Around(Attention("fused")),
    "attention, a module": lambda: Around(Attention("module")),
    "windows": lambda: Around(Do(_in_windows, a=nn.Linear(12, 20), b=nn.Linear(20, 12))),
    "work that shrinks": lambda: Around(Do(_spatial_sum, conv=_conv(), map=nn.Conv2d(12, 1, 1))),
    "depends on its width": lambda: Around(Do(_by_width, conv=_conv())),
    "maps of one pixel": lambda: Around(
        nn.Sequential(nn.AdaptiveAvgPool2d(1), *_conv_norm(_conv(size=1, padding=0)))
    ),
}
"""What is strange -> a network that has it; of (3, 16, 16) images and 4 classes."""


def stranger(name: str) -> nn.Module:
    """One of `STRANGERS`, with uneven BatchNorms, in eval mode."""
    torch.manual_seed(0)
    model = STRANGERS[name]()
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 2.0),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
            ):
                if tensor is not None:
                    tensor.data.uniform_(low, high, generator=generator)
    return model.eval()


def images(count: int, seed: int = 0) -> Tensor:
    """Smooth images (count, 3, 16, 16)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 4, 4, generator=generator)
    fine = 0.3 * torch.randn(count, 3, SIZE, SIZE, generator=generator)
    return F.interpolate(coarse, size=SIZE, mode="bilinear") + fine
