"""The trainer: it learns, goes on exactly where it was stopped, and in several processes alike."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from zoo import Mine

from amc.data.datasets import Dataset
from amc.errors import UserError
from amc.training import trainer as training
from amc.training.augment import DRAWS, augmented, cropped, shifted
from amc.training.distill import Objective
from amc.training.history import Progress
from amc.training.keeper import InFolder, InMemory
from amc.training.lesson import Lesson
from amc.training.processes import Processes
from amc.training.settings import TrainConfig
from amc.training.trainer import Trainer, train

ALONE = Processes()


def lesson(dataset: Dataset, model: nn.Module | None = None, seed: int = 3) -> Lesson:
    torch.manual_seed(0)
    objective = Objective(model or nn.Sequential(Mine(), nn.Dropout(0.1)))
    return Lesson(objective, dataset, np.arange(300), np.arange(300, 400), seed)


SETTINGS = TrainConfig(
    epochs=3, batch_size=64, lr=0.05, ema=0.9, clip=1.0, label_smoothing=0.1, augment="shift"
)


def test_it_learns_and_takes_the_best_epoch(digits: Dataset, tmp_path: Path) -> None:
    model = Mine()
    settings = TrainConfig(epochs=6, batch_size=32, lr=0.1, augment=False)
    done = Trainer(lesson(digits, model), settings, ALONE, InFolder(tmp_path)).run()
    accuracies = [row["heldout_accuracy"] for row in done.epochs]
    assert accuracies[-1] > 0.9 and done.best["heldout_accuracy"] == max(accuracies)
    assert done.epochs[-1]["train_loss"] < 0.5 * done.epochs[0]["train_loss"]
    images = digits.normalise(digits.train.fetch(np.arange(300, 400)))
    assert not model.training
    correct = (model(images).argmax(1).numpy() == digits.train.labels[300:400]).mean()
    assert correct == pytest.approx(max(accuracies))
    assert {"best.safetensors", "last.safetensors"} <= {path.name for path in tmp_path.iterdir()}


def test_the_last_epoch_is_the_result_where_nothing_is_held_out(digits: Dataset) -> None:
    model = Mine()
    own = Lesson(Objective(model), digits, np.arange(300))
    done = Trainer(own, TrainConfig(epochs=2, augment=False), ALONE, InMemory(ALONE)).run()
    assert done.best is done.epochs[-1] and done.best["heldout_accuracy"] is None


def test_of_equally_good_epochs_the_last_is_the_result() -> None:
    rows = [{"epoch": i + 1, "heldout_accuracy": a} for i, a in enumerate([0.5, 0.9, 0.9, 0.8])]
    assert Progress(epochs=rows).best["epoch"] == 3


class Killed(Exception):
    """Like kill -9: nothing is written afterwards."""


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_resume_is_straight(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    straight, stopped = lesson(digits), lesson(digits)
    expected = Trainer(straight, SETTINGS, ALONE, InFolder(tmp_path / "straight")).run()
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(training, "CHECKPOINT_SHARE", float("inf"))

    def killed(_what: str, done: int, _total: int) -> None:
        if done == stop:
            raise Killed

    with pytest.raises(Killed):
        keeper = InFolder(tmp_path / "stopped")
        Trainer(stopped, SETTINGS, ALONE, keeper, "training", killed).run()
    again = lesson(digits)  # a new process knows nothing
    found = Trainer(again, SETTINGS, ALONE, InFolder(tmp_path / "stopped"))
    assert found.progress.step == stop
    done = found.run()
    for row, other in zip(expected.epochs, done.epochs, strict=True):
        assert {**row, "seconds": 0} == {**other, "seconds": 0}
    for name in ("best.safetensors", "last.safetensors"):
        straight_bytes = (tmp_path / "straight" / name).read_bytes()
        assert straight_bytes == (tmp_path / "stopped" / name).read_bytes()


TOGETHER = """
import sys
import numpy as np, torch
from pathlib import Path
from torch import nn
from amc.data.datasets import Dataset
from amc.training.distill import Objective
from amc.training.keeper import InFolder
from amc.training.processes import joined
from amc.training.settings import TrainConfig
from amc.training.lesson import Lesson
from amc.training.trainer import Trainer

