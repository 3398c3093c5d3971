"""Images in files, a folder a class. All are checked when they are listed; see `flaw`."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from amc.errors import UserError, first_line
from amc.network.layers import IntArray
from amc.network.torchvision_compat import torchvision

EXTENSIONS: tuple[str, ...] = torchvision.datasets.folder.IMG_EXTENSIONS
NARROW = 100  # times that an image may be longer than wide: the short side sets its size
ENDINGS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
"""How a whole file of a format ends."""


class FolderImages:
    """Images in files, a folder a class: resized so that the short side is 8/7 of ``size``, then
    cut from the centre. Hidden files and folders, and files that are no images, are passed over.
    """

    def __init__(self, root: Path, size: int, classes: Sequence[str] | None = None) -> None:
        """List and check the files.

        Args:
            root: the folder of the classes' folders.
            size: height and width of the images.
            classes: their names, in the order of their numbers; none: those of the folders, in
                alphabetical order.

        Raises:
            UserError: there are none, a class has none or is not among the named ones, or a file
                is damaged.
        """
        found = {folder.name: _files(folder) for folder in _folders(root)}
        self.classes = tuple(found) if classes is None else tuple(classes)
        if classes is None and (empty := [name for name, files in found.items() if not files]):
            raise UserError(
                f"the class folder {str(root / empty[0])!r} has no image: remove it, or put images "
                f"there ({' '.join(EXTENSIONS)})"
            )
        if extra := [name for name in found if found[name] and name not in self.classes]:
            raise UserError(
                f"{str(root)!r} has the class {extra[0]!r}, which the training images lack (they "
                f"have {', '.join(self.classes)}): remove or rename its folder"
            )
        named = [(name, path) for name in self.classes for path in found.get(name, [])]
        if not named:
            raise UserError(f"{str(root)!r} does not hold a folder of images a class")
        self.paths = [path for _, path in named]
        numbers = {name: number for number, name in enumerate(self.classes)}
        self.labels = np.array([numbers[name] for name, _ in named], dtype=np.int64)
        _check(root, self.paths)
        transforms = torchvision.transforms
        self._shape = transforms.Compose(
            [transforms.Resize(size * 8 // 7), transforms.CenterCrop(size)]
        )

    def fetch(self, indices: IntArray) -> Tensor:
        with ThreadPoolExecutor() as readers:  # decoding lets other threads run
            pixels = list(readers.map(self._read, (self.paths[index] for index in indices)))
        return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()

    def _read(self, path: Path) -> NDArray[np.uint8]:
        try:
            with Image.open(path) as image:
                return np.asarray(self._shape(image.convert("RGB")))
        except Exception as error:  # decoders raise nearly anything
            raise UserError(
                f"the image {str(path)!r} cannot be read ({first_line(error)}): replace or remove "
                "it"
            ) from error


def _folders(root: Path) -> list[Path]:
    """The folders of the classes."""
    return sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")


def _files(folder: Path) -> list[Path]:
    """The images in a folder and those in it, in torchvision's order."""
    found = []
    for place, _, names in sorted(os.walk(folder, followlinks=True)):
        inside = Path(place)
        if not any(part.startswith(".") for part in inside.relative_to(folder).parts):
            found += [
                inside / name
                for name in sorted(names)
                if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
            ]
    return found


def _check(root: Path, paths: Sequence[Path]) -> None:
    with warnings.catch_warnings(), ThreadPoolExecutor() as readers:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `flaw` says it
        flaws = zip(paths, readers.map(flaw, paths), strict=True)
        flawed = [f"{str(path.relative_to(root))!r} ({why})" for path, why in flaws if why]
    if flawed:
        raise UserError(
            f"{len(flawed)} of the {len(paths)} images in {str(root)!r} cannot be used: "
            f"{', '.join(flawed[:3])}{', ...' if len(flawed) > 3 else ''}: replace or remove them"
        )


def flaw(path: Path) -> str | None:
    """Why an image cannot be used, found without decoding it where its header is sound and its file
    ends as the format ends: damage in the middle is found when the image is fetched, which a search
    does with all that it measures on before its first episode. 1,000 photographs (500 x 375, JPEG)
    take 0.3 s, 50,000 take 13 s; to decode them takes 30 times as long.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would never end
            return "no file"
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16))
            tail = file.read()
            file.seek(0)
            with Image.open(file) as image:
                short, long = sorted(image.size)
                if short * long > (Image.MAX_IMAGE_PIXELS or math.inf) or long > NARROW * short:
                    return f"{image.width} x {image.height} pixels, too many or too narrow"
                if image.mode[0] in "IF":  # would be clipped to white
                    return f"mode {image.mode}, more than 8 bits a channel: convert it to 8"
                ending = ENDINGS.get(image.format or "")
                if ending is None or ending not in tail:
                    image.load()
    except UnidentifiedImageError:
        return "no image"
    except Exception as error:  # decoders raise nearly anything
        return first_line(error)
    return None
