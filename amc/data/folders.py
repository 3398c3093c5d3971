"""Images in files, a folder a class. All are checked when they are first listed; see `flaw`."""

from __future__ import annotations

import hashlib
import math
import os
import stat
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, features
from torch import Tensor

from amc.data.decoded import Decoded
from amc.errors import UserError, first_line
from amc.files import folder_name
from amc.network.layers import IntArray
from amc.network.torchvision_compat import torchvision

EXTENSIONS: tuple[str, ...] = torchvision.datasets.folder.IMG_EXTENSIONS
NARROW = 100  # times that an image may be longer than wide: the short side sets its size
ENDINGS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
"""How a whole file of a format ends."""
AT_ONCE = 1000  # files in one go of checking
HOW = f"resized to 8/7, cut | Pillow {PIL.__version__}, {features.version_codec('jpg')}"
"""What makes the pixels of a file; another text, and all are decoded again."""


class FolderImages:
    """Images in files, a folder a class: resized so that the short side is 8/7 of ``size``, then
    cut from the centre. Hidden files and folders, and files that are no images, are passed over.
    Of the images themselves no more is held than was asked for; decoded ones are kept on disk.
    """

    def __init__(
        self, root: Path, size: int, keep: Path, classes: Sequence[str] | None = None
    ) -> None:
        """List the files, and check those that are new.

        Args:
            root: the folder of the classes' folders.
            size: height and width of the images.
            keep: the folder in which decoded images are kept.
            classes: their names, in the order of their numbers; none: those of the folders, in
                alphabetical order.

        Raises:
            UserError: there are none, a class has none or is not among the named ones, or a file
                is damaged.
        """
        self.root = root
        found = {folder.name: _files(root, folder) for folder in _folders(root)}
        self.classes = tuple(found) if classes is None else tuple(classes)
        if classes is None and (empty := [name for name in found if not len(found[name])]):
            raise UserError(
                f"the class folder {str(root / empty[0])!r} has no image: remove it, or put images "
                f"there ({' '.join(EXTENSIONS)})"
            )
        if extra := [name for name in found if len(found[name]) and name not in self.classes]:
            raise UserError(
                f"{str(root)!r} has the class {extra[0]!r}, which the training images lack (they "
                f"have {_listed(self.classes)}): remove or rename its folder"
            )
        counts = [len(found.get(name, ())) for name in self.classes]
        if not sum(counts):
            raise UserError(f"{str(root)!r} does not hold a folder of images a class")
        # bytes, not paths: a million take 40 MB
        self._names = np.concatenate([found[name] for name in self.classes if name in found])
        self.labels = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        found_now = (_identity(name, self._path(name)) for name in self._names)
        identities = np.fromiter(found_now, np.uint64, len(self._names))
        place = _place(root, size, keep)
        self._decoded = Decoded(place, identities, (3, size, size), str(root))
        self._check()
        transforms = torchvision.transforms
        self._shape = transforms.Compose(
            [transforms.Resize(size * 8 // 7), transforms.CenterCrop(size)]
        )

    def fetch(self, indices: IntArray) -> Tensor:
        """uint8 (n, 3, size, size).

        Raises:
            UserError: a file cannot be read, or is another one than was listed.
        """
        return torch.from_numpy(self._decoded.fetch(indices, self._decode))

    def _path(self, name: bytes) -> Path:
        return self.root / os.fsdecode(name)

    def _decode(self, index: int) -> NDArray[np.uint8]:
        name = self._names[index]
        path = self._path(name)
        try:
            with Image.open(path) as image:
                pixels = np.asarray(self._shape(image.convert("RGB"))).transpose(2, 0, 1)
        except Exception as error:  # decoders raise nearly anything
            raise UserError(
                f"the image {str(path)!r} cannot be read ({first_line(error)}): replace or remove "
                "it"
            ) from error
        if _identity(name, path) != self._decoded.identities[index]:
            raise UserError(
                f"the image {str(path)!r} has changed since the images were listed: start again, "
                "then it is used as it is now"
            )
        return pixels

    def _check(self) -> None:
        """Those that are not known to be whole."""
        unchecked, flawed = self._decoded.unchecked(), list[str]()
        with warnings.catch_warnings(), ThreadPoolExecutor() as readers:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `flaw` says it
            for start in range(0, len(unchecked), AT_ONCE):
                names = self._names[unchecked[start : start + AT_ONCE]]
                found = readers.map(flaw, map(self._path, names))
                flaws = zip(names, found, strict=True)
                flawed += [f"{os.fsdecode(name)!r} ({why})" for name, why in flaws if why]
        if flawed:
            raise UserError(
                f"{len(flawed)} of the {len(self._names)} images in {str(self.root)!r} cannot be "
                f"used: {_listed(flawed)}: replace or remove them"
            )
        if len(unchecked):
            self._decoded.keep_checked()


def _listed(texts: Sequence[str]) -> str:
    """A few of them."""
    return f"{', '.join(texts[:3])}{', ...' if len(texts) > 3 else ''}"


def _place(root: Path, size: int, keep: Path) -> Path:
    """Where the decoded images of a folder are kept."""
    whole = root.resolve()
    digest = hashlib.sha256(os.fsencode(whole)).hexdigest()[:8]
    return keep / folder_name(f"{whole.parent.name}-{whole.name}-{size}-{digest}")


def _identity(name: bytes, path: Path) -> np.uint64:
    """A number that is another one when the file is: of its name, size and time; 0 of what is no
    file.
    """
    try:
        facts = path.stat()
    except OSError:
        return np.uint64(0)
    if not stat.S_ISREG(facts.st_mode):
        return np.uint64(0)
    text = b"%b\0%d\0%d\0%b" % (name, facts.st_size, facts.st_mtime_ns, HOW.encode())
    return np.uint64(int.from_bytes(hashlib.sha256(text).digest()[:8], "little"))


def _folders(root: Path) -> list[Path]:
    """The folders of the classes."""
    return sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")


def _files(root: Path, folder: Path) -> NDArray[np.bytes_]:
    """The images in a class's folder and those in it, in torchvision's order: names from the root
    on.
    """
    found = []
    for place, _, names in sorted(os.walk(folder, followlinks=True)):
        inside = Path(place)
        if not any(part.startswith(".") for part in inside.relative_to(folder).parts):
            before = inside.relative_to(root)
            found += [
                os.fsencode(before / name)
                for name in sorted(names)
                if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
            ]
    return np.array(found, dtype=np.bytes_)


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
