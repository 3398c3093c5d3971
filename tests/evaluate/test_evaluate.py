"""Data, splits, inference, rewards, budgets."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from zoo import config_of, zoo_network

from amc.cost.budget import Budget
from amc.cost.cost import Cost
from amc.data.datasets import Dataset, load_dataset
from amc.data.splits import split
from amc.errors import UserError
from amc.evaluate import prepare, rewards
from amc.evaluate.fusion import FusedConv
from amc.evaluate.measure import ImageSet, logits, score
from amc.evaluate.prepare import has_bf16_units, prepared
from amc.evaluate.rewards import Score
from amc.network.builtin import CifarResNet
from amc.network.layers import example_input
from amc.problem import Problem
from amc.progress import Clock


def test_splits_do_not_overlap_and_are_seeded(digits: Dataset) -> None:
    one, two, other = (split(digits, 100, 50, seed) for seed in (0, 0, 1))
    assert not set(one.heldout) & set(one.calibration) and not set(one.heldout) & set(one.train)
    assert set(one.calibration) <= set(one.train)
    assert len(one.heldout) == 100 and len(one.calibration) == 50 and len(one.train) == 300
    assert np.array_equal(one.heldout, two.heldout) and not np.array_equal(
        one.heldout, other.heldout
    )


def test_heldout_indices_from_a_file(digits: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "heldout.npy"
    np.save(path, np.arange(120))
    parts = split(digits, 60, 50, 0, path)
    assert all(
        np.array_equal(getattr(parts, name), getattr(split(digits, 60, 50, 7, path), name))
        for name in ("heldout", "calibration", "train")
    ), "searches of all seeds are of one problem"
    assert set(parts.heldout) < set(range(120)) and len(parts.heldout) == 60
    assert min(parts.train) == 120, "all indices of the file are kept out of training"
    np.save(path, np.array([1, 1, 2]))
    with pytest.raises(UserError, match="different indices"):
        split(digits, 2, 50, 0, path)


def test_digits_and_npz(tmp_path: Path) -> None:
    digits = load_dataset("digits", tmp_path)
    assert digits.input_shape == (1, 8, 8) and digits.classes == 10
    assert len(digits.train.labels) == 1437 and len(digits.test.labels) == 360
    normal = digits.normalise(digits.train.fetch(np.arange(1437)))
    assert abs(float(normal.mean())) < 0.02 and float(normal.std()) == pytest.approx(1, abs=0.02)
    rng = np.random.default_rng(0)
    arrays = {
        f"x_{p}": rng.integers(0, 255, (n, 6, 7, 3), np.uint8)
        for p, n in (("train", 20), ("test", 5))
    }
    np.savez(tmp_path / "mine.npz", y_train=np.arange(20) % 4, y_test=np.arange(5) % 4, **arrays)
    mine = load_dataset("npz:mine.npz", tmp_path)
    assert mine.input_shape == (3, 6, 7) and mine.classes == 4
    assert torch.equal(
        mine.test.fetch(np.array([2]))[0], torch.from_numpy(arrays["x_test"][2]).permute(2, 0, 1)
    )


def test_image_folder(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for index in range(3):
                Image.new("RGB", (40, 30), (index * 20, 0, 200)).save(
                    tmp_path / part / name / f"{index}.png"
                )
    data = load_dataset(f"imagefolder:{tmp_path}", tmp_path, image_size=16)
    assert data.classes == 2 and data.input_shape == (3, 16, 16)
    assert data.train.fetch(np.array([0, 4])).shape == (2, 3, 16, 16)


def test_cifar10_missing_says_what_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from amc.data import datasets as data

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(data.torchvision.datasets, "CIFAR10", refuse)
    with pytest.raises(UserError, match=r"put cifar10\.npz"):
        load_dataset("cifar10", tmp_path)


@pytest.mark.parametrize("name", ["resnet20", "tv_mobilenet_v2", "tv_densenet", "tv_shufflenet_v2"])
def test_preparing_for_inference_changes_nothing(name: str) -> None:
    network = zoo_network(name)
    fast = prepared(network.model, network)
    image = example_input(network.model, network.input_shape, batch=2)
    with torch.no_grad():
        got, expected = fast(image), network.model(image)
    assert torch.allclose(got, expected, atol=1e-4 * float(expected.abs().max()))
    norms = [m for m in fast.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == len(
        network.table.by_name.keys()
        & {n for n, m in network.model.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    ) - len(network.table.folds)


def test_logits_do_not_depend_on_the_batch_size(digits: Dataset) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    images = ImageSet.of(digits, digits.test, np.arange(50))
    a, b = logits(model, images, 50), logits(model, images, 7)
    assert torch.allclose(a, b, atol=1e-6) and a.shape == (50, 3)


def test_score() -> None:
    outputs, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]]), torch.tensor([0, 1, 1])
    result = score(outputs, labels, outputs)
    assert result.accuracy == pytest.approx(2 / 3) and result.kl == pytest.approx(0, abs=1e-12)
    assert result.cross_entropy == pytest.approx(
        float(torch.nn.functional.cross_entropy(outputs, labels))
    )
    assert score(outputs.flip(1), labels, outputs).kl > 1
    assert isinstance(has_bf16_units(), bool)


def test_bf16_without_fusion_where_the_processor_cannot_fuse_it(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without AVX-512, oneDNN refuses bf16 convolutions that are fused."""
    monkeypatch.setattr(prepare, "fuses_bf16", lambda: False)
    model = CifarResNet(1, num_classes=3, in_channels=1, width=4)
    network = Problem.build(config_of(), model, digits).network
    half = prepared(network.model, network, torch.bfloat16)
    assert not any(isinstance(module, FusedConv) for module in half.modules())
    images = ImageSet.of(digits, digits.test, np.arange(50))
    outputs = logits(half, images, 50)
    expected = logits(network.model, images, 50)
    assert torch.allclose(outputs, expected, atol=0.05 * float(expected.abs().max()))


