"""Datasets and splits.

Images are kept as uint8 and normalised a batch at a time. Training images fall into three parts:
the held-out ones, on which a search measures; the calibration ones, which repair may use; and the
rest. The test images are for final figures only.
"""

from __future__ import annotations

import importlib.resources
import os
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

from amc.errors import UserError, unknown
from amc.evaluate.images import ArrayImages, FolderImages, Images, LoaderImages
from amc.network.layers import IntArray
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


@dataclass(frozen=True, eq=False)
class Splits:
    """Indices into the training images: three parts that do not overlap."""

    heldout: IntArray  # what a search measures on
    calibration: IntArray  # what repair may use; part of what the base network may be trained on
    train: IntArray  # everything but the held-out images


def split(
    dataset: Dataset,
    images: int | None,
    calibration_images: int | None,
    seed: int = 0,
    heldout: Path | None = None,
) -> Splits:
    """Divide the training images. With a file of held-out indices the seed has no say in it: then
    searches of several seeds are of one problem.

    Args:
        dataset: whose training images are divided.
        images: how many held-out images are used; none: those of the file, or 5,000, or a fifth
            of all where that is less.
        calibration_images: how many of the rest repair may use; none: 1,000, or a fifth.
        seed: of the draws, where there is no file.
        heldout: a .npy file of indices; without it they are drawn.

    Raises:
        UserError: there are not enough images, or the file does not fit the dataset.
    """
    total = len(dataset.train.labels)
    drawn = images or min(5000, total // 5)
    calibration_images = calibration_images or min(1000, total // 5)
    seed = 0 if heldout is not None else seed
    order = np.random.default_rng(seed).permutation(total)
    reserved = order[:drawn] if heldout is None else _read_indices(heldout, total)
    images = images or len(reserved)
    if images > len(reserved) or len(reserved) + calibration_images > total:
        raise UserError(
            f"evaluate.images {images} and evaluate.calibration_images {calibration_images} are "
            "more than "
            f"{dataset.name!r} has ({total} training images, {len(reserved)} of them held out)"
        )
    rest = order[~np.isin(order, reserved)]
    chosen = np.sort(
        reserved
        if images == len(reserved)
        else np.random.default_rng(seed).permutation(reserved)[:images]
    )
    return Splits(chosen, rest[:calibration_images], np.sort(rest))


def _read_indices(path: Path, total: int) -> IntArray:
    try:
        indices = np.load(path, allow_pickle=False).astype(np.int64).reshape(-1)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(
            f"the file of held-out indices {str(path)!r} cannot be read: {error}"
        ) from error
    if len(np.unique(indices)) != len(indices) or indices.min() < 0 or indices.max() >= total:
        raise UserError(f"{str(path)!r} must hold different indices from 0 to {total - 1}")
    return np.asarray(indices)


def data_folder(configured: str | Path | None, key: str = "data_dir") -> Path:
    """The configured folder, else that of the environment variable named after the key of the
    config (`AMC_DATA_DIR`), else ~/.cache/amc.
    """
    return Path(
        configured or os.environ.get(_variable(key)) or Path.home() / ".cache" / "amc"
    ).expanduser()


def find_file(name: str, configured: str | Path | None, key: str = "data_dir") -> Path:
    """A file by its path, by its name in the folder, or by its name among those of `amc.weights`.

    Args:
        name: or path.
        configured: the folder; with none, `data_folder` of the key.
        key: of the config, that names the folder.

    Raises:
        UserError: there is none.
    """
    path = Path(name).expanduser()  # an absolute one is itself in every folder
    folder = data_folder(configured, key)
    shipped = Path(str(importlib.resources.files("amc.weights")))
    for place in (path, folder / path, shipped / path):
        if place.is_file():
            return place
    raise UserError(
        f"the file {str(folder / path)!r} does not exist: give its whole path, or name its folder "
        f"as {key} or {_variable(key)}"
    )


def _variable(key: str) -> str:
    return f"AMC_{key.upper()}"


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
