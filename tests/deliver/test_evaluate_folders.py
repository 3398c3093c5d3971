"""``amc evaluate`` on whatever folder a run leaves behind."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from amc.config import parse_config
from amc.deliver.evaluate import evaluate
from amc.deliver.export import export
from amc.deliver.finetune import finetune
from amc.deliver.load import load
from amc.errors import UserError
from amc.runs.directory import Run
from amc.search import search

SOURCE = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an export, another one of episode 0, and a fine-tuning of episode 1."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "my_evaluated.py").write_text(SOURCE)
    sys.path.insert(0, str(folder))
    config = parse_config(
        {
            "model": "my_evaluated:build",
            "dataset": "digits",
            "budget": {"ratio": 0.5},
            "evaluate": {"images": 50, "calibration_images": 50},
            "agent": {"name": "random", "episodes": 3},
            "allow_untrained": True,
        }
    )
    path = search(config, out=folder).run.path
    export(path, ["safetensors"])
    export(path, ["safetensors"], episode=0)
    finetune(path, {"epochs": 1}, episode=1)
    return path


def test_exports_of_episodes(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = evaluate(run / "episode_0" / "export", test=True)
    metrics = json.loads((run / "episode_0" / "export" / "metrics.json").read_text())
    assert found["test_accuracy"] == metrics["test_accuracy"] and found["macs"] == metrics["macs"]
    best = evaluate(run / "export", test=True)
    assert best["test_accuracy"] == evaluate(run, test=True)["test_accuracy"]
    assert evaluate(run / "episode_0")["macs"] == found["macs"]
    shapes = [
        {key: value.shape for key, value in load(folder).state_dict().items()}
        for folder in (run / "episode_0", run / "episode_0" / "export")
    ]
    assert shapes[0] == shapes[1]
    monkeypatch.chdir(run / "episode_0" / "export")
    assert evaluate(".", test=True)["test_accuracy"] == found["test_accuracy"]


def test_a_fine_tuning(run: Path, tmp_path: Path) -> None:
    folder = run / "episode_1" / "finetune"
    metrics = json.loads((folder / "metrics.json").read_text())
    found = evaluate(folder, test=True)
    assert found["finetuned_test_accuracy"] == metrics["finetuned_test_accuracy"]
    assert found["macs"] == Run.open(run).lines()[1]["macs"]
    elsewhere = tmp_path / "tuned"
    shutil.copytree(folder, elsewhere)
    with pytest.raises(UserError, match=r"lies in no run.*amc export RUN --finetuned FOLDER"):
        evaluate(elsewhere)
    inside = run / "begun"
    shutil.copytree(folder, inside)
    (inside / "metrics.json").unlink()
    with pytest.raises(UserError, match="has not ended"):
        evaluate(inside)
    with pytest.raises(UserError, match="is not a run directory, but a fine-tuning's"):
        export(folder)
    with pytest.raises(UserError, match=r"no strategy\.json"):
        load(folder)


def test_an_export_elsewhere_is_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "export", tmp_path / "copied")
    with pytest.raises(UserError, match=f"lies in no run, but was made by the run '{run.name}'"):
        evaluate(tmp_path / "copied")
    assert load(tmp_path / "copied").state_dict(), "it can be loaded anywhere"


def test_an_export_in_another_run_is_refused(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    assert evaluate(other / "export")["macs"], "a run may be moved"
    strategy = json.loads((other / "export" / "strategy.json").read_text())
    (other / "export" / "strategy.json").write_text(json.dumps({**strategy, "space": "lowrank"}))
    with pytest.raises(UserError, match="not of the run"):
        evaluate(other / "export")


def test_a_folder_that_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run directory"):
        evaluate(tmp_path)