def test_a_clock_counts_inner_parts_apart() -> None:
    clock = Clock()
    with clock("outer"):
        time.sleep(0.02)
        with clock("inner"):
            time.sleep(0.03)
    seconds = clock.take()
    assert 0.02 <= seconds["outer"] < 0.03 <= seconds["inner"]
    assert clock.take() == {}


def test_rewards_are_the_papers() -> None:
    good, budget = Score(0.9, 0.3, 0.1), Budget("macs", 50)
    cost, original = Cost(100, 10, 1000, 2.0), Cost(200, 20, 2000, 4.0)
    value = {
        name: getattr(rewards, name)(good, cost, original, budget)
        for name in (
            "accuracy",
            "cross_entropy",
            "kl",
            "macs",
            "params",
            "memory",
            "latency",
            "mnasnet",
        )
    }
    assert value["accuracy"] == pytest.approx(-0.1)
    assert (value["cross_entropy"], value["kl"]) == (-0.3, -0.1)
    assert value["macs"] == pytest.approx(-0.1 * math.log(100)) and value[
        "params"
    ] == pytest.approx(-0.1 * math.log(10))
    assert value["memory"] == pytest.approx(-0.1 * math.log(1000))
    assert value["mnasnet"] == pytest.approx(0.9 * 2**-0.07)
    cheaper = Cost(50, 5, 500, 1.0)
    for name in ("macs", "params", "memory", "latency", "mnasnet"):
        assert getattr(rewards, name)(good, cheaper, original, budget) > value[name]


def test_budget() -> None:
    original = Cost(1000, 100, 10)
    assert Budget.of("macs", original, ratio=0.5).limit == 500
    assert Budget.of("params", original, limit=42).limit == 42
    for ratio, limit in ((None, None), (0.5, 3), (0, None), (1.01, None), (None, -1)):
        with pytest.raises(UserError):
            Budget.of("macs", original, ratio, limit)
    budget = Budget("macs", 7)
    for choices in ((1, 3, 5, 7, 9), (7, 8), (1, 2), (7,), (9, 10)):
        got = budget.largest_feasible(choices, lambda choice: Cost(choice, 0, 0))
        assert got == max((c for c in choices if c <= 7), default=choices[0])
    with pytest.raises(ValueError, match="without a device"):
        _ = original["latency_ms"]
