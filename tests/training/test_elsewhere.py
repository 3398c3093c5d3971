"""Training on another compute: the same training, of which nothing is read while it runs."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from twin import twin
from zoo import Mine

from amc import compute as computes
from amc.compute import HOST, Compute
from amc.data.datasets import Dataset
from amc.errors import UserError
from amc.training import trainer as training
from amc.training.distill import Distillation, Objective
from amc.training.keeper import InFolder
from amc.training.lesson import Lesson, Pictures
from amc.training.processes import Processes, joined
from amc.training.settings import DistillConfig, TrainConfig
from amc.training.trainer import Trainer, train

SETTINGS = TrainConfig(
    epochs=3, batch_size=64, lr=0.05, ema=0.9, clip=1.0, augment="shift", precision="fp32"
)  # 4 updates an epoch
Rows = list[dict[str, float]]
TEACHES = DistillConfig(soft=0.5, hint=0.1, attention=1.0, fsp=0.1)


class Counting(Mine):
    """What it gives depends on how often it was called: a graph would not know."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return super().forward(x) * (1 + self.calls % 3)


class Looking(Mine):
    """It reads a value on the host."""

    def forward(self, x: Tensor) -> Tensor:
        outputs = super().forward(x)
        return outputs if float(x.detach().max()) > 100 else 2 * outputs


class Waiting(Mine):
    """It waits for what was begun."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            torch.get_device_module(x.device).synchronize()
        return super().forward(x)


class Dropping(Mine):
    """It draws random numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(x, 0.1, self.training))


def begun(
    dataset: Dataset,
    compute: Compute,
    folder: Path,
    kind: type[nn.Module] = Mine,
    distill: DistillConfig | None = None,
    settings: TrainConfig = SETTINGS,
) -> Trainer:
    torch.manual_seed(0)
    model, teacher = kind(), Mine().eval().to(compute.device)
    objective = Objective(model, 0.1)
    if distill is not None:
        objective = Distillation(model, teacher, dataset.input_shape, distill)
    lesson = Lesson(objective, dataset, np.arange(300), np.arange(300, 400), 3)
    return Trainer(lesson, settings, Processes(compute=compute), InFolder(folder))


def history(trainer: Trainer) -> Rows:
    return [{**row, "seconds": 0.0} for row in trainer.run().epochs]


def close(
    compute: Compute, expected: list[dict[str, float]], found: list[dict[str, float]]
) -> bool:
    """As another order of sums leaves it, and a GPU's TF32."""
    rough = compute.device.type != "twin"
    for row, other in zip(expected, found, strict=True):
        if other["train_loss"] != pytest.approx(row["train_loss"], rel=0.02 if rough else 1e-6):
            return False
        if abs(other["heldout_accuracy"] - row["heldout_accuracy"]) > 0.05 * rough:
            return False
    return True


@pytest.mark.parametrize("distill", [None, TEACHES])
def test_it_is_the_same_training_there(
    digits: Dataset, elsewhere: Compute, tmp_path: Path, distill: DistillConfig | None
) -> None:
    expected = history(begun(digits, HOST, tmp_path / "host", distill=distill))
    trainer = begun(digits, elsewhere, tmp_path / "there", distill=distill)
    found = history(trainer)
    assert trainer.graphed and close(elsewhere, expected, found)
    model = trainer.lesson.objective.model
    assert {value.device.type for value in model.state_dict().values()} == {"cpu"}
    last = (tmp_path / "there" / "best.safetensors").read_bytes()
    assert len(last) == len((tmp_path / "host" / "best.safetensors").read_bytes())


