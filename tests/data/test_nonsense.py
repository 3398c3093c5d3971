"""Data that nobody can search on is refused in one sentence that names what and where, whichever
way it comes, and in little memory.
"""

from __future__ import annotations

import io
import math
import os
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from amc.data.datasets import Dataset, load_dataset
from amc.data.splits import split
from amc.errors import UserError

GENERATOR = np.random.default_rng(0)
X, Y = GENERATOR.integers(0, 256, (40, 6, 6, 3)).astype(np.uint8), np.arange(40) % 4
Part = tuple[Any, Any]


def from_arrays(train: Part, test: Part, _folder: Path) -> Dataset:
    return Dataset.from_arrays("mine", *train, *test)


def from_file(train: Part, test: Part, folder: Path) -> Dataset:
    names = ("x_train", "y_train", "x_test", "y_test")
    np.savez(folder / "mine.npz", **dict(zip(names, (*train, *test), strict=True)))
    return load_dataset("npz:mine.npz", folder)


def from_loaders(train: Part, test: Part, _folder: Path) -> Dataset:
    def loader(part: Part) -> DataLoader[Any]:
        pixels = torch.as_tensor(np.asarray(part[0]), dtype=torch.float32) / 255
        labels = torch.as_tensor(np.asarray(part[1]))
        return DataLoader(TensorDataset(pixels.permute(0, 3, 1, 2), labels), 8)

    return Dataset.from_loaders(loader(train), loader(test), "mine")


def changed(labels: Any, place: int, value: float) -> Any:
    labels = labels.astype(type(value))
    labels[place] = value
    return labels


ROWS: dict[str, tuple[Part, str]] = {
    "fraction": ((X, changed(Y, 3, 1.5)), "1.5 of image 3"),
    "no number": ((X, changed(Y, 3, math.nan)), "nan of image 3"),
    "negative": ((X, changed(Y, 3, -1)), "-1 .*image 3"),
    "huge": ((X, changed(Y, 3, 2**40)), "1099511627776 .*image 3"),
    "none": ((X[:0], Y[:0]), "empty|are none"),
    "constant": ((np.full_like(X, 7), Y), "all pixels of all (training|test) images"),
    "no size": ((X[:, :0], Y), r"\(40, 0, 6, 3\)|have no pixels"),
}


@pytest.mark.parametrize("case", ROWS)
@pytest.mark.parametrize("where", ["train", "test"])
@pytest.mark.parametrize("make", [from_arrays, from_file, from_loaders])
def test_images_and_labels_that_make_no_sense(
    make: Callable[[Part, Part, Path], Dataset], where: str, case: str, tmp_path: Path
) -> None:
    part, message = ROWS[case]
    parts = [part, (X, Y)] if where == "train" else [(X, Y), part]
    with pytest.raises(UserError, match=message) as caught:
        make(*parts, tmp_path)
    text = str(caught.value)
    assert "\n" not in text and ("train" in text) == (where == "train")


@pytest.mark.parametrize("make", [from_arrays, from_file, from_loaders])
def test_one_class_and_one_image(
    make: Callable[[Part, Part, Path], Dataset], tmp_path: Path
) -> None:
    for part in ((X, Y * 0 + 3), (X[:1], Y[:1])):
        with pytest.raises(UserError, match=r"all training images of .* are of class"):
            make(part, (X, Y), tmp_path)
    few = make((X[:2], Y[:2]), (X[:1], Y[:1]), tmp_path)
    with pytest.raises(UserError, match="has 2 training images: a search needs 20"):
        split(few, None, None)
    almost = np.full_like(X, 7)
    almost[-1, -1, -1, -1] = 8
    assert make((almost, Y), (X, Y), tmp_path).classes == 4


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_images_that_are_no_numbers(value: float) -> None:
    images = torch.rand(20, 3, 6, 6)
    images[5, 0, 1, 1] = value
    good = DataLoader(TensorDataset(torch.rand(20, 3, 6, 6), torch.arange(20) % 4), 8)
    bad = DataLoader(TensorDataset(images, torch.arange(20) % 4), 8)
    for loaders, part in (((bad, good), "training"), ((good, bad), "test")):
        with pytest.raises(UserError, match=rf"the {part} images .* infinity in image 5"):
            Dataset.from_loaders(*loaders)
    with pytest.raises(UserError, match="x_train of 'mine' is float32"):
        Dataset.from_arrays("mine", images.permute(0, 2, 3, 1), Y[:20], X, Y)


