"""Which networks are tried, on which images: torchvision's classification networks, and one of each
of 40 families of timm. Random weights, made uneven.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amc.network.torchvision_compat import torchvision

import timm  # isort: skip  # after torchvision, which needs help to load beside some torch

CLASSES = 10
SIZES = (32, 64, 96, 128, 160, 192, 224, 240, 256)  # the first that a network runs on is taken

# the smallest of each family
CONVOLUTIONAL = (
    "resnet10t",
    "resnetv2_18",
    "regnetx_002",
    "densenet121",
    "dla46x_c",
    "hrnet_w18_small",
    "ese_vovnet19b_slim_dw",
    "res2net50_14w_8s",
    "resnest14d",
    "rexnet_100",
    "repghostnet_050",
    "repvit_m0_9",
    "ghostnet_050",
    "mobilenetv3_small_050",
    "tinynet_e",
    "fasternet_t0",
    "convnext_atto",
    "skresnet18",
    "nf_regnet_b0",
    "mobileone_s0",
    "starnet_s050",
    "mambaout_femto",
    "hgnetv2_b0",
)
MIXERS = ("mixer_s32_224", "resmlp_12_224", "gmlp_ti16_224", "poolformer_s12", "convmixer_768_32")
WITH_ATTENTION = (
    "edgenext_xx_small",
    "mobilevit_xxs",
    "fastvit_t8",
    "levit_128s",
    "vit_tiny_patch16_224",
    "cait_xxs24_224",
    "crossvit_tiny_240",
    "pit_ti_224",
    "pvt_v2_b0",
    "swin_tiny_patch4_window7_224",
    "tiny_vit_5m_224",
    "xcit_nano_12_p16_224",
)
TIMM = (*CONVOLUTIONAL, *MIXERS, *WITH_ATTENTION)


def names() -> list[str]:
    """``source/network`` of all, the order in which they are tried."""
    theirs = torchvision.models.list_models(module=torchvision.models)
    return [f"torchvision/{name}" for name in theirs] + [f"timm/{name}" for name in TIMM]


def build(name: str) -> nn.Module:
    """A network in eval mode, the same at every call, no two channels of which are alike."""
    torch.manual_seed(0)
    return uneven(unbuilt(name)).eval()


def unbuilt(name: str) -> nn.Module:
    """A network as its maker makes it."""
    source, _, network = name.partition("/")
    if source == "timm":
        return timm.create_model(network, pretrained=False, num_classes=CLASSES)
    slow = {"init_weights": False} if network in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(network, weights=None, num_classes=CLASSES, **slow)


def uneven(model: nn.Module) -> nn.Module:
    """Give every BatchNorm statistics and affine parameters of its own, and every parameter that
    is the same everywhere too: a scale of 1e-6 or a classifier of zeros would hide any fault.
    """
    generator = torch.Generator().manual_seed(1)

    def spread(tensor: Tensor | None, low: float, high: float) -> None:
        if tensor is not None:
            tensor.detach().uniform_(low, high, generator=generator)

    for parameter in model.parameters():
        if parameter.numel() < 2 or bool((parameter != parameter.flatten()[0]).any()):
            continue
        if parameter.numel() > max(parameter.shape):  # weights
            bound = (3 * parameter.shape[0] / parameter.numel()) ** 0.5
            spread(parameter, -bound, bound)
        else:
            spread(parameter, *((0.5, 1.5) if bool((parameter != 0).any()) else (-0.3, 0.3)))
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            spread(module.running_mean, -0.3, 0.3)
            spread(module.running_var, 0.5, 2.0)
            spread(module.weight, 0.5, 1.5)
            spread(module.bias, -0.3, 0.3)
    return model


def smallest_size(model: nn.Module, sizes: tuple[int, ...] = SIZES) -> int:
    """The first size whose images the network runs on, two at a time.

    Raises:
        RuntimeError: it runs on none.
    """
    said = ""
    for size in sizes:
        try:
            with torch.no_grad():
                outputs = model(images(2, size, seed=0))
        except Exception as error:
            said = str(error)
            continue
        if isinstance(outputs, Tensor) and outputs.shape == (2, CLASSES):
            return size
    raise RuntimeError(f"the network runs on images of none of the sizes {sizes}: {said}")


def images(count: int, size: int, seed: int) -> Tensor:
    """Smooth random images, normalised as ImageNet's: noise of every scale, the coarser the
    stronger. Shape (count, 3, size, size).
    """
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(count, 3, size, size)
    for cells in _scales(size):
        noise = torch.randn(count, 3, cells, cells, generator=generator)
        total += F.interpolate(noise, size=(size, size), mode="bicubic") / cells**0.5
    low, high = total.amin((1, 2, 3), keepdim=True), total.amax((1, 2, 3), keepdim=True)
    pixels = (total - low) / (high - low)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (pixels - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)


def _scales(size: int) -> Iterator[int]:
    cells = 2
    while cells <= size:
        yield cells
        cells *= 2
