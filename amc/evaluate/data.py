"""Datasets and splits.

Images are kept as uint8 and normalised a batch at a time. Training images fall into three parts:
the held-out ones, on which a search measures; the calibration ones, which repair may use; and the
rest. The test images are for final figures only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amc.errors import UserError, unknown
from amc.network.layers import IntArray
from amc.network.torchvision_compat import torchvision

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Images(Protocol):
    """Labelled images that can be fetched by index."""

    labels: IntArray

    def fetch(self, indices: IntArray) -> Tensor:
        """uint8 (n, C, H, W)."""


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
        pixels = [np.asarray(self._shape(self._load(self.paths[int(index)]))) for index in indices]
        return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()


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

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 (n, C, H, W) -> float32, as the network expects it."""
        mean, std = (torch.tensor(value).view(1, -1, 1, 1) for value in (self.mean, self.std))
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
    images: int,
    calibration_images: int,
    seed: int = 0,
    heldout: Path | None = None,
) -> Splits:
    """Divide the training images. With a file of held-out indices the seed has no say in it: then
    searches of several seeds are of one problem.

    Args:
        dataset: whose training images are divided.
        images: how many held-out images are used.
        calibration_images: how many of the rest repair may use.
        seed: of the draws, where there is no file.
        heldout: a .npy file of indices; without it they are drawn.

    Raises:
        UserError: there are not enough images, or the file does not fit the dataset.
    """
    total = len(dataset.train.labels)
    seed = 0 if heldout is not None else seed
    order = np.random.default_rng(seed).permutation(total)
    reserved = order[:images] if heldout is None else _read_indices(heldout, total)
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
    if not path.is_file():
        raise UserError(f"the file of held-out indices {str(path)!r} does not exist")
    try:
        indices = np.load(path, allow_pickle=False).astype(np.int64).reshape(-1)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(
            f"the file of held-out indices {str(path)!r} is damaged: {error}"
        ) from error
    if len(np.unique(indices)) != len(indices) or indices.min() < 0 or indices.max() >= total:
        raise UserError(f"{str(path)!r} must hold different indices from 0 to {total - 1}")
    return np.asarray(indices)


def data_folder(configured: str | None, variable: str = "AMC_DATA_DIR") -> Path:
    """The configured folder, else the environment variable's, else ~/.cache/amc."""
    return Path(
        configured or os.environ.get(variable) or Path.home() / ".cache" / "amc"
    ).expanduser()


def find_file(name: str, folder: Path) -> Path:
    """A file by its path, or by its name in a folder."""
    path = Path(name).expanduser()
    return path if path.is_file() or path.is_absolute() else folder / name


def load_dataset(name: str, folder: Path, image_size: int = 224) -> Dataset:
    """``digits``, ``cifar10``, ``npz:PATH`` or ``imagefolder:PATH``.

    Raises:
        UserError: the name is unknown, or the files are missing or damaged.
    """
    if name in DATASETS:
        return DATASETS[name](folder)
    if name.startswith("npz:"):
        return _npz(name, find_file(name.removeprefix("npz:"), folder))
    if name.startswith("imagefolder:"):
        return _image_folder(name, Path(name.removeprefix("imagefolder:")).expanduser(), image_size)
    raise unknown("dataset", name, [*DATASETS, "npz:PATH", "imagefolder:PATH"])


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
    if not path.is_file():
        raise UserError(f"the data file {str(path)!r} does not exist")
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
    normalisation: Any = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    if (folder / "cifar10.npz").is_file():
        return _npz("cifar10", folder / "cifar10.npz", **normalisation)
    parts = []
    for train in (True, False):
        present = (folder / "cifar-10-batches-py").is_dir()
        try:
            data = torchvision.datasets.CIFAR10(str(folder), train=train, download=not present)
        except Exception as error:
            raise UserError(
                f"there is no CIFAR-10 in {str(folder)!r} and it could not be downloaded: put "
                "cifar10.npz (uint8 NHWC x_train "
                "y_train x_test y_test) or torchvision's cifar-10-batches-py there, or set "
                "AMC_DATA_DIR"
            ) from error
        parts += [data.data, np.array(data.targets)]
    return Dataset.from_arrays("cifar10", *parts, **normalisation)


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


DATASETS: dict[str, Callable[[Path], Dataset]] = {"digits": _digits, "cifar10": _cifar10}
