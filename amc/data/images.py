"""Labelled images: in memory, in files, or behind a user's DataLoader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from amc.errors import UserError
from amc.network.layers import IntArray
from amc.network.torchvision_compat import torchvision


class Images(Protocol):
    """Labelled images that can be fetched by index."""

    labels: IntArray

    def fetch(self, indices: IntArray) -> Tensor:
        """uint8 (n, C, H, W); or float32, already normalised."""


class ArrayImages:
    """Images in memory: uint8 (N, H, W, C) and labels (N,)."""

    def __init__(self, pixels: NDArray[np.uint8], labels: NDArray[np.generic]) -> None:
        self.pixels, self.labels = pixels, labels.astype(np.int64).reshape(-1)

    def fetch(self, indices: IntArray) -> Tensor:
        return torch.from_numpy(self.pixels[indices]).permute(0, 3, 1, 2).contiguous()


class FolderImages:
    """Images in files, a folder a class: resized so that the short side is 8/7 of ``size``, then
    cut from the centre.
    """

    def __init__(self, root: Path, size: int) -> None:
        folder = torchvision.datasets.ImageFolder(str(root))
        self.paths = [path for path, _ in folder.samples]
        self.labels = np.array([label for _, label in folder.samples], dtype=np.int64)
        self.classes = len(folder.classes)
        self._load = folder.loader
        transforms = torchvision.transforms
        self._shape = transforms.Compose(
            [transforms.Resize(size * 8 // 7), transforms.CenterCrop(size)]
        )

    def fetch(self, indices: IntArray) -> Tensor:
        def read(index: int) -> NDArray[np.uint8]:
            return np.asarray(self._shape(self._load(self.paths[index])))

        with ThreadPoolExecutor() as readers:  # decoding lets other threads run
            pixels = list(readers.map(read, indices.tolist()))
        return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()


class LoaderImages:
    """The images of a user's ``DataLoader``, as it gives them: one after another in the order of
    its dataset, whatever its own order and batches are.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._dataset, self._collate = loader.dataset, loader.collate_fn
        self._workers = loader.num_workers
        try:
            count = len(self._dataset)  # type: ignore[arg-type]
        except TypeError:
            raise UserError(
                "the DataLoader's dataset has no length: amc needs one whose images can be asked "
                "for by number"
            ) from None
        labels = [labels for _, labels in self._batches(range(count))]
        self.labels = torch.cat(labels).numpy().astype(np.int64).reshape(-1)

    def fetch(self, indices: IntArray) -> Tensor:
        """float32 (n, C, H, W), as the loader gives it: normalised."""
        return torch.cat([images for images, _ in self._batches(indices.tolist())]).float()

    def _batches(self, indices: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
        batches = [list(indices[start : start + 256]) for start in range(0, len(indices), 256)]
        workers = self._workers if len(batches) > 1 else 0
        ordered = DataLoader(
            self._dataset, batch_sampler=batches, num_workers=workers, collate_fn=self._collate
        )
        yield from ordered
