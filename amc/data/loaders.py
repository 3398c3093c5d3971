"""Images behind a user's ``DataLoader``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate, default_convert

from amc.data.labels import class_numbers
from amc.data.samplers import drawn
from amc.errors import UserError, first_line
from amc.network.layers import IntArray
from amc.randomness import own_randomness

LABELS = ("labels", "label", "targets", "target", "y")  # names of them in batches that are dicts
TWICE = 16  # images that are fetched a second time, to see whether they are the same


class LoaderImages:
    """The images of a user's ``DataLoader``, as it gives them: each once, in the order of its
    dataset, whatever its own order and batches are. All are read once when this is made: that finds
    the labels, and what cannot be used.
    """

    def __init__(self, loader: DataLoader[Any], whose: str) -> None:
        """Read the labels, and check the images.

        Args:
            loader: gives batches (images, labels), of which more entries are passed over, or
                dicts with one entry of images and one named `LABELS`. Images are float (C, H, W),
                normalised as the network expects them.
            whose: the images are, for messages.

        Raises:
            UserError: the images cannot be asked for by number, are no such images, differ in size
                or from one time to the next, or the labels are no class numbers.
        """
        count = _length(loader, whose)
        self._whose, self.dataset = whose, loader.dataset
        self._workers, self._init_worker = loader.num_workers, loader.worker_init_fn
        self._context = loader.multiprocessing_context
        self._collate = loader.collate_fn
        if loader.batch_sampler is None:  # batch_size=None: it collates no batches
            self._collate = (
                default_collate
                if loader.collate_fn is default_convert
                else partial(_one_by_one, loader.collate_fn)
            )
        self.indices = drawn(loader, count, whose)
        if not len(self.indices):
            raise UserError(f"{whose} are none: its dataset is empty, or its sampler draws none")
        self.shape: tuple[int, ...] = ()
        with own_randomness(0):
            self.labels, some = self._read_all()
        chosen = self._chosen()
        with own_randomness(1):
            if not torch.equal(self.fetch(chosen), some):
                raise UserError(
                    f"{whose} are not the same when they are fetched again: give a DataLoader "
                    "whose dataset does not augment them (fine-tuning augments by itself)"
                )

    def fetch(self, indices: IntArray) -> Tensor:
        """float32 (n, C, H, W), as the loader gives it: normalised."""
        return torch.cat([images for images, _ in self._batches(self.indices[indices])])

    def _chosen(self) -> IntArray:
        """Images that are fetched twice."""
        last = len(self.indices) - 1
        return np.unique(np.linspace(0, last, min(TWICE, last + 1)).astype(np.int64))

    def _read_all(self) -> tuple[IntArray, Tensor]:
        """All labels, and a few images."""
        labels: list[IntArray] = []
        some: list[Tensor] = []
        place, chosen = 0, self._chosen()
        for images, found in self._batches(self.indices):
            numbers = self.indices[place : place + len(images)]
            self._check(images, numbers)
            labels.append(class_numbers(found, f"the labels of {self._whose}", numbers))
            if len(labels[-1]) != len(images):
                raise UserError(
                    f"{self._whose} come in batches of {len(images)} images with "
                    f"{len(labels[-1])} labels"
                )
            here = chosen[(chosen >= place) & (chosen < place + len(images))] - place
            some.append(images[here].clone())  # else the batch would stay in memory
            place += len(images)
        return np.concatenate(labels), torch.cat(some)

    def _check(self, images: Tensor, numbers: IntArray) -> None:
        self.shape = self.shape or tuple(images.shape[1:])
        if 0 in images.shape[1:]:
            raise UserError(f"{self._whose} are {self.shape}: they have no pixels")
        if images.shape[1:] != self.shape:
            raise UserError(_sizes(self._whose, [self.shape, tuple(images.shape[1:])]))
        if not (finite := images.isfinite().flatten(1).all(1)).all():
            raise UserError(
                f"{self._whose} hold values that are no numbers: NaN or infinity in image "
                f"{numbers[int((~finite).nonzero()[0])]} of the dataset"
            )

    def _batches(self, indices: IntArray) -> Iterator[tuple[Tensor, Any]]:
        """Images and labels, at most 256 at a time."""
        batches = [indices[start : start + 256].tolist() for start in range(0, len(indices), 256)]
        workers = self._workers if len(batches) > 1 else 0
        ordered = DataLoader(
            self.dataset,
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=self._collate,
            worker_init_fn=self._init_worker,
            multiprocessing_context=self._context if workers else None,
            generator=torch.Generator(),  # else it draws from the global state
        )
        batch_of: Iterator[Any] | None = None
        for asked in batches:
            try:
                batch_of = batch_of or iter(ordered)
                batch = next(batch_of)
            except Exception as error:  # the user's code may raise anything
                raise self._explained(asked, error) from error
            images, labels = _images_and_labels(batch, self._whose)
            if len(images) != len(asked):
                raise UserError(
                    f"{self._whose}: its collate_fn makes {len(images)} images of {len(asked)}; "
                    "each image must come once"
                )
            yield images, labels

    def _explained(self, asked: Sequence[int], error: Exception) -> UserError:
        """What was wrong with a batch that could not be made."""
        samples = []
        for number in asked:
            try:
                samples.append(self.dataset[number])
            except Exception as found:
                return UserError(
                    f"{self._whose}: image {number} of the dataset cannot be read "
                    f"({type(found).__name__}: {first_line(found)}): repair it, or leave it out "
                    "with torch.utils.data.Subset"
                )
        parts = [part for sample in samples for part in _parts(sample)]
        if any(hasattr(part, "getbands") for part in parts):
            return UserError(
                f"{self._whose} are PIL images: let the dataset's transform end in torchvision's "
                "ToTensor() and the normalisation that the network expects"
            )
        sizes = {tuple(part.shape) for part in parts if getattr(part, "ndim", 0) == 3}
        if len(sizes) > 1:
            return UserError(_sizes(self._whose, sorted(sizes)[:2]))
        return UserError(
            f"{self._whose} cannot be put into batches ({type(error).__name__}: "
            f"{first_line(error)}): see its dataset and collate_fn"
        )


def _length(loader: DataLoader[Any], whose: str) -> int:
    """The images of a loader's dataset."""
    if not isinstance(loader, DataLoader):
        raise UserError(
            f"{whose} are a {type(loader).__name__}, no DataLoader: give "
            "torch.utils.data.DataLoader(dataset, batch_size=64)"
        )
    try:
        if not isinstance(loader.dataset, IterableDataset):
            return len(loader.dataset)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError, AttributeError):
        pass
    raise UserError(
        f"{whose} are of {type(loader.dataset).__name__}, which is a stream or has no length: amc "
        "asks for images by number, so collect them in a TensorDataset, or give its dataset a "
        "__len__ and a __getitem__"
    )