torch.set_num_threads(1)
torch.manual_seed(0)
x = np.random.default_rng(0).integers(0, 255, (120, 8, 8, 1)).astype(np.uint8)
y = np.arange(120) % 3
data = Dataset.from_arrays("some", x, y, x, y)
norm = [nn.BatchNorm2d(4)] if sys.argv[3] == "norm" else []
ema = None if norm else 0.5
model = nn.Sequential(nn.Conv2d(1, 4, 3), *norm, nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
with joined() as processes:
    lesson = Lesson(Objective(model), data, np.arange(40), np.arange(40, 120))
    size = 4 if norm else 20  # few images a process: their statistics differ
    settings = TrainConfig(epochs=2, batch_size=size, lr=0.05, ema=ema, precision="fp32")
    done = Trainer(lesson, settings, processes, InFolder(Path(sys.argv[1]))).run()
    assert processes.size == int(sys.argv[2])
    outputs = model(data.normalise(data.train.fetch(np.arange(40, 120))))
    correct = int((outputs.argmax(1).numpy() == y[40:120]).sum())
    if processes.first:
        torch.save([model.state_dict(), done.epochs, correct], sys.argv[1] + "/result.pt")
"""


def together(folder: Path, size: int, kind: str) -> list[Any]:
    """State, epochs and right answers of a training by torchrun."""
    script = folder / "together.py"
    script.write_text(TOGETHER)
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    done = subprocess.run(
        [sys.executable, *launch, str(script), str(folder), str(size), kind],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[Any] = torch.load(folder / "result.pt")
    return found


def test_what_is_reported_of_two_processes_is_what_the_file_has(tmp_path: Path) -> None:
    """Each has normalised other images, so each has other running statistics."""
    _, epochs, correct = together(tmp_path, 2, "norm")
    best = max(row["heldout_accuracy"] for row in epochs)
    assert round(best * 80) == pytest.approx(best * 80) and round(best * 80) == correct


def test_two_processes_compute_what_one_computes(tmp_path: Path) -> None:
    found = {}
    for size in (1, 2):
        folder = tmp_path / str(size)
        folder.mkdir()
        found[size] = together(folder, size, "plain")
    (one, epochs, _), (two, others, _) = found[1], found[2]
    assert all(torch.allclose(one[key], two[key], atol=1e-5) for key in one)
    for row, other in zip(epochs, others, strict=True):
        assert row["heldout_accuracy"] == other["heldout_accuracy"]
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)


def test_what_cannot_be_trained_is_refused_in_one_sentence(digits: Dataset, tmp_path: Path) -> None:
    three = Processes(0, 3)
    with pytest.raises(UserError, match="multiple of the 3 processes"):
        Trainer(lesson(digits), SETTINGS, three, InFolder(tmp_path))
    with pytest.raises(UserError, match="diverged by update"):
        train(Mine(), digits, np.arange(300), TrainConfig(lr=1000, augment=False))
    with pytest.raises(UserError, match="one process"):
        InMemory(three)


def test_shifts_move_and_mirror_whole_images() -> None:
    image = torch.arange(1.0, 65.0).reshape(1, 1, 8, 8)
    middle = torch.full((1, DRAWS), 0.5)  # no shift, not mirrored
    assert torch.equal(shifted(image, middle), image)
    mirrored = middle.clone()
    mirrored[0, 2] = 0.0
    assert torch.equal(shifted(image, mirrored), image.flip(3))
    up = middle.clone()
    up[0, 0] = 0.0  # the last row of padding comes in
    assert torch.equal(shifted(image, up)[0, 0, 1:], image[0, 0, :-1])
    assert shifted(image, up)[0, 0, 0].abs().max() == 0


def test_crops_take_a_part_and_resize_it() -> None:
    ramp = torch.linspace(-1, 1, 32).expand(1, 1, 32, 32).contiguous()
    draws = torch.tensor([[1.0, 0.5, 0.5, 0.5, 0.9]])  # all of the area, as it is
    assert torch.allclose(cropped(ramp, draws), ramp, atol=1e-5)
    draws[0, 4] = 0.0
    assert torch.allclose(cropped(ramp, draws), ramp.flip(3), atol=1e-5)
    quarter = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.9]])  # of the area, at the left
    part = cropped(ramp, quarter)
    assert part.max() == pytest.approx(0.0, abs=0.05) and part.min() == pytest.approx(-1, abs=0.05)


def test_augmentation_depends_on_the_size_where_it_is_automatic() -> None:
    draws = torch.rand(2, DRAWS)
    small, large = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 96, 96)
    assert torch.equal(augmented(small, draws, "auto"), shifted(small, draws))
    assert torch.equal(augmented(large, draws, "auto"), cropped(large, draws))
    assert augmented(small, draws, "none") is small
    assert TrainConfig.model_validate({"augment": False}).augment == "none"
    assert TrainConfig.model_validate({"augment": True}).augment == "auto"
