"""A user's DataLoaders: each image once whatever draws them, and what cannot be used is refused."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from amc.data.datasets import Dataset
from amc.errors import UserError

X, Y = torch.randn(30, 3, 8, 6, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 4
BOTH = TensorDataset(X, Y)
EVEN = list(range(0, 30, 2))


class Given(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Samples that a function gives."""

    def __init__(self, sample: Callable[[int], Any], count: int = 30) -> None:
        self.sample, self.count = sample, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.sample(index)


class Own:
    """A sampler of a user's own, with the numbers it draws each time."""

    def __init__(self, *times: list[Any]) -> None:
        self.times, self.asked = times, 0

    def __iter__(self) -> Iterator[Any]:
        self.asked += 1
        return iter(self.times[self.asked % len(self.times)])

    def __len__(self) -> int:
        return len(self.times[0])


def read(loader: Any) -> Dataset:
    with_test: DataLoader[Any] = DataLoader(TensorDataset(X[:4].clone(), Y[:4]))
    return Dataset.from_loaders(loader, with_test)


def given(sample: Callable[[int], Any], **options: Any) -> Dataset:
    return read(DataLoader(Given(sample), batch_size=8, **options))


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": SubsetRandomSampler(EVEN[::-1]), "batch_size": 4},
        {"sampler": SubsetRandomSampler(EVEN), "batch_size": None},
        {"batch_sampler": BatchSampler(SubsetRandomSampler(EVEN), 4, drop_last=True)},
        {"batch_sampler": Own([EVEN[:8], EVEN[8:]], [EVEN[7:], EVEN[:7]])},
        {"sampler": Own(EVEN[::-1] + EVEN), "batch_size": 4},
        {"sampler": WeightedRandomSampler([1, 0] * 15, 30, replacement=True), "batch_size": 4},
    ],
    ids=["subset", "no batches", "batch sampler", "own batches", "own, repeated", "weights"],
)
def test_a_sampler_chooses_the_images(options: dict[str, Any]) -> None:
    data = read(DataLoader(BOTH, **options))
    assert data.train.labels.tolist() == Y[EVEN].tolist() and data.classes == 4
    assert torch.equal(data.train.fetch(np.array([3, 0])), X[[6, 0]])


def test_shuffling_repetition_and_incomplete_batches_lose_no_image() -> None:
    for options in (
        {"shuffle": True, "drop_last": True},
        {"sampler": RandomSampler(BOTH, replacement=True, num_samples=10)},
        {"sampler": RandomSampler(BOTH, num_samples=10)},
    ):
        data = read(DataLoader(BOTH, batch_size=7, **options))  # type: ignore[arg-type]
        assert data.train.labels.tolist() == Y.tolist()
        assert torch.equal(data.train.fetch(np.arange(30)), X)


