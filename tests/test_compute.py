"""What a search runs on."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from twin import STATE, twin

from amc import compute
from amc.compute import HOST, Compute, Frugal, full_precision, only, share
from amc.errors import UserError


def test_names() -> None:
    assert Compute.of("cpu") == HOST and HOST.name == "cpu" and not HOST.is_accelerator
    with twin():
        assert Compute.of().name == Compute.of("twin").name == Compute.of("twin:0").name == "twin:0"
        assert Compute.of("twin:1").device == torch.device("twin", 1)
        assert Compute.of("twin").hardware and not HOST.hardware
        for name in ("twin:2", "cuda:9", "nonsense"):
            with pytest.raises(UserError, match="twin:0 to twin:1"):
                Compute.of(name)
    with pytest.raises(UserError, match="finds no accelerator here: take auto or cpu"):
        Compute.of("twin")


def test_auto_takes_no_accelerator_without_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "_doubles", lambda device: False)
    with twin():
        assert Compute.of() == HOST
        with pytest.raises(UserError, match="does not know float64"):
            Compute.of("twin")


def test_what_works_side_by_side_takes_the_accelerators_in_turn() -> None:
    with twin():
        for name in ("auto", "twin"):
            workers = [Compute.of(name).of_worker(number).name for number in range(3)]
            assert workers == ["twin:0", "twin:1", "twin:0"]
        assert Compute.of("twin:1").of_worker(0).name == "twin:1"
    assert HOST.of_worker(3) == HOST


@pytest.mark.parametrize(
    "gpus, jobs, part", [(0, 3, 0), (1, 1, 1), (1, 3, 1 / 3), (2, 3, 1 / 2), (4, 2, 1)]
)
def test_a_share_lets_all_work_at_once(gpus: int, jobs: int, part: float) -> None:
    assert share(gpus, jobs) == pytest.approx(part)
    if gpus:
        assert gpus * math.floor(1 / share(gpus, jobs) + 1e-9) >= jobs


def test_a_process_finds_one_gpu_of_those_that_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(0) == {}
    monkeypatch.setattr(compute, "accelerator", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(compute, "count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [only(i)["CUDA_VISIBLE_DEVICES"] for i in range(3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-abc")
    assert [only(i)["CUDA_VISIBLE_DEVICES"] for i in range(3)] == ["5", "GPU-abc", "5"]


def test_tensors_stay_on_the_host_where_there_is_no_room() -> None:
    with twin(memory=1000):
        there = Compute.of("twin")
        assert there.resident(torch.zeros(100)).device.type == "twin"
        assert there.resident(torch.zeros(1000)).device.type == "cpu"
        with pytest.raises(torch.OutOfMemoryError):
            there.put(torch.zeros(1000))


def test_pieces_are_halved_until_they_fit(caplog: pytest.LogCaptureFixture) -> None:
    with twin(memory=1000), caplog.at_level(logging.WARNING):
        pieces = Frugal(1000)
        assert pieces(Compute.of("twin"), lambda size: len(torch.zeros(size, device="twin"))) == 250
        assert pieces.size == 250
        assert caplog.messages[-1].endswith(
            "twin:0 did not suffice: from now on batches of 250 images"
        )
        with pytest.raises(torch.OutOfMemoryError):
            Frugal(8, least=4)(HOST, lambda size: torch.zeros(1000, device="twin"))
        with pytest.raises(ZeroDivisionError):
            pieces(HOST, lambda size: size // 0)
    assert pieces.size == 250


def test_where_float64_is_slow_the_host_solves() -> None:
    with twin():
        assert Compute.of("twin").solver.type == "twin"
        STATE.capability = (8, 9)
        try:
            assert Compute.of("twin").solver.type == "cpu"
        finally:
            STATE.capability = (9, 0)
    assert HOST.solver.type == "cpu"


def test_float32_is_float32_and_settings_are_left_as_they_were() -> None:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    with full_precision():
        assert not torch.backends.cudnn.allow_tf32 and torch.backends.cudnn.deterministic
    assert before == (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic)