def npy(shape: tuple[int, ...], dtype: str, content: bytes, version: int = 1) -> bytes:
    """A .npy file that claims a shape and a type, whatever its content is."""
    file = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    write = [np.lib.format.write_array_header_1_0, np.lib.format.write_array_header_2_0]
    write[version - 1](file, header)  # type: ignore[operator]
    return file.getvalue() + content


def plain(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


PARTS = {"x_train": plain(X), "y_train": plain(Y), "x_test": plain(X), "y_test": plain(Y)}
WRONG: dict[str, tuple[dict[str, bytes | None], str]] = {
    "absurd": ({"x_train": npy((2**60, 6, 6, 3), "|u1", b"")}, "'x_train' is said to be uint8"),
    "absurd labels": ({"y_test": npy((2**62, 8), "<i8", b"")}, "'y_test' is said to be int64"),
    "more than there is": ({"x_test": npy((41, 6, 6, 3), "|u1", X.tobytes())}, "but has 4320"),
    "less than there is": ({"x_test": npy((39, 6, 6, 3), "|u1", X.tobytes())}, "but has 4320"),
    "negative": ({"x_test": npy((-1, -40, 6, 18), "|u1", X.tobytes())}, "is damaged"),
    "floats": ({"x_train": npy((2**40, 6, 6, 3), "<f8", b"")}, "is damaged"),
    "truncated": ({"x_train": PARTS["x_train"][:100]}, "damaged"),
    "empty": ({"x_train": b""}, "damaged"),
    "no array": ({"x_train": b"PK nonsense"}, "damaged"),
    "objects": ({"y_train": npy((40,), "|O", b"cos\nsystem\n(S'true'\ntR.")}, "Python objects"),
    "pickle": ({"y_train": b"cos\nsystem\n(S'true'\ntR."}, "damaged, or holds Python objects"),
    "key": ({"y_test": None}, "has no array 'y_test'"),
    "huge header": ({"x_train": npy((1,) * 30000, "|u1", b"0", version=2)}, "damaged"),
}


@pytest.mark.parametrize("case", WRONG)
def test_archives_that_make_no_sense(case: str, tmp_path: Path) -> None:
    changes, message = WRONG[case]
    with zipfile.ZipFile(tmp_path / "mine.npz", "w") as archive:
        for key, content in {**PARTS, **changes}.items():
            if content is not None:
                archive.writestr(f"{key}.npy", content)
    refused_in_little_memory("mine.npz", tmp_path, message)


def refused_in_little_memory(name: str, folder: Path, message: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=message) as caught:
            load_dataset(f"npz:{name}", folder)
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 + len(str(folder))


@pytest.mark.parametrize("key", ["x_train", "y_test"])
def test_a_zip_bomb_is_not_unpacked(key: str, tmp_path: Path) -> None:
    count = 6 * 10**8
    shape = (count // 108, 6, 6, 3) if key[0] == "x" else (count,)
    claimed, whole = npy(shape, "|u1", b""), math.prod(shape)
    with zipfile.ZipFile(tmp_path / "mine.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in PARTS.items():
            if name != key:
                archive.writestr(f"{name}.npy", content)
        with archive.open(f"{key}.npy", "w", force_zip64=True) as entry:
            entry.write(claimed)
            for start in range(0, whole, 10**7):
                entry.write(bytes(min(10**7, whole - start)))
    refused_in_little_memory("mine.npz", tmp_path, f"'{key}' of {whole} bytes is packed into")


def test_a_size_that_the_archive_itself_lies_about(tmp_path: Path) -> None:
    file = tmp_path / "mine.npz"
    np.savez_compressed(file, **dict(zip(PARTS, (X, Y, X, Y), strict=True)))  # type: ignore[arg-type]
    sizes = [info.file_size for info in zipfile.ZipFile(file).infolist()]
    content = file.read_bytes().replace(
        sizes[0].to_bytes(4, "little"), (2**31).to_bytes(4, "little")
    )
    file.write_bytes(content)
    refused_in_little_memory("mine.npz", tmp_path, "damaged")


def test_arrays_in_fortran_order_are_read_as_they_are(tmp_path: Path) -> None:
    data = from_file((np.asfortranarray(X), Y), (X, Y), tmp_path)
    expected = torch.from_numpy(X).permute(0, 3, 1, 2)
    assert torch.equal(data.train.fetch(np.arange(40)), expected)


def png(width: int, height: int) -> bytes:
    """A small file of one colour."""
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: png(10000, 10000), "10000 x 10000 pixels, too many or too narrow"),
        (lambda: png(20000, 20000), "exceeds limit"),
        (lambda: png(1, 5000), "1 x 5000 pixels, too many or too narrow"),
    ],
    ids=["warned of", "bomb", "narrow"],
)
@pytest.mark.filterwarnings("error")
def test_images_that_would_fill_the_memory(
    content: Callable[[], bytes], message: str, tmp_path: Path
) -> None:
    for part in ("train", "test"):
        for number, name in enumerate(("ant", "bee")):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (20, 20), (100 * number, 0, 0)).save(tmp_path / part / name / "1.png")
    assert load_dataset(f"imagefolder:{tmp_path}", tmp_path, 8).classes == 2
    (tmp_path / "test" / "bee" / "2.png").write_bytes(content())
    with pytest.raises(UserError, match=rf"1 of the 3 images .*'bee/2.png' \(.*{message}"):
        load_dataset(f"imagefolder:{tmp_path}", tmp_path, 8)


