"""Where images come from, and how they are divided."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from amc.config import parse_config
from amc.data.datasets import Dataset, load_dataset
from amc.data.places import find_file
from amc.data.splits import split
from amc.errors import UserError
from amc.network.torchvision_compat import torchvision
from amc.problem import Problem


class Grey:
    """Like torchvision's MNIST: images (N, H, W) as a tensor, targets as a tensor."""

    def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
        if not download and not (Path(root) / "here").is_file():
            raise RuntimeError("Dataset not found")
        if download and root.endswith("offline"):
            raise OSError("no network")
        (Path(root) / "here").touch()
        count = 30 if train else 10
        self.data = torch.arange(count * 64, dtype=torch.uint8).reshape(count, 8, 8)
        self.targets = torch.arange(count) % 5


def test_torchvisions_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets, "MNIST", Grey)
    data = load_dataset("torchvision:MNIST", tmp_path)  # downloaded, then found
    assert data.input_shape == (1, 8, 8) and data.classes == 5 and len(data.test.labels) == 10
    assert data.train.fetch(np.array([1]))[0, 0, 0].tolist() == list(range(64, 72))
    (tmp_path / "offline").mkdir()
    with pytest.raises(UserError, match=r"there is no MNIST in .* could not be downloaded"):
        load_dataset("torchvision:MNIST", tmp_path / "offline")
    with pytest.raises(UserError, match=r"unknown dataset of torchvision 'MNISST'.*'MNIST'"):
        load_dataset("torchvision:MNISST", tmp_path)
    with pytest.raises(UserError, match="unknown dataset of torchvision 'VOCDetection'"):
        load_dataset("torchvision:VOCDetection", tmp_path)


def test_a_small_dataset_is_divided_by_fifths(digits: Dataset, tmp_path: Path) -> None:
    parts = split(digits, None, None)
    assert [len(parts.heldout), len(parts.calibration), len(parts.train)] == [80, 80, 320]
    assert not set(parts.heldout) & set(parts.train) and set(parts.calibration) <= set(parts.train)
    np.save(tmp_path / "heldout.npy", np.arange(50))
    parts = split(digits, None, 20, heldout=tmp_path / "heldout.npy")
    assert parts.heldout.tolist() == list(range(50)) and len(parts.calibration) == 20


def test_a_file_is_looked_for_by_path_in_the_folder_and_in_the_package(tmp_path: Path) -> None:
    name = "cifar10_heldout_indices.npy"
    shipped = find_file(name, tmp_path)
    drawn = np.random.default_rng(0).permutation(50000)[:5000]
    assert np.load(shipped).tolist() == sorted(drawn.tolist())
    (tmp_path / name).touch()
    assert find_file(name, tmp_path) == tmp_path / name
    assert find_file(str(shipped), tmp_path) == shipped
    with pytest.raises(UserError, match=f"{tmp_path}/nowhere.npy' does not exist"):
        find_file("nowhere.npy", tmp_path)
    with pytest.raises(
        UserError, match=r"'/nowhere.npy' does not .* weights_dir or AMC_WEIGHTS_DIR"
    ):
        find_file("/nowhere.npy", tmp_path, "weights_dir")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.arange(1, 401), "from 0 to 399: 400 is no training image's"),
        (np.array([3, -1]), "-1 is no training image's"),
        (np.array([3.0, 4.5]), r"4\.5 is no whole number"),
        (np.array([3, np.nan]), "nan is no whole number"),
        (np.array([3, 5, 3]), "different indices .*: 3 is there 2 times"),
        (np.arange(400) < 80, r"holds true and false, save np\.flatnonzero of them"),
        (np.array([]), r"holds float64 \(0,\)"),
        (np.array(["a"]), "holds <U1"),
        (np.array([3, None]), r"cannot be read: .*np\.save makes one"),
        (np.arange(400), "are more than 'generated' has .* 400 held out.: set them lower"),
        (b"1\n2\n", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_files_of_heldout_indices_that_do_not_fit(
    digits: Dataset, tmp_path: Path, content: object, message: str
) -> None:
    path = tmp_path / "heldout.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(UserError, match=message) as caught:
        split(digits, None, None, heldout=path)
    assert "\n" not in str(caught.value)


def test_indices_of_other_types_are_taken(digits: Dataset, tmp_path: Path) -> None:
    for indices in (np.array([[7.0], [2.0]]), np.array([7, 2], np.uint16)):
        np.save(tmp_path / "heldout.npy", indices)
        assert split(digits, None, None, heldout=tmp_path / "heldout.npy").heldout.tolist() == [
            2,
            7,
        ]
    np.savez(tmp_path / "many.npz", a=indices)
    with pytest.raises(UserError, match="is an archive of several arrays, save one"):
        split(digits, None, None, heldout=tmp_path / "many.npz")


def test_too_few_images_are_refused_unless_they_are_counted_out(digits: Dataset) -> None:
    images = digits.train.fetch(np.arange(10)).permute(0, 2, 3, 1)
    few = Dataset.from_arrays("few", images[:8], np.arange(8) % 2, images[8:], [0, 1])
    with pytest.raises(UserError, match="'few' has 8 training images: a search needs 20"):
        split(few, None, 2)
    assert len(split(few, 3, 2).train) == 5
    with pytest.raises(UserError, match=r"7 and .*_images 2 are more than 'few' has \(8 training"):
        split(few, 7, 2)


def test_a_dataset_of_ones_own_images_is_checked(digits: Dataset) -> None:
    with pytest.raises(UserError, match="has 2 classes, but its training labels run from 0 to 2"):
        replace(digits, classes=2)
    with pytest.raises(UserError, match="mean of 'generated' has 3 values"):
        replace(digits, mean=(0.5, 0.5, 0.5))


def test_why_a_network_knows_fewer_classes_is_said(digits: Dataset) -> None:
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 3)
    )
    pixels = digits.train.fetch(np.arange(60))[:, 0]
    labels = np.arange(60) % 3
    for y_train, y_test, message in (
        (labels + 1, labels[:9] + 1, r"has 4 classes: .* the labels begin at 1, subtract it"),
        (labels, np.arange(9) % 4, "no training image is of class 3, leave out its test images"),
    ):
        data = Dataset.from_arrays("counted", pixels, y_train, pixels[:9], y_test)
        with pytest.raises(UserError, match=message):
            Problem.build(parse_config({"budget": {"ratio": 0.5}}), network, data)
