"""Small networks that hold every kind of convolution."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import uneven

from amc.network.layers import example_input
from amc.network.trace import Network
from amc.spaces.channel import ChannelSpace


def signals() -> nn.Module:
    """Of sounds: (2, 40)."""
    return nn.Sequential(
        nn.Conv1d(2, 12, 5, stride=2, padding=2, bias=False),
        nn.BatchNorm1d(12),
        nn.ReLU(),
        nn.Conv1d(12, 12, 3, padding=2, dilation=2, groups=6),
        nn.ReLU(),
        nn.Conv1d(12, 16, 3, padding="same", padding_mode="circular", bias=False),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.ConvTranspose1d(16, 10, 4, stride=2, padding=1, output_padding=1, bias=False),
        nn.BatchNorm1d(10),
        nn.ReLU(),
        nn.Conv1d(10, 8, 3),
        nn.AdaptiveAvgPool1d(2),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


def volumes() -> nn.Module:
    """Of scans: (1, 6, 7, 8)."""
    return nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm3d(8),
        nn.ReLU(),
        nn.Conv3d(8, 12, (1, 2, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
        nn.ReLU(),
        nn.ConvTranspose3d(12, 12, 2, stride=2, groups=4, bias=False),
        nn.BatchNorm3d(12),
        nn.ReLU(),
        nn.Conv3d(12, 6, 1),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )


class UNet(nn.Module):
    """Down, up by transposed convolutions (one of them grouped), with concatenations: (3, 16, 16)
    to a map of 4 channels, as many pixels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = self._block(3, 8)
        self.second = self._block(8, 16)
        self.bottom = self._block(16, 24)
        self.up = nn.ConvTranspose2d(24, 12, 2, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.right = self._block(28, 16)
        self.last_up = nn.ConvTranspose2d(16, 8, 3, 2, 1, output_padding=1, groups=4)
        self.last = self._block(16, 8)
        self.head = nn.Conv2d(8, 4, 1)

    @staticmethod
    def _block(inputs: int, outputs: int) -> nn.Module:
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        one = self.first(x)
        two = self.second(F.max_pool2d(one, 2))
        up = F.relu(self.norm(self.up(self.bottom(F.max_pool2d(two, 2)))))
        up = self.last_up(self.right(torch.cat((two, up), 1)))
        return self.head(self.last(torch.cat((F.relu(up), one), 1)))


class SameConv(nn.Conv2d):
    """Pads as TensorFlow does: as much as the size asks for, more behind than in front."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for size, kernel, step in zip(x.shape[2:], self.kernel_size, self.stride, strict=True):
            total = max((-(-size // step) - 1) * step + kernel - size, 0)
            pads = [total // 2, total - total // 2, *pads]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride)


def padding_itself() -> nn.Module:
    """(3, 15, 14)."""
    return nn.Sequential(
        SameConv(3, 12, 3, stride=2, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        SameConv(12, 16, (2, 3)),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 56, 5),
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "signals": (signals, (2, 40)),
    "volumes": (volumes, (1, 6, 7, 8)),
    "unet": (UNet, (3, 16, 16)),
    "padding itself": (padding_itself, (3, 15, 14)),
}


@cache
def network_of(name: str) -> Network:
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    return Network.of(uneven(build()), shape, name)


def space_of(name: str, repair: str = "none") -> ChannelSpace:
    network = network_of(name)
    images = example_input(network.model, network.input_shape, batch=96, seed=5)
    return ChannelSpace(network, {"repair": repair, "min_ratio": 0.3}, images)
