"""In which precision and by how many images networks are measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from amc.data.datasets import Dataset
from amc.errors import UserError
from amc.evaluate import pace
from amc.evaluate.measure import ImageSet
from amc.evaluate.pace import Pace, choose
from amc.network.builtin import CifarResNet
from amc.network.trace import Network


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network.of(CifarResNet(1, num_classes=3, in_channels=1, width=4), (1, 8, 8))


@pytest.fixture
def images(digits: Dataset) -> ImageSet:
    return ImageSet.of(digits, digits.train, np.arange(300))


def clock(monkeypatch: pytest.MonkeyPatch, seconds: dict[tuple[str, int], float]) -> list[Pace]:
    """Let time pass as a table says, and all be enough work to choose."""
    asked: list[Pace] = []

    def took(_network: Network, _images: ImageSet, one: Pace) -> float:
        asked.append(one)
        return seconds.get((one.precision, one.batch_size), 9.0)

    monkeypatch.setattr(pace, "seconds", took)
    monkeypatch.setattr(pace, "WORTH", 0)
    monkeypatch.setattr(pace, "precisions", lambda images: ["fp32", "fp16", "bf16"])
    return asked


def test_the_fastest_is_taken(
    network: Network, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = choose(network, images)[0].batch_size
    larger = int(2.5 * usual)
    clock(monkeypatch, {("fp32", usual): 1.0, ("bf16", larger): 0.5})
    found, reference = choose(network, images)
    assert found == Pace("bf16", larger) and reference.dtype == torch.float32
    clock(monkeypatch, {("fp32", usual): 1.0, ("bf16", larger): 0.95})  # hardly faster
    assert choose(network, images)[0] == Pace("fp32", usual)
    clock(monkeypatch, {("fp32", usual): 1.0, ("bf16", larger): 0.5, ("fp32", larger): 0.4})
    assert choose(network, images)[0] == Pace("fp32", larger)


def test_half_the_precision_is_taken_only_where_it_agrees(
    network: Network, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = choose(network, images)[0].batch_size
    clock(monkeypatch, {("fp32", usual): 1.0, ("fp16", usual): 0.4, ("bf16", usual): 0.5})
    monkeypatch.setattr(pace, "AGREEMENT", -1.0)
    found = choose(network, images)[0]
    assert found.precision == "fp32" and "using fp32" in found.note
    assert "fp16 differs" in found.note and "bf16 differs" in found.note
    for asked in ("bf16", "fp16"):
        with pytest.raises(UserError, match=f"{asked}, but {asked} differs from fp32"):
            choose(network, images, asked)
    monkeypatch.setattr(pace, "AGREEMENT", 1.0)
    assert choose(network, images)[0].precision == "fp16"
    assert choose(network, images, "fp32")[0].precision == "fp32"


def test_what_overflows_is_not_taken(
    images: ImageSet, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp16 ends at 65,504, bf16 does not."""
    last = [module for module in network.model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        last.weight.mul_(1e6)
        assert last.bias is not None
        last.bias.mul_(1e6)
    usual = choose(network, images)[0].batch_size
    clock(monkeypatch, {("fp32", usual): 1.0, ("fp16", usual): 0.4, ("bf16", usual): 0.5})
    monkeypatch.setattr(pace, "AGREEMENT", 1.0)
    assert choose(network, images)[0].precision == "bf16"


def test_what_is_no_work_is_not_timed(
    network: Network, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = clock(monkeypatch, {})
    monkeypatch.setattr(pace, "WORTH", 1e15)
    assert choose(network, images)[0].precision == "fp32" and not asked
    assert choose(network, images, batch_size=7)[0].batch_size == 7


def test_a_batch_size_that_was_asked_for_is_kept(
    network: Network, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(monkeypatch, {("fp16", 7): 0.1})
    assert choose(network, images, batch_size=7)[0] == Pace("fp16", 7)


def test_real_times_choose_what_runs(
    network: Network, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a table, whatever this machine takes gives the outputs of the network."""
    monkeypatch.setattr(pace, "WORTH", 0)
    found, reference = choose(network, images)
    assert found.precision in pace.DTYPES and 1 <= found.batch_size <= 300
    assert reference.shape == (300, 3)