def test_test_images_that_are_training_images_are_told(caplog: pytest.LogCaptureFixture) -> None:
    train, test = (DataLoader(BOTH, 4, sampler=SubsetRandomSampler(s)) for s in (EVEN, [1, 3, 5]))
    data = Dataset.from_loaders(train, test)
    assert len(data.train.labels) == 15 and len(data.test.labels) == 3 and not caplog.messages
    Dataset.from_loaders(train, DataLoader(Subset(BOTH, [1, 2, 4])))
    assert "2 of the 3 test images of 'given' are training images too" in caplog.messages[0]


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (Own([0, 1], [1, 2]), "Own of the training images of 'given' draws other images each time"),
        (Own([0, 30]), "draws image 30 of 30"),
        (Own([0, -1]), "draws image -1"),
        (Own(["a"]), "does not draw whole numbers"),
        (Own([0] * 3001), "draws more than 3000 of 30 images"),
        (Own([]), "the training images of 'given' are none"),
    ],
)
def test_samplers_that_cannot_be_used(sampler: Own, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(DataLoader(BOTH, batch_size=4, sampler=sampler))


def test_the_callers_randomness_is_left_as_it_was() -> None:
    class Drawing(RandomSampler):
        pass  # a class of its own is asked what it draws

    def sample(index: int) -> Any:
        _ = torch.rand(1), np.random.rand(), random.random()
        return X[index], Y[index]

    generator = torch.Generator().manual_seed(3)
    states = torch.get_rng_state(), generator.get_state()
    others = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    read(DataLoader(Given(sample), 8, sampler=Drawing(BOTH, generator=generator)))
    given(lambda i: (X[i], Y[i]), shuffle=True, generator=generator)
    assert torch.equal(states[0], torch.get_rng_state())
    assert torch.equal(states[1], generator.get_state())
    assert others == (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]


@pytest.mark.parametrize(
    ("sample", "options"),
    [
        (lambda i: (X[i], int(Y[i]), i), {}),
        (lambda i: {"labels": int(Y[i]), "id": i, "pixel_values": X[i]}, {}),
        (lambda i: {"image": X[i].numpy(), "target": Y[i]}, {}),
        (lambda i: (X[i], float(Y[i])), {}),
        (lambda i: (X[i], torch.nn.functional.one_hot(Y[i], 4)), {}),
        (lambda i: (X[i].double(), Y[i : i + 1]), {}),
        (lambda i: (X[i], Y[i].bfloat16()), {}),
        (
            lambda i: i,
            {"collate_fn": lambda s: (X[s].numpy(), Y[s].tolist())},
        ),
        (lambda i: (X[i], Y[i]), {"num_workers": 1}),
    ],
    ids=["three", "dict", "numpy", "float", "one-hot", "column", "bf16", "collate", "workers"],
)
def test_batches_of_many_forms(sample: Callable[[int], Any], options: dict[str, Any]) -> None:
    data = given(sample, **options)
    assert data.train.labels.tolist() == Y.tolist() and data.input_shape == (3, 8, 6)
    images = data.train.fetch(np.arange(30))
    assert torch.equal(images, X) and images.dtype == torch.float32


def test_loaders_without_batches() -> None:
    for options in ({}, {"collate_fn": lambda sample: (sample[0] * 1, sample[1])}):
        data = read(DataLoader(BOTH, batch_size=None, **options))  # type: ignore[arg-type]
        assert data.train.labels.tolist() == Y.tolist() and data.input_shape == (3, 8, 6)


def unreadable(index: int) -> Any:
    if index == 17:
        raise OSError("broken stream\nmore")
    return X[index], Y[index]


def with_nan(index: int) -> Any:
    return (X[index] / (index != 5), Y[index]) if index else (X[0], Y[0])


PIL = Image.new("RGB", (6, 8))


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (
            lambda i: (X[i], float(i) / 7),
            r"no class numbers: 0\.142857 of image 1; only classifica",
        ),
        (lambda i: (X[i], float("nan") if i == 9 else 0.0), "nan of image 9"),
        (lambda i: (X[i], (torch.arange(4) <= i).float()), r"\(1, 1, 0, 0 of image 1\): give one"),
        (lambda i: (X[i], torch.full((4,), 0.25)), "nor soft labels"),
        (lambda i: (X[i], X[i, 0]), r"are \(30, 8, 6\): give one class number an image"),
        (lambda i: (X[i], -1 if i == 12 else 1), r"hold -1 \(image 12\).*Subset"),
        (lambda i: (X[i], 2**40), "class numbers begin at 0"),
        (lambda i: (X[i], "cat"), "are text such as cat: give class numbers"),
        (lambda i: (X[i], {"boxes": X[i]}), "are no numbers"),
        (lambda i: (X[i], (0, 1)), "several values an image"),
        (lambda i: (X[i], 2), "all training images of 'given' are of class 2"),
        (lambda i: X[i], r"in batches of Tensor: \(images, labels\) were expected"),
        (lambda i: (i, X[i], 0), r"are int64 \(\): the DataLoader must give float images"),
        (lambda i: ((X[i] * 9).byte(), 0), r"are uint8 \(3, 8, 6\).*must give float images"),
        (lambda i: (X[i, 0], 0), r"are float32 \(8, 6\).*float images \(C, H, W\)"),
        (lambda i: {"a": X[i], "b": X[i], "label": 0}, "keys a, b, label: there must be one"),
        (lambda i: {"image": X[i], "grade": 0}, "named one of labels, label"),
        (lambda i: (X[i][:, : 4 + i % 2], 0), r"\(3, 4, 6\) and \(3, 5, 6\): resize or crop"),
        (lambda i: (PIL, 0), r"are PIL images: let the dataset's transform end in"),
        (lambda i: (X[i], None), r"batches \(TypeError: .*\): see its dataset and collate_fn"),
        (unreadable, r"image 17 of the dataset cannot be read \(OSError: broken stream\): repair"),
        (with_nan, "NaN or infinity in image 5 of the dataset"),
        (lambda i: (X[i] + torch.rand(1), Y[i]), "not the same when they are fetched again"),
        (lambda i: (X[i] * random.random(), Y[i]), "dataset does not augment"),
        (lambda i: (X[i] + np.random.rand(), Y[i]), "does not augment"),
    ],
)
def test_samples_that_cannot_be_used(sample: Callable[[int], Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        given(sample)
    assert "the training" in str(caught.value) or "all training" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_images_are_named_by_their_number_in_the_dataset() -> None:
    for workers in (0, 1):
        with pytest.raises(UserError, match="image 17 of the dataset cannot be read"):
            chosen = SubsetRandomSampler(range(10, 30))
            read(DataLoader(Given(unreadable), 8, sampler=chosen, num_workers=workers))
    with pytest.raises(UserError, match=r"hold -1 \(image 12\)"):
        only = Given(lambda i: (X[i], -1 if i == 12 else 1))
        read(DataLoader(only, 8, sampler=SubsetRandomSampler([2, 12, 20])))


def test_sizes_are_compared_between_batches_and_parts() -> None:
    many = Given(lambda i: (torch.zeros(1, 4 + i // 256, 4), i % 2), 300)
    with pytest.raises(UserError, match=r"differ in size, such as \(1, 4, 4\) and \(1, 5, 4\)"):
        read(DataLoader(many))
    with pytest.raises(
        UserError, match=r"training images are \(1, 4, 4\), test images \(3, 8, 6\)"
    ):
        read(DataLoader(Subset(many, range(20))))


def test_what_is_no_loader_of_numbered_images_is_refused() -> None:
    class Stream(IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[Any]:
            return iter([(X[0], 0)])

    class Counted(Stream):
        def __len__(self) -> int:
            return 1

    for dataset in (Stream(), Counted()):
        with pytest.raises(UserError, match=r"is a stream or has no length.*TensorDataset"):
            read(DataLoader(dataset))
    with pytest.raises(UserError, match=r"are a TensorDataset, no DataLoader: give torch\.utils"):
        read(BOTH)
    with pytest.raises(UserError, match=r"collate_fn makes 15 images of 30"):
        given(lambda i: (X[i], Y[i]), collate_fn=lambda s: (X[:15], Y[:15]))