def test_a_pipe_and_a_folder_of_one_colour_are_named(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in ("ant", "bee"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (20, 20), (9, 9, 9)).save(tmp_path / part / name / "1.png")
    with pytest.raises(UserError, match=r"all pixels of all training images .* are 9: there is"):
        load_dataset(f"imagefolder:{tmp_path}", tmp_path, 8)
    os.mkfifo(tmp_path / "train" / "ant" / "2.png")
    with pytest.raises(UserError, match=r"'ant/2.png' \(no file\)"):
        load_dataset(f"imagefolder:{tmp_path}", tmp_path, 8)


INDICES: dict[str, tuple[bytes, str]] = {
    "fraction": (plain(np.array([0.5, 1])), "0.5 is no whole number"),
    "nan": (plain(np.array([math.nan, 1])), "nan is no whole number"),
    "negative": (plain(np.array([-1, 1])), "-1 is no training image's"),
    "too large": (plain(np.array([1, 40])), "40 is no training image's"),
    "doubled": (plain(np.array([1, 2, 2])), "2 is there 2 times"),
    "empty": (plain(np.array([], np.int64)), r"it holds int64 \(0,\)"),
    "a mask": (plain(np.ones(40, bool)), "true and false"),
    "text": (plain(np.array(["1", "2"])), r"it holds <U1 \(2,\)"),
    "too many": (npy((10**7,), "|u1", bytes(10**7)), r"it holds uint8 \(10000000,\)"),
    "absurd": (npy((2**60,), "<i8", b""), "cannot be read"),
    "objects": (npy((2,), "|O", b"cos\nsystem\n(S'true'\ntR."), "cannot be read"),
    "truncated": (plain(Y)[:-8], "cannot be read"),
    "no content": (b"", "cannot be read"),
    "no array": (b"nonsense", "cannot be read"),
}


@pytest.mark.parametrize("case", INDICES)
def test_held_out_indices_that_make_no_sense(case: str, tmp_path: Path) -> None:
    content, message = INDICES[case]
    (tmp_path / "heldout.npy").write_bytes(content)
    data = from_arrays((X, Y), (X, Y), tmp_path)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=f"heldout.npy.*{message}") as caught:
            split(data, None, None, heldout=tmp_path / "heldout.npy")
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
