"""Run a network over many images as fast as this machine allows, without changing what it computes.

BatchNorms are folded into the layers they follow, activations and sums are computed inside the
convolutions before them, memory is channels-last, and bf16 is used where the processor has units
for it and the accuracy of the untouched network agrees with fp32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from amc.evaluate.data import Dataset
from amc.evaluate.fusion import fused
from amc.evaluate.images import Images
from amc.evaluate.rewards import Score
from amc.network.layers import IntArray, evaluating, example_input
from amc.network.trace import Network
from amc.surgery.cut import replace_module
from amc.surgery.factor import last_part

Precision = Literal["auto", "fp32", "bf16"]
AGREEMENT = 0.002  # the accuracy by which bf16 may differ from fp32


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Some images of a dataset, to measure on."""

    dataset: Dataset
    pixels: Tensor  # uint8 (n, C, H, W)
    labels: Tensor  # int64 (n,)

    @classmethod
    def of(cls, dataset: Dataset, images: Images, indices: IntArray) -> ImageSet:
        return cls(dataset, images.fetch(indices), torch.from_numpy(images.labels[indices]))

    def __getitem__(self, chosen: slice | Tensor) -> ImageSet:
        return ImageSet(self.dataset, self.pixels[chosen], self.labels[chosen])

    def batches(self, size: int) -> Iterator[Tensor]:
        """Normalised float32 batches (size, C, H, W)."""
        for pixels in self.pixels.split(size):
            yield self.dataset.normalise(pixels)

    @property
    def normalised(self) -> Tensor:
        return self.dataset.normalise(self.pixels)


def has_bf16_units() -> bool:
    """Whether this processor has matrix units for bf16 (AMX).

    AVX-512's bf16 alone does not count: small convolutions were slower with it than in fp32.
    """
    return bool(torch.cpu._is_amx_tile_supported())


def fuses_bf16() -> bool:
    """Whether oneDNN computes bf16 convolutions on this processor; without AVX-512 it refuses."""
    known = torch.backends.mkldnn.is_available()
    return known and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def prepared(model: nn.Module, network: Network, bf16: bool) -> nn.Module:
    """A copy for inference only: BatchNorms folded away, convolutions fused with what follows them,
    channels last, and bf16 if asked.

    Args:
        model: ``network``'s own module, or what a strategy has made of it.
        network: the untouched network.
        bf16: whether to compute in bf16.
    """
    fast = copy.deepcopy(model).eval()
    modules = dict(fast.named_modules())
    for name, norm in network.table.folds:
        layer = last_part(modules, name)
        first, second = modules.get(layer), modules.get(norm)
        if not isinstance(second, nn.modules.batchnorm._BatchNorm):
            continue
        if isinstance(first, nn.Conv2d):
            replace_module(fast, layer, fuse_conv_bn_eval(first, second))
        elif isinstance(first, nn.Linear):
            replace_module(fast, layer, fuse_linear_bn_eval(first, second))
        else:
            continue
        replace_module(fast, norm, nn.Identity())
    fast = fast.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if not bf16 or fuses_bf16():
        example = example_input(fast, network.input_shape, batch=2)
        fast = fused(fast, example.contiguous(memory_format=torch.channels_last))
    return fast.to(torch.bfloat16) if bf16 else fast


def logits(
    model: nn.Module,
    images: ImageSet,
    size: int,
    bf16: bool,
    on_batch: Callable[[int, int], None] | None = None,
) -> Tensor:
    """The network's outputs, float32 (n, classes)."""
    outputs = []
    dtype = torch.bfloat16 if bf16 else torch.float32
    with evaluating(model):
        for number, batch in enumerate(images.batches(size)):
            ready = batch.to(dtype=dtype, memory_format=torch.channels_last)
            outputs.append(model(ready).float())
            if on_batch is not None:
                on_batch(min((number + 1) * size, len(images.labels)), len(images.labels))
    return torch.cat(outputs)


def per_image(outputs: Tensor, labels: Tensor, reference: Tensor | None = None) -> Tensor:
    """Correct (0 or 1), cross-entropy, and KL from the original network's outputs (0 without them),
    of each image: float64 (n, 3).
    """
    ours = outputs.double().log_softmax(1)
    divergence = torch.zeros(len(labels), dtype=torch.float64)
    if reference is not None:
        theirs = reference.double().log_softmax(1)
        divergence = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(1)
    correct = (outputs.argmax(1) == labels).double()
    return torch.stack([correct, F.nll_loss(ours, labels, reduction="none"), divergence], dim=1)


def score(outputs: Tensor, labels: Tensor, reference: Tensor | None = None) -> Score:
    """The means of `per_image`."""
    return mean_score(per_image(outputs, labels, reference))


def mean_score(values: Tensor) -> Score:
    """The score of some images, from `per_image` (n, 3)."""
    return Score(*values.mean(0).tolist())
