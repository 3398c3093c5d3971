"""Where images come from, and how they are divided."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from amc.data.datasets import Dataset, load_dataset
from amc.data.places import find_file
from amc.data.splits import split
from amc.errors import UserError
from amc.network.torchvision_compat import torchvision


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


def test_loaders_that_cannot_be_used_are_refused(digits: Dataset) -> None:
    pixels, labels = digits.train.fetch(np.arange(20)), torch.arange(20) % 3
    uint8 = DataLoader(TensorDataset(pixels, labels))
    with pytest.raises(UserError, match="must give float images"):
        Dataset.from_loaders(uint8, uint8)

    class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> object:
            return iter(())

    stream: DataLoader[object] = DataLoader(Stream())
    with pytest.raises(UserError, match="has no length"):
        Dataset.from_loaders(stream, stream)


def test_loaders_are_read_in_the_order_of_their_dataset(digits: Dataset) -> None:
    pixels, labels = torch.randn(70, 1, 8, 8), torch.arange(70) % 3
    loader: DataLoader[object] = DataLoader(TensorDataset(pixels, labels), 16, shuffle=True)
    data = Dataset.from_loaders(loader, loader)
    assert data.train.labels.tolist() == labels.tolist() and data.classes == 3
    assert torch.equal(data.train.fetch(np.array([5, 2, 69])), pixels[[5, 2, 69]])
    assert torch.equal(data.normalise(pixels), pixels)
