"""Arrays and npz files: right, or refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from amc.data.datasets import Dataset, load_dataset
from amc.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 6, 8, 3)).astype(np.uint8)
LABELS = np.arange(40) % 4


def made(x: Any = PIXELS, y: Any = LABELS, **changed: Any) -> Dataset:
    parts = {"x_train": x, "y_train": y, "x_test": PIXELS[:10], "y_test": LABELS[:10]}
    return Dataset.from_arrays("mine", **(parts | changed))


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (torch.from_numpy(PIXELS), torch.from_numpy(LABELS)),
        (list(PIXELS), LABELS.tolist()),
        (PIXELS, LABELS.astype(np.float32)),
        (PIXELS, LABELS[:, None]),
        (PIXELS, np.eye(4)[LABELS]),
        (PIXELS, LABELS.astype(object)),
        (PIXELS, LABELS.astype(np.uint8)),
        (PIXELS[..., ::-1][..., ::-1], LABELS[::-1][::-1]),
    ],
    ids=["tensors", "lists", "floats", "column", "one-hot", "objects", "uint8", "views"],
)
def test_arrays_of_many_forms(x: Any, y: Any) -> None:
    data = made(x, y)
    assert data.train.labels.tolist() == LABELS.tolist() and data.classes == 4
    assert data.train.labels.dtype == np.int64 and data.input_shape == (3, 6, 8)
    expected = torch.from_numpy(PIXELS[[5, 2]]).permute(0, 3, 1, 2)
    assert torch.equal(data.train.fetch(np.array([5, 2])), expected)


def test_grey_images_need_no_channels() -> None:
    data = made(PIXELS[..., 0], x_test=PIXELS[:10, :, :, 0])
    assert data.input_shape == (1, 6, 8) and data.train.fetch(np.array([0])).shape == (1, 1, 6, 8)


def test_classes_are_those_of_all_labels() -> None:
    assert made(y=LABELS % 3, y_test=np.arange(10) % 6).classes == 6
    assert made(y=LABELS * 2 + 1).classes == 8  # gaps are for the network to judge


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": PIXELS / 255}, r"x_train of 'mine' is float64 .* take \(x \* 255\)\.round\(\)"),
        ({"x": torch.rand(40, 3, 6, 8)}, "images that are normalised already go to Dataset.from_l"),
        ({"x": PIXELS.astype(np.int64)}, r"is int64 .* of 0 to 255 x\.astype\(np\.uint8\)"),
        ({"x": PIXELS.transpose(0, 3, 1, 2)}, r"take x\.transpose\(0, 2, 3, 1\)"),
        ({"x": PIXELS.reshape(40, -1)}, r"is uint8 \(40, 144\): it must be uint8 \(N, H, W, C\)"),
        ({"x": PIXELS[:, :0]}, r"\(40, 0, 8, 3\)"),
        ({"x": [*PIXELS[:39], PIXELS[0, :4]]}, "cannot be made one array"),
        ({"x": PIXELS[:0], "y": LABELS[:0]}, "has no train images: x_train is empty"),
        ({"x_test": PIXELS[:0], "y_test": []}, "has no test images: x_test is empty"),
        ({"x_test": PIXELS[:10, :4]}, r"images are \(6, 8, 3\), test images \(4, 8, 3\): bring"),
        ({"y": LABELS[:30]}, "has 40 train images but 30 labels: give one for each"),
        ({"y": np.array(["cat", "dog"] * 20)}, "y_train of 'mine' are text such as cat"),
        ({"y": np.array(["cat", "dog"] * 20, object)}, "are text such as cat"),
        ({"y": [None] * 40}, "are no numbers"),
        ({"y": [[1], [1, 2]] * 20}, "cannot be made one array"),
        ({"y": LABELS / 3}, r"no class numbers: 0\.333333 of image 1; only classification"),
        ({"y": np.where(LABELS == 3, np.nan, LABELS)}, "nan of image 3"),
        ({"y": LABELS - 1}, r"hold -1 \(image 0\): class numbers begin at 0"),
        ({"y": np.full(40, np.uint64(2**64 - 1))}, "class numbers begin at 0"),
        ({"y": np.ones((40, 4))}, r"several values an image \(1, 1, 1, 1 of image 0\)"),
        ({"y": np.eye(4)[LABELS] * 0.9 + 0.025}, "nor soft labels"),
        ({"y": np.zeros((40, 6, 8))}, r"are \(40, 6, 8\): give one class number an image"),
        ({"y": 3}, r"are \(\): give one class"),
        ({"y": LABELS * 0 + 2}, "all training images of 'mine' are of class 2: there is nothing"),
        ({"y_test": LABELS[:10] - 1}, "y_test of 'mine' hold -1"),
        ({"mean": (0.5,)}, "mean of 'mine' has 1 values: give one for each of the 3 channels"),
        ({"std": (0.2, 0.0, 0.2)}, r"std of 'mine' is 0\.2, 0, 0\.2: it is of pixels in \[0, 1\]"),
        ({"mean": np.array([123.7, 116.3, 103.5])}, "divide what is of 0 to 255 by 255"),
    ],
)
def test_arrays_that_cannot_be_used(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        made(**changed)
    assert "\n" not in str(caught.value)


def test_archives_that_hold_something_else(tmp_path: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            load_dataset("npz:data.npz", tmp_path)

    archive = tmp_path / "data.npz"
    parts = {"x_train": PIXELS, "y_train": LABELS, "x_test": PIXELS[:9], "y_test": LABELS[:9]}
    np.savez_compressed(archive, **parts)  # type: ignore[arg-type]
    assert len(load_dataset("npz:data.npz", tmp_path).train.labels) == 40
    whole = archive.read_bytes()
    for place in range(60, len(whole), len(whole) // 25):  # damage anywhere
        archive.write_bytes(whole[:place] + bytes(20) + whole[place + 20 :])
        try:
            load_dataset("npz:data.npz", tmp_path)
        except UserError as error:
            assert "\n" not in str(error)
    np.savez(archive, **(parts | {"y_train": LABELS.astype(object)}))  # type: ignore[arg-type]
    refused("damaged, or holds Python objects")
    with archive.open("wb") as file:
        np.save(file, PIXELS)
    refused("holds one array: np.savez makes one with x_train, y_train")
    archive.write_bytes(b"")
    refused("is damaged")
