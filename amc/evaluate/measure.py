"""Run a prepared network over many images, and what its outputs are worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amc.compute import HOST, Compute
from amc.data.datasets import Dataset
from amc.data.images import Images
from amc.evaluate.rewards import Score
from amc.network.layers import IntArray, evaluating

AGREEMENT = 0.002  # the accuracy by which bf16 may differ from fp32


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Some images of a dataset, to measure on: on the compute, where there is room for them."""

    dataset: Dataset
    pixels: Tensor  # uint8 (n, C, H, W)
    labels: Tensor  # int64 (n,), on the host
    compute: Compute = HOST

    @classmethod
    def of(
        cls, dataset: Dataset, images: Images, indices: IntArray, compute: Compute = HOST
    ) -> ImageSet:
        pixels = compute.resident(images.fetch(indices))
        return cls(dataset, pixels, torch.from_numpy(images.labels[indices]), compute)

    def __getitem__(self, chosen: slice | Tensor) -> ImageSet:
        there = chosen if isinstance(chosen, slice) else chosen.to(self.pixels.device)
        return ImageSet(self.dataset, self.pixels[there], self.labels[chosen], self.compute)

    def batches(self, size: int) -> Iterator[Tensor]:
        """Normalised float32 batches (size, C, H, W), on the compute."""
        for pixels in self.pixels.split(size):
            yield self.dataset.normalise(self.compute.put(pixels))

    @property
    def normalised(self) -> Tensor:
        """All as one batch."""
        return self.dataset.normalise(self.compute.put(self.pixels))


def logits(
    model: nn.Module,
    images: ImageSet,
    size: int,
    on_batch: Callable[[int, int], None] | None = None,
) -> Tensor:
    """The network's outputs, float32 (n, classes), on the compute of the images, where it must
    be.
    """
    outputs = []
    with evaluating(model):
        for number, batch in enumerate(images.batches(size)):
            outputs.append(model(batch))
            if on_batch is not None:
                on_batch(min((number + 1) * size, len(images.labels)), len(images.labels))
    return torch.cat(outputs)


def per_image(outputs: Tensor, labels: Tensor, reference: Tensor | None = None) -> Tensor:
    """Correct (0 or 1), cross-entropy, and KL from the original network's outputs (0 without them),
    of each image: float64 (n, 3), on the host. The outputs (n, classes) lie on one compute.
    """
    labels = labels.to(outputs.device)
    ours = outputs.double().log_softmax(1)
    divergence = ours.new_zeros(len(labels))
    if reference is not None:
        theirs = reference.double().log_softmax(1)
        divergence = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(1)
    correct = (outputs.argmax(1) == labels).double()
    entropy = F.nll_loss(ours, labels, reduction="none")
    return torch.stack([correct, entropy, divergence], dim=1).cpu()


def score(outputs: Tensor, labels: Tensor, reference: Tensor | None = None) -> Score:
    """The means of `per_image`."""
    return mean_score(per_image(outputs, labels, reference))


def mean_score(values: Tensor) -> Score:
    """The score of some images, from `per_image` (n, 3)."""
    return Score(*values.mean(0).tolist())
