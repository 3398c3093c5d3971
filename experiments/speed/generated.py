"""Networks and images that are nobody's: for machines without ImageNet, and for time only."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from amc.data.datasets import Dataset
from amc.evaluate.measure import ImageSet
from amc.network.layers import evaluating
from amc.network.models import build_model
from amc.network.trace import Network
from amc.repair.independent import reestimate_batchnorm
from amc.repair.regression import ridge_solve

CALIBRATION = 640  # random images for repair; CIFAR-10 has ten rows an image


def random_images(name: str, count: int) -> tuple[Network, ImageSet, torch.Tensor]:
    """The network of `generated`, its images, and those for repair, normalised."""
    model, dataset = generated(name, count)
    every = np.arange(len(dataset.train.labels))
    seen = ImageSet.of(dataset, dataset.train, every[count:])
    network = Network.of(model, dataset.input_shape, name)
    return network, ImageSet.of(dataset, dataset.train, every[:count]), seen.normalised


def generated(
    name: str, count: int, calibration: int = CALIBRATION, branches: float | None = None
) -> tuple[nn.Module, Dataset]:
    """A network with random weights and smooth random images of ten kinds.

    Channels come in groups of eight that are nearly alike, so that there is something to prune; the
    BatchNorm statistics are those of the images; the last layer is fitted to tell the kinds apart
    (ridge regression on other images), so that accuracy means something.

    Args:
        name: of the network.
        count: images to measure on, the first of the training images.
        calibration: the others.
        branches: scale of the branches of a ResNet with bottlenecks: where it is small, as in
            trained ones, rounding does not grow with depth.
    """
    array, labels = images(count + calibration, 224)
    dataset = Dataset.from_arrays("random", array, labels, array[:1], labels[:1])
    seen = ImageSet.of(dataset, dataset.train, np.arange(count, len(array)))
    few = seen.normalised
    torch.manual_seed(0)
    model = build_model(name, 10, 3, False)
    _repeat_channels(model)
    for layer, module in model.named_modules():
        if branches is not None and layer.endswith("bn3"):
            nn.init.constant_(module.weight, branches)
    reestimate_batchnorm(model, few, 64)
    _fit_classifier(model, few, seen.labels)
    return model.eval(), dataset


def images(count: int, size: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Smooth random images (count, size, size, 3) of ten kinds, and which."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.rand(10, 3, 1, 1, generator=generator)  # a colour each
    labels = torch.randint(10, (count,), generator=generator)
    pixels = []
    for part in labels.split(64):
        noise = torch.rand(len(part), 3, size // 16, size // 16, generator=generator)
        coarse = 0.7 * kinds[part] + 0.3 * noise
        smooth = nn.functional.interpolate(coarse, size, mode="bilinear")
        pixels.append((255 * smooth).byte().permute(0, 2, 3, 1))
    return torch.cat(pixels).numpy(), labels.numpy()


def _repeat_channels(model: nn.Module, group: int = 8, noise: float = 0.1) -> None:
    """Make the output channels of every convolution alike in groups, up to noise, in place."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and module.out_channels % group == 0:
                weight = module.weight[::group].repeat_interleave(group, dim=0)
                module.weight.copy_(weight + noise * weight.std() * torch.randn_like(weight))


def _fit_classifier(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Solve the last linear layer, in place."""
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    rows: list[torch.Tensor] = []
    handle = last.register_forward_pre_hook(lambda module, inputs: rows.append(inputs[0]))
    with evaluating(model):
        for batch in images.split(8):
            model(batch)
    handle.remove()
    x = torch.cat(rows)
    wanted = nn.functional.one_hot(labels, 10).double() - 0.1
    mean = x.mean(0)
    solution = ridge_solve((x - mean).T @ (x - mean), (x - mean).T.double() @ wanted, 1e-2).float()
    with torch.no_grad():
        last.weight.copy_(solution.T)
        last.bias.copy_(-mean @ solution)
