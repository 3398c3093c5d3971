"""What `make gpu` runs on a GPU, here on the processor's twin and small."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import torch
from twin import twin
from zoo import Mine, config_of, taught

from amc.compute import Compute
from amc.data.datasets import Dataset
from amc.problem import Problem


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "experiments" / "speed"))
    import gpu

    monkeypatch.setattr(gpu, "MATRIX", 64)
    monkeypatch.setattr(gpu, "COPY", 1024)
    threads = torch.get_num_threads()
    monkeypatch.setattr(gpu, "THREADS", threads)
    yield gpu
    for name in ("gpu", "training", "generated"):
        sys.modules.pop(name, None)


def test_both_computes_are_compared(
    script: ModuleType, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = taught(Mine(), digits)

    def small(network: str, compute: str, sizes: object) -> Problem:
        return Problem.build(config_of(f"compute={compute}"), model, digits)

    monkeypatch.setattr(script, "problem_of", small)
    table = tmp_path / "gpu.csv"
    with twin():
        arguments = ["--compute", "twin", "--part", "resnet56", "--images", "100"]
        assert script.main([*arguments, "--to", str(table)]) == 0
    rows = pd.read_csv(table)
    episodes = rows[rows["part"] == "episode"]
    assert list(episodes["compute"]) == ["twin:0", "cpu"]
    assert (episodes["seconds"] > 0).all() and (episodes["repair"] > 0).all()
    assert episodes["accuracy"].nunique() == 1
    assert set(rows["part"]) >= {"copy", "matrix product fp32", "matrix product bf16"}


def test_epochs_stand_in_the_table(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training import EpochTime

    def timed(network: str, teacher: bool, compute: Compute, *asked: int) -> EpochTime:
        assert asked == (100, 7)
        return EpochTime(network, teacher, compute.name, "bf16", True, 1.0 + teacher, 100)

    monkeypatch.setattr(script, "epoch_seconds", timed)
    table = tmp_path / "gpu.csv"
    arguments = ["--compute", "cpu", "--part", "epoch", "--images", "100", "--updates", "7"]
    assert script.main([*arguments, "--to", str(table)]) == 0
    rows = pd.read_csv(table).query("part.str.startswith('epoch')")
    assert list(rows["network"]) == ["resnet56", "resnet56", "resnet20", "resnet20"]
    assert list(rows["seconds"]) == [1.0, 2.0, 1.0, 2.0] and set(rows["note"]) == {"graph"}


def test_what_failed_is_told_from_what_is_slow(script: ModuleType) -> None:
    row = script.Row("episode", "resnet56", "cuda:0", "", "fp16", 1, 1, 0.4, times_faster=20)
    there = dataclasses.replace(row, accuracy=0.9)
    here = dataclasses.replace(row, compute="cpu", accuracy=0.9, seconds=8.0)
    assert script.failures([there, here]) == ([], [])
    wrong, slow = script.failures([dataclasses.replace(there, accuracy=0.898), here])
    assert "differ by 0.20 points" in wrong[0] and not slow
    wrong, slow = script.failures([dataclasses.replace(there, seconds=0.7, times_faster=11), here])
    assert not wrong and len(slow) == 2
    epoch = dataclasses.replace(row, part="epoch", seconds=2.0)
    teacher = dataclasses.replace(row, part="epoch with a teacher", seconds=3.5)
    assert script.failures([epoch, teacher])[1] == [
        "resnet56: 1.75 times with a teacher, to be 1.5"
    ]


def test_without_a_gpu_a_sentence(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--compute", "twin"]) == 2
    assert "torch finds no accelerator" in capsys.readouterr().err