def _one_by_one(convert: Any, samples: Sequence[Any]) -> Any:
    """A batch of samples that a ``collate_fn`` makes one at a time."""
    return default_collate([convert(sample) for sample in samples])


def _images_and_labels(batch: Any, whose: str) -> tuple[Tensor, Any]:
    """The two of a batch: float32 (n, C, H, W), and labels as they are."""
    if isinstance(batch, Mapping):
        named = {
            key: as_tensor
            for key, value in batch.items()
            if isinstance(as_tensor := _tensor(value), Tensor) and as_tensor.ndim == 4
        }
        keys = [key for key in LABELS if key in batch]
        if len(named) != 1 or len(keys) != 1:
            raise UserError(
                f"{whose} come in dicts with the keys {', '.join(map(str, batch))}: there must be "
                f"one of images (C, H, W) and one of class numbers, named one of "
                f"{', '.join(LABELS)}; a collate_fn can choose them"
            )
        images, labels = next(iter(named.values())), batch[keys[0]]
    elif isinstance(batch, (tuple, list)) and len(batch) > 1:
        images, labels = _tensor(batch[0]), batch[1]
    else:
        raise UserError(
            f"{whose} come in batches of {type(batch).__name__}: (images, labels) were expected; a "
            "collate_fn can make them"
        )
    found = type(images).__name__
    if isinstance(images, Tensor):
        if images.ndim == 4 and images.is_floating_point():
            return images.detach().cpu().float(), labels
        found = f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape[1:])}"
    raise UserError(
        f"{whose} are {found}: the DataLoader must give float images (C, H, W), normalised as the "
        "network expects them, before their labels (uint8 arrays go to Dataset.from_arrays)"
    )


def _tensor(value: Any) -> Any:
    numeric = isinstance(value, np.ndarray) and value.dtype.kind in "biuf"
    return torch.from_numpy(value) if numeric else value


def _parts(sample: Any) -> list[Any]:
    if isinstance(sample, Mapping):
        return list(sample.values())
    return list(sample) if isinstance(sample, (tuple, list)) else [sample]


def _sizes(whose: str, shapes: Sequence[tuple[int, ...]]) -> str:
    return (
        f"{whose} differ in size, such as {' and '.join(map(str, shapes))}: resize or crop them to "
        "one size in the dataset's transform"
    )
