"""Small networks for small images: the CIFAR ResNets, Plain-20, VGG-16 with BatchNorm, and
MobileNet-V1.

ResNets: He et al., CVPR 2016, section 4.2 (option-A shortcuts: zero padding, no parameters).
    VGG-16: Simonyan & Zisserman, ICLR 2015, in its usual CIFAR form (one linear layer).
    MobileNet-V1: Howard et al., arXiv 1704.04861.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class PaddedShortcut(nn.Module):
    """The option-A shortcut: every ``stride``-th position, and zero channels before and after those
    of the input.

    Surgery can cut it (`amc.network.layers.LinkedModule`): what is kept stays in order, so it is a
    padded shortcut again.
    """

    def __init__(self, channels: int, stride: int, before: int, after: int) -> None:
        super().__init__()
        self.channels, self.stride, self.before, self.after = channels, stride, before, after

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))

    def channel_links(self) -> list[tuple[int, int]]:
        return [(channel, self.before + channel) for channel in range(self.channels)]

    def cut(self, remove_in: list[int], remove_out: list[int]) -> None:
        before = sum(channel < self.before for channel in remove_out)
        inner = [c - self.before for c in remove_out if 0 <= c - self.before < self.channels]
        if inner != remove_in:
            raise ValueError(
                "a padded shortcut loses an input channel and its output channel together"
            )
        self.before -= before
        self.after -= len(remove_out) - before - len(inner)
        self.channels -= len(inner)

    def extra_repr(self) -> str:
        return f"{self.channels}, stride={self.stride}, before={self.before}, after={self.after}"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, and a shortcut around them unless ``plain``."""

    def __init__(self, in_channels: int, channels: int, stride: int, plain: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module | None = None if plain else nn.Identity()
        if not plain and (stride != 1 or in_channels != channels):
            missing = channels - in_channels
            self.shortcut = PaddedShortcut(
                in_channels, stride, missing // 2, missing - missing // 2
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out if self.shortcut is None else out + self.shortcut(x))


class CifarResNet(nn.Module):
    """Three stages of ``blocks`` basic blocks with ``width``, twice and four times as many
    channels: depth 6 x blocks + 2.
    """

    def __init__(
        self,
        blocks: int,
        num_classes: int = 10,
        in_channels: int = 3,
        plain: bool = False,
        width: int = 16,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._stage(width, width, blocks, 1, plain)
        self.layer2 = self._stage(width, 2 * width, blocks, 2, plain)
        self.layer3 = self._stage(2 * width, 4 * width, blocks, 2, plain)
        self.linear = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(
        in_channels: int, channels: int, blocks: int, stride: int, plain: bool
    ) -> nn.Sequential:
        first = BasicBlock(in_channels, channels, stride, plain)
        return nn.Sequential(
            first, *(BasicBlock(channels, channels, 1, plain) for _ in range(blocks - 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = F.adaptive_avg_pool2d(out, 1).flatten(1)
        logits: Tensor = self.linear(out)
        return logits


_VGG16 = (
    64,
    64,
    0,
    128,
    128,
    0,
    256,
    256,
    256,
    0,
    512,
    512,
    512,
    0,
    512,
    512,
    512,
    0,
)  # 0 is a 2x2 max pooling


class CifarVGG16(nn.Sequential):
    """VGG-16 with BatchNorm for 32 x 32 images: 13 convolutions and one linear layer."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        features: list[nn.Module] = []
        for channels in _VGG16:
            if channels == 0:
                features.append(nn.MaxPool2d(2))
                continue
            features += [
                nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
            ]
            in_channels = channels
        super().__init__()
        self.features = nn.Sequential(*features)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(512, num_classes)


_MOBILENET_V1 = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)


class MobileNetV1(nn.Sequential):
    """Depthwise-separable convolutions: 13 pairs of a depthwise 3x3 and a pointwise 1x1."""

    def __init__(self, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        layers = [_conv_bn_relu(in_channels, 32, 3, 2)]
        channels = 32
        for out, stride in _MOBILENET_V1:
            layers += [
                _conv_bn_relu(channels, channels, 3, stride, channels),
                _conv_bn_relu(channels, out, 1),
            ]
            channels = out
        self.features = nn.Sequential(*layers)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(channels, num_classes)


def _conv_bn_relu(
    in_channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    convolution = nn.Conv2d(
        in_channels, out, kernel, stride, kernel // 2, groups=groups, bias=False
    )
    return nn.Sequential(convolution, nn.BatchNorm2d(out), nn.ReLU())
