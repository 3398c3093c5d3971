"""Datasets, and where they come from.

Images are kept as uint8 and normalised a batch at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.utils.data import DataLoader

from amc.data.archives import read_arrays
from amc.data.arrays import ArrayImages, as_pixels, normalisation
from amc.data.folders import FolderImages
from amc.data.images import Images
from amc.data.labels import class_numbers
from amc.data.loaders import LoaderImages
from amc.data.places import find_file, find_folder
from amc.data.samplers import in_common
from amc.errors import UserError, unknown
from amc.network.torchvision_compat import torchvision
from amc.randomness import own_randomness

SEEN = 16  # images at once, to see whether they differ
DECODED = "decoded"  # the folder, in that of the data, in which decoded images are kept
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test images, the number of classes, and the normalisation (of pixels in [0, 1],
    a value a channel). What is made has images of two classes at least that are not all of one
    colour, labels below the number of classes, and a normalisation that fits.
    """

    name: str
    train: Images
    test: Images
    classes: int
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for part, labels in (("training", self.train.labels), ("test", self.test.labels)):
            if not len(labels):
                raise UserError(f"{self.name!r} has no {part} images")
            if labels.min() < 0 or labels.max() >= self.classes:
                raise UserError(
                    f"{self.name!r} has {self.classes} classes, but its {part} labels run from "
                    f"{labels.min()} to {labels.max()}: they must be from 0 to {self.classes - 1}"
                )
        if len(classes := np.unique(self.train.labels)) < 2:
            raise UserError(
                f"all training images of {self.name!r} are of class {classes[0]}: there is nothing "
                "to tell apart, give images of two classes at least"
            )
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.input_shape[0]:
                raise UserError(
                    f"{key} of {self.name!r} has {len(values)} values: give one for each of the "
                    f"{self.input_shape[0]} channels"
                )
            if not all(0 <= value <= 1 for value in values) or (key == "std" and 0 in values):
                raise UserError(
                    f"{key} of {self.name!r} is {', '.join(f'{value:g}' for value in values)}: it "
                    "is of pixels in [0, 1], so divide what is of 0 to 255 by 255"
                )
        for part, images in (("training", self.train), ("test", self.test)):
            if (value := _only_value(images)) is not None:
                raise UserError(
                    f"all pixels of all {part} images of {self.name!r} are {value:g}: there is "
                    "nothing to see, look at how they were made"
                )

    @classmethod
    def from_arrays(
        cls,
        name: str,
        x_train: ArrayLike | Tensor,
        y_train: ArrayLike | Tensor,
        x_test: ArrayLike | Tensor,
        y_test: ArrayLike | Tensor,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> Dataset:
        """A dataset of uint8 images (N, H, W, C), or (N, H, W) in grey, and class numbers (N,);
        where no normalisation is given it is measured on the training images.

        Raises:
            UserError: the arrays are no such images or labels, or do not go together.
        """
        parts: list[ArrayImages] = []
        for part, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
            pixels = as_pixels(x, f"x_{part} of {name!r}")
            labels = class_numbers(y, f"the labels y_{part} of {name!r}")
            if len(pixels) != len(labels):
                raise UserError(
                    f"{name!r} has {len(pixels)} {part} images but {len(labels)} labels: give one "
                    "for each"
                )
            if not len(pixels):
                raise UserError(f"{name!r} has no {part} images: x_{part} is empty")
            parts.append(ArrayImages(pixels, labels))
        train, test = parts
        _check_sizes(name, train.pixels.shape[1:], test.pixels.shape[1:])
        height, width, channels = train.pixels.shape[1:]
        normalised = normalisation(train.pixels, mean, std)
        classes = _classes(train, test)
        return cls(name, train, test, classes, (channels, height, width), *normalised)

    @classmethod
    def from_loaders(
        cls, train: DataLoader[Any], test: DataLoader[Any], name: str = "given"
    ) -> Dataset:
        """The images of two ``DataLoader``s, each once, in the order of their datasets.

        Batches are (float images as the network expects them, class numbers), longer tuples that
        begin so, or dicts with one entry of images and one named label, labels, target, targets or
        y. Samplers choose images: those that are never drawn are no part of the dataset. Order,
        repetition and ``drop_last`` play no part, and a sampler with weights draws all whose weight
        is above 0. All images are read once, to find the labels and what cannot be used.

        The loaders must not augment: searches measure on held-out training images as they are, and
        fine-tuning augments by itself.

        Raises:
            UserError: a loader's images cannot be asked for by number, are no normalised images of
                one size, or change from one time to the next; or the labels are no class numbers.
        """
        parts = (
            LoaderImages(train, f"the training images of {name!r}"),
            LoaderImages(test, f"the test images of {name!r}"),
        )
        _check_sizes(name, *(part.shape for part in parts))
        if shared := in_common(*((part.dataset, part.indices) for part in parts)):
            logging.getLogger("amc").warning(
                "warning: %d of the %d test images of %r are training images too: accuracies on "
                "them are no measure of a network trained on them",
                shared,
                len(parts[1].labels),
                name,
            )
        channels, height, width = parts[0].shape
        identity = (0.0,) * channels, (1.0,) * channels
        return cls(name, *parts, _classes(*parts), (channels, height, width), *identity)

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 (n, C, H, W) -> float32, as the network expects it; float images are so already."""
        if pixels.is_floating_point():
            return pixels
        mean, std = (_of_channels(values, pixels.device) for values in (self.mean, self.std))
        return (pixels.float() / 255 - mean) / std


@lru_cache(maxsize=16)
def _of_channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A value a channel, (1, C, 1, 1): sent to an accelerator once, for sending waits for it."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)


def _check_sizes(name: str, train: tuple[int, ...], test: tuple[int, ...]) -> None:
    if train != test:
        raise UserError(
            f"{name!r}: training images are {train}, test images {test}: bring them to one size"
        )


def _only_value(images: Images) -> float | None:
    """The value that all pixels of all images have; none where two differ, as nearly always among
    the first few.
    """
    first: float | None = None
    for start in range(0, len(images.labels), SEEN):
        end = min(start + SEEN, len(images.labels))
        with own_randomness(0):  # a user's loader may draw some
            pixels = images.fetch(np.arange(start, end))
        first = float(pixels.flatten()[0]) if first is None else first
        if (pixels != first).any():
            return None
    return first


def _classes(*parts: Images) -> int:
    """Of all labels: those of test images may be among the network's classes though no training
    image is of them.
    """
    return 1 + max(int(part.labels.max()) for part in parts)


def load_dataset(name: str, folder: Path, image_size: int = 224) -> Dataset:
    """``digits``, ``cifar10``, ``torchvision:NAME``, ``npz:PATH`` or ``imagefolder:PATH``.

    Args:
        name: of it.
        folder: in which its files are, or are put; a PATH that is not whole may begin there.
        image_size: of a folder of images.

    Raises:
        UserError: the name is unknown, or the files are missing or damaged.
    """
    if name in DATASETS:
        return DATASETS[name](folder)
    if name.startswith("npz:"):
        return _npz(name, find_file(name.removeprefix("npz:"), folder))
    if name.startswith("torchvision:"):
        return _from_torchvision(name, name.removeprefix("torchvision:"), folder)
    if name.startswith("imagefolder:"):
        return _image_folder(name, folder, image_size)
    raise unknown("dataset", name, [*DATASETS, *PREFIXES])


def _digits(_folder: Path) -> Dataset:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    order = np.random.default_rng(0).permutation(len(pixels))
    train, test = order[360:], order[:360]
    return Dataset.from_arrays(
        "digits", pixels[train], digits.target[train], pixels[test], digits.target[test]
    )


def _npz(name: str, path: Path, **normalisation: Any) -> Dataset:
    arrays: list[Any] = read_arrays(path, name, ("x_train", "y_train", "x_test", "y_test"))
    return Dataset.from_arrays(name, *arrays, **normalisation)


def _cifar10(folder: Path) -> Dataset:
    if (folder / "cifar10.npz").is_file():
        return _npz("cifar10", folder / "cifar10.npz", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return _from_torchvision("cifar10", "CIFAR10", folder, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def _from_torchvision(name: str, kind: str, folder: Path, **normalisation: Any) -> Dataset:
    """A dataset of torchvision's that holds its images in memory: CIFAR10, CIFAR100, MNIST, ..."""
    if kind not in IN_MEMORY:
        raise unknown("dataset of torchvision", kind, IN_MEMORY)
    found = getattr(torchvision.datasets, kind)

    def read(train: bool) -> Any:
        try:
            return found(str(folder), train=train)
        except RuntimeError:  # it is not there
            return found(str(folder), train=train, download=True)

    arrays: list[Any] = []
    for train in (True, False):
        try:
            data = read(train)
        except Exception as error:
            file = "cifar10.npz" if name == "cifar10" else "a file, named as npz:PATH"
            raise UserError(
                f"there is no {kind} in {str(folder)!r} and it could not be downloaded: put {file} "
                "(uint8 NHWC x_train y_train x_test y_test) or torchvision's own files there, or "
                "set AMC_DATA_DIR"
            ) from error
        arrays += [data.data, data.targets]
    return Dataset.from_arrays(name, *arrays, **normalisation)


def _image_folder(name: str, folder: Path, size: int) -> Dataset:
    """The classes are the folders in ``train``; a test folder may lack some of them."""
    root = find_folder(name.removeprefix("imagefolder:"), folder)
    test = next((root / part for part in ("test", "val") if (root / part).is_dir()), None)
    if not (root / "train").is_dir() or test is None:
        raise UserError(
            f"{str(root)!r} must have a folder train and a folder test or val, with a folder of "
            "images a class in both (train/CLASS/1.jpg, val/CLASS/2.jpg): give its whole path, or "
            "name the folder that it lies in as data_dir or AMC_DATA_DIR"
        )
    train_images = FolderImages(root / "train", size, folder / DECODED)
    classes = train_images.classes
    test_images = FolderImages(test, size, folder / DECODED, classes)
    shape = (3, size, size)
    return Dataset(
        name, train_images, test_images, len(classes), shape, IMAGENET_MEAN, IMAGENET_STD
    )


IN_MEMORY = ("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "USPS")
PREFIXES = ("torchvision:NAME", "npz:PATH", "imagefolder:PATH")
DATASETS: dict[str, Callable[[Path], Dataset]] = {"digits": _digits, "cifar10": _cifar10}