def test_a_graph_gives_what_the_update_gives(
    digits: Dataset, elsewhere: Compute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = begun(digits, elsewhere, tmp_path / "graph")
    found = history(graph)
    monkeypatch.setattr(training, "quickest", lambda update, batch, rate: update)
    plain = begun(digits, elsewhere, tmp_path / "plain")
    assert history(plain) == found and graph.graphed and not plain.graphed
    both = [(tmp_path / name / "last.safetensors").read_bytes() for name in ("graph", "plain")]
    assert both[0] == both[1]


class Killed(Exception):
    """Like kill -9: nothing is written afterwards."""


@pytest.mark.parametrize("kind", [Mine, Dropping])
def test_resume_is_straight(
    digits: Dataset,
    elsewhere: Compute,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[nn.Module],
) -> None:
    expected = history(begun(digits, elsewhere, tmp_path / "straight", kind))
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(training, "CHECKPOINT_SHARE", float("inf"))

    def killed(_what: str, done: int, _total: int) -> None:
        if done in stops:
            stops.remove(done)
            raise Killed

    stops, done = [1, 6], []
    while not done:
        trainer = begun(digits, elsewhere, tmp_path / "stopped", kind)
        trainer.report = killed
        try:
            done = history(trainer)
        except Killed:
            continue
    assert done == expected and not stops and trainer.graphed == (kind is Mine)
    for name in ("best.safetensors", "last.safetensors"):
        straight = (tmp_path / "straight" / name).read_bytes()
        assert straight == (tmp_path / "stopped" / name).read_bytes()


def test_a_checkpoint_goes_on_elsewhere(digits: Dataset, tmp_path: Path) -> None:
    expected = history(begun(digits, HOST, tmp_path / "straight"))

    def killed(_what: str, done: int, _total: int) -> None:
        if done == 5:  # saved was at the end of the epoch, before
            raise Killed

    with twin():
        there = Compute.of("twin")
        trainer = begun(digits, there, tmp_path / "moved")
        trainer.report = killed
        with pytest.raises(Killed):
            trainer.run()
    again = begun(digits, HOST, tmp_path / "moved")
    assert again.progress.step == 4 and close(there, expected, history(again))


@pytest.mark.parametrize("kind", [Mine, Dropping])
def test_nothing_is_read_between_two_readings(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[nn.Module]
) -> None:
    monkeypatch.setattr(training, "READ_EVERY", 3)
    with twin() as state:
        trainer = begun(digits, Compute.of("twin"), tmp_path, kind)
        reads = []
        trainer.report = lambda what, done, total: reads.append(state.reads)
        trainer.run()
    read = {step for step in range(2, 13) if reads[step - 1] > reads[step - 2]}
    assert read == {3, 4, 6, 8, 9, 12}  # of 4 updates an epoch, and every third


def test_images_that_do_not_fit_are_sent_ahead(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with twin(memory=1e9):
        there = Compute.of("twin")
        expected = history(begun(digits, there, tmp_path / "resident"))
        assert Pictures(digits.train, np.arange(300), there).resident is not None
        monkeypatch.setattr(computes, "RESIDENT", 300 * 64 / 1e9 - 1e-12)
        assert Pictures(digits.train, np.arange(300), there).resident is None
        assert history(begun(digits, there, tmp_path / "sent")) == expected


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Counting, "gives other weights than the update itself"),
        (Looking, "called a synchronizing operation"),
        (Waiting, "not permitted when stream is capturing"),
        (Dropping, "draws random numbers"),
    ],
)
def test_what_a_graph_cannot_hold_is_done_without(
    digits: Dataset,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    kind: type[nn.Module],
    why: str,
) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 1})  # Counting has counted the trial, too
    expected = history(begun(digits, HOST, tmp_path / "host", kind, settings=settings))
    with twin(), caplog.at_level(logging.WARNING):
        trainer = begun(digits, Compute.of("twin"), tmp_path / "there", kind, settings=settings)
        found = history(trainer)
        assert not trainer.graphed and len(caplog.records) == 1 and why in caplog.text
        assert kind is Counting or close(trainer.processes.compute, expected, found)


def test_a_training_that_diverges_is_refused_by_its_name(
    digits: Dataset, elsewhere: Compute, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "READ_EVERY", 3)
    settings = TrainConfig(lr=1000, batch_size=10, epochs=2, augment="none", precision="fp32")
    with pytest.raises(UserError, match=r"diverged by update (\d*[0369]|30): take a smaller lr"):
        train(Mine(), digits, np.arange(300), settings, compute=elsewhere)


def test_processes_take_accelerators_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    for name, value in {"WORLD_SIZE": "4", "RANK": "7", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    with twin(), joined(Compute.of("twin")) as processes:
        assert processes.compute.name == "twin:1" and not processes.first
    with joined() as processes:
        assert processes.compute == HOST and processes.size == 4
