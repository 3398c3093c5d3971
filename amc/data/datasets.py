"""Datasets, and where they come from.

Images are kept as uint8 and normalised a batch at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from amc.data.images import ArrayImages, FolderImages, Images, LoaderImages
from amc.data.places import find_file
from amc.errors import UserError, unknown
from amc.network.torchvision_compat import torchvision

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test images, the number of classes, and the normalisation (of pixels in [0, 1],
    a value a channel).
    """

    name: str
    train: Images
    test: Images
    classes: int
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_arrays(
        cls,
        name: str,
        x_train: NDArray[np.uint8],
        y_train: NDArray[np.generic],
        x_test: NDArray[np.uint8],
        y_test: NDArray[np.generic],
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> Dataset:
        """A dataset of uint8 images (N, H, W, C); where no normalisation is given it is measured on
        the training images.

        Raises:
            UserError: the arrays do not go together.
        """
        for part, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
            if x.dtype != np.uint8 or x.ndim != 4:
                raise UserError(
                    f"x_{part} of {name!r} is {x.dtype} {x.shape}: it must be uint8 (N, H, W, C)"
                )
            if len(x) != len(y.reshape(-1)):
                raise UserError(
                    f"{name!r} has {len(x)} {part} images but {len(y.reshape(-1))} labels"
                )
        if x_train.shape[1:] != x_test.shape[1:]:
            raise UserError(
                f"{name!r}: training images are {x_train.shape[1:]}, test images {x_test.shape[1:]}"
            )
        measured_mean, measured_std = _mean_and_std(x_train[:10000])
        height, width, channels = x_train.shape[1:]
        return cls(
            name,
            ArrayImages(x_train, y_train),
            ArrayImages(x_test, y_test),
            int(y_train.max()) + 1,
            (channels, height, width),
            tuple(mean or measured_mean.tolist()),
            tuple(std or np.maximum(measured_std, 1e-3).tolist()),
        )

    @classmethod
    def from_loaders(
        cls, train: DataLoader[Any], test: DataLoader[Any], name: str = "given"
    ) -> Dataset:
        """The images of two ``DataLoader``s, which give batches of (float images as the network
        expects them, class numbers) and do not augment: searches measure on held-out training
        images, and fine-tuning augments by itself.

        Raises:
            UserError: a loader's images cannot be asked for by number, or are no normalised images.
        """
        parts = LoaderImages(train), LoaderImages(test)
        image = train.dataset[0][0] if len(parts[0].labels) else None
        if not isinstance(image, Tensor) or image.dim() != 3 or not image.is_floating_point():
            raise UserError(
                f"the DataLoader of {name!r} must give float images (C, H, W), normalised"
            )
        channels, height, width = image.shape
        classes = int(max(part.labels.max() for part in parts)) + 1
        identity = (0.0,) * channels, (1.0,) * channels
        return cls(name, *parts, classes, (channels, height, width), *identity)

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 (n, C, H, W) -> float32, as the network expects it; float images are so already."""
        if pixels.is_floating_point():
            return pixels
        mean, std = (
            torch.tensor(value, device=pixels.device).view(1, -1, 1, 1)
            for value in (self.mean, self.std)
        )
        return (pixels.float() / 255 - mean) / std


def _mean_and_std(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of each channel, of pixels in [0, 1]; a few images at a time, for they may be large."""
    total = squares = np.zeros(pixels.shape[-1])
    for start in range(0, len(pixels), 100):
        part = pixels[start : start + 100].astype(np.float64) / 255
        total = total + part.sum((0, 1, 2))
        squares = squares + (part**2).sum((0, 1, 2))
    count = pixels[..., 0].size
    mean = total / count
    return mean, np.sqrt(np.maximum(squares / count - mean**2, 0))


def load_dataset(name: str, folder: Path, image_size: int = 224) -> Dataset:
    """``digits``, ``cifar10``, ``torchvision:NAME``, ``npz:PATH`` or ``imagefolder:PATH``.

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
        return _image_folder(name, Path(name.removeprefix("imagefolder:")).expanduser(), image_size)
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
    keys = ("x_train", "y_train", "x_test", "y_test")
    try:
        with np.load(path, allow_pickle=False) as archive:
            if missing := [key for key in keys if key not in archive]:
                raise UserError(
                    f"{str(path)!r} has no array {missing[0]!r}: it needs {', '.join(keys)}"
                )
            arrays = [archive[key] for key in keys]
    except (ValueError, OSError, EOFError, KeyError, BadZipFile) as error:
        raise UserError(f"the data file {str(path)!r} is damaged: {error}") from error
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

    parts: list[Any] = []
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
        pixels = np.asarray(data.data)
        parts += [pixels[..., None] if pixels.ndim == 3 else pixels, np.asarray(data.targets)]
    return Dataset.from_arrays(name, *parts, **normalisation)


def _image_folder(name: str, root: Path, size: int) -> Dataset:
    test = next((root / part for part in ("test", "val") if (root / part).is_dir()), None)
    if not (root / "train").is_dir() or test is None:
        raise UserError(f"{str(root)!r} must have a folder train and a folder test or val")
    try:
        train_images, test_images = FolderImages(root / "train", size), FolderImages(test, size)
    except FileNotFoundError as error:
        raise UserError(
            f"{str(root)!r} does not hold a folder of images a class: {error}"
        ) from error
    return Dataset(
        name,
        train_images,
        test_images,
        train_images.classes,
        (3, size, size),
        IMAGENET_MEAN,
        IMAGENET_STD,
    )


IN_MEMORY = ("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "USPS")
PREFIXES = ("torchvision:NAME", "npz:PATH", "imagefolder:PATH")
DATASETS: dict[str, Callable[[Path], Dataset]] = {"digits": _digits, "cifar10": _cifar10}
