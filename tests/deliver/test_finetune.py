"""Fine-tuning a run, and what is shipped afterwards."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from matplotlib.figure import Figure
from readme import BLOCKS
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from twin import twin
from zoo import Mine, command, config_of, taught

from amc.data.datasets import Dataset
from amc.deliver.evaluate import evaluate
from amc.deliver.export import export
from amc.deliver.finetune import FinetuneResult, finetune
from amc.deliver.load import load
from amc.errors import UserError
from amc.search import SearchResult, search
from amc.views.axes import draw_finetune

PRESET = "digits_resnet8_channel_macs50"
SHORT = ["allow_untrained=true", "train.epochs=3", "agent.name=uniform", "evaluate.images=200"]


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    done = command("search", PRESET, *SHORT, "--out", str(out))
    assert done.returncode == 0, done.stderr
    return next(out.glob("*/s0*"))


@pytest.fixture
def found(digits: Dataset, tmp_path: Path) -> SearchResult:
    torch.manual_seed(0)
    return search(config_of("agent.episodes=3"), model=Mine(), dataset=digits, out=tmp_path)


def log(folder: Path) -> list[str]:
    """log.csv without the seconds."""
    lines = (folder / "log.csv").read_text().splitlines()
    return [line.rpartition(",")[0] for line in lines]


def test_the_picture_shows_what_there_is_and_at_least_a_point() -> None:
    before = {"baseline_search_accuracy": 0.985, "search_accuracy": 0.9875}
    for last, limits in ((0.9875, (98.125, 99.125)), (0.5, (50 - 2.4375, 98.75 + 2.4375))):
        axes = Figure().subplots()
        epochs = [
            {"epoch": number, "heldout_accuracy": value}
            for number, value in ((1, 0.9875), (2, last))
        ]
        draw_finetune(axes, epochs, before)
        assert axes.get_ylim() == pytest.approx(limits)


def test_it_gets_the_accuracy_back_and_goes_on_where_it_ended(found: SearchResult) -> None:
    done = finetune(found, {"epochs": 8, "lr": 0.05, "augment": "none", "batch_size": 32})
    assert done.metrics["finetuned_search_accuracy"] > done.metrics["search_accuracy"] + 0.2
    assert done.metrics["finetuned_test_accuracy"] > 0.8
    assert len(log(done.path)) == 9 and (done.path / "finetune.png").stat().st_size > 10_000
    assert sum(p.numel() for p in done.model.parameters()) == found.best["params"]
    again = finetune(found)  # nothing is trained or measured again
    assert again.metrics == done.metrics
    for key, value in again.model.state_dict().items():
        assert torch.equal(value, done.model.state_dict()[key])
    with pytest.raises(UserError, match="was begun with epochs 8, not 9: name another folder"):
        finetune(found, {"epochs": 9, "lr": 0.05, "augment": "none", "batch_size": 32})
    with pytest.raises(UserError, match="unknown key 'epoch': did you mean 'epochs'"):
        finetune(found, {"epoch": 9}, to=done.path.parent / "other")


def test_the_uncompressed_network_teaches_and_is_not_modified(found: SearchResult) -> None:
    before = {k: v.clone() for k, v in found.problem.network.model.state_dict().items()}
    folder = found.run.path.parent
    results = {}
    for name, distill in (
        ("labels", {}),
        ("soft", {"soft": 1.0, "temperature": 2}),
        ("features", {"hint": 1.0, "attention": 1.0}),
    ):
        settings = {"epochs": 2, "augment": "none", "distill": distill}
        results[name] = finetune(found, settings, to=folder / name)
    weights = [tuple(r.model.state_dict()["b.weight"].flatten().tolist()) for r in results.values()]
    assert len(set(weights)) == 3
    after = found.problem.network.model.state_dict()
    assert all(torch.equal(before[key], value) for key, value in after.items())
    # taught by nothing but the teacher's outputs, it stays nearer to them
    problem = found.problem
    images = problem.dataset.normalise(problem.dataset.test.fetch(np.arange(50)))
    with torch.no_grad():
        target = problem.network.model.eval()(images).softmax(1)
        distances = {
            name: float((result.model(images).softmax(1) - target).abs().mean())
            for name, result in results.items()
        }
    assert distances["soft"] < 0.5 * distances["labels"]


def test_all_images_and_other_weights(
    digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The strategy is applied to other weights of the same network, and these are the baseline."""
    from amc.network.models import build_model

    torch.manual_seed(7)
    save_file(build_model("digits:resnet8", 10, 1).state_dict(), tmp_path / "other.safetensors")
    settings = [f"weights={tmp_path / 'other.safetensors'}", "hold_out=false", "epochs=3"]
    done = finetune(digits_run, settings, to=tmp_path / "tuned")
    assert done.metrics["baseline_test_accuracy"] < 0.4  # they are not trained
    assert done.metrics["finetuned_search_accuracy"] is None and done.metrics["best_epoch"] == 3
    assert done.metrics["finetuned_test_accuracy"] > 0.7
    with pytest.raises(UserError, match="does not exist"):
        finetune(digits_run, ["weights=nowhere.safetensors"], to=tmp_path / "nothing")


def test_killed_and_called_again_from_the_command_line(digits_run: Path, tmp_path: Path) -> None:
    settings = ["epochs=10", "ema=0.9"]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    done = command("finetune", str(digits_run), *settings, "--out", str(straight), "--json")
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout.splitlines()[-1])
    arguments = ["finetune", str(digits_run), *settings, "--out", str(killed)]
    running = subprocess.Popen(
        [sys.executable, "-m", "amc.cli", *arguments], stderr=subprocess.DEVNULL
    )
    while not (killed / "log.csv").is_file() or len(log(killed)) < 3:
        assert running.poll() is None, "it ended before it was killed"
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (killed / "metrics.json").is_file()
    done = command("finetune", str(digits_run), "--out", str(killed))  # its own settings
    assert done.returncode == 0, done.stderr
    assert log(killed) == log(straight)
    for name in ("best.safetensors", "last.safetensors"):
        assert (killed / name).read_bytes() == (straight / name).read_bytes()
    other = json.loads((killed / "metrics.json").read_text())
    assert {**other, "seconds": 0, "path": ""} == {**metrics, "seconds": 0, "path": ""}


def test_two_processes_by_torchrun(digits_run: Path, tmp_path: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "amc.cli"]
    arguments = ["finetune", str(digits_run), "epochs=3", "--out", str(tmp_path / "two"), "--json"]
    done = subprocess.run(
        [sys.executable, *launch, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finetuned_test_accuracy") == 1  # one of them speaks
    assert json.loads((tmp_path / "two" / "metrics.json").read_text())["epochs"] == 3


def test_what_is_shipped_is_the_fine_tuned_network(digits_run: Path) -> None:
    before = export(digits_run, ["safetensors"])
    assert before["finetuned_test_accuracy"] is None
    assert "not fine-tuned" in (digits_run / "export" / "README.md").read_text()
    with pytest.raises(UserError, match="holds no fine-tuning that has ended"):
        export(digits_run, finetuned=digits_run / "nothing")
    tuned = finetune(digits_run, ["epochs=5"])
    metrics = export(digits_run)
    assert metrics["test_accuracy"] == before["test_accuracy"]
    assert metrics["finetuned_test_accuracy"] == tuned.metrics["finetuned_test_accuracy"]
    assert metrics["onnx_top1_agreement"] == metrics["pt2_top1_agreement"] == 1.0
    assert metrics["onnx_max_abs_diff"] < 1e-3 and metrics["measured_latency_ms"]["ratio"] > 0
    folder = digits_run / "export"
    loaded, image = load(digits_run), torch.randn(3, 1, 8, 8)
    assert torch.allclose(loaded(image), tuned.model(image), atol=1e-5)
    program = torch.export.load(folder / "model.pt2").module()
    assert torch.allclose(program(image), tuned.model(image), atol=1e-5)
    facts = {p.key: p.value for p in onnx.load(folder / "model.onnx").metadata_props}
    assert (
        json.loads(facts["strategy"])
        == json.loads((folder / "strategy.json").read_text())["strategy"]
    )
    assert float(facts["finetuned_test_accuracy"]) == metrics["finetuned_test_accuracy"]
    card = (folder / "README.md").read_text()
    for part in (
        f"{metrics['finetuned_test_accuracy']:.2%}",
        "fine-tuned for 5 epochs",
        "amc search",
        "model.pt2",
        "| layer1.0.conv1 |",
    ):
        assert part in card
    measured = evaluate(folder, test=True)
    assert measured["finetuned_test_accuracy"] == metrics["finetuned_test_accuracy"]
    assert "test_accuracy" not in measured


def test_the_loaders_of_the_readme(digits: Dataset, tmp_path: Path) -> None:
    """Five lines from a model and two DataLoaders to a smaller model."""
    block = next(block for block in BLOCKS if "from_loaders" in block)
    assert len([line for line in block.splitlines() if line and "import" not in line]) <= 5

    def loader(images: object, shuffle: bool) -> DataLoader[object]:
        count = len(images.labels)  # type: ignore[attr-defined]
        pixels = digits.normalise(images.fetch(np.arange(count)))  # type: ignore[attr-defined]
        labels = torch.from_numpy(images.labels)  # type: ignore[attr-defined]
        return DataLoader(TensorDataset(pixels, labels), batch_size=32, shuffle=shuffle)

    torch.manual_seed(0)
    names = {
        "my_network": taught(Mine(), digits),
        "train_loader": loader(digits.train, True),
        "test_loader": loader(digits.test, False),
    }
    here = Path.cwd()
    try:
        import os

        os.chdir(tmp_path)
        exec(block, names)
    finally:
        os.chdir(here)
    smaller = names["smaller"]
    assert isinstance(smaller, nn.Module) and not smaller.training
    count = sum(p.numel() for p in smaller.parameters())
    assert count < sum(p.numel() for p in Mine().parameters())
    assert next(tmp_path.glob("runs/*/*/export/model.onnx")).is_file()


@pytest.mark.parametrize("distill", [{"soft": 0.5}, {"soft": 0.5, "hint": 0.1}])
def test_on_another_compute(digits: Dataset, tmp_path: Path, distill: dict[str, float]) -> None:
    torch.manual_seed(0)
    model, config = Mine(), config_of("agent.episodes=2", "space.repair=none")
    run = search(config, model=model, dataset=digits, out=tmp_path).run.path
    settings = {"epochs": 2, "lr": 0.05, "batch_size": 32, "precision": "fp32", "distill": distill}

    def tuned(name: str) -> FinetuneResult:
        return finetune(run, settings, model=model, dataset=digits, to=tmp_path / name)

    expected = tuned("host")
    with twin() as state:  # which `auto` takes
        found = tuned("there")
        assert state.calls > 1000
    for key, value in expected.model.state_dict().items():
        other = found.model.state_dict()[key]
        assert other.device.type == "cpu" and torch.allclose(other, value, atol=1e-5)
    strange = ("seconds", "weights_sha256")
    assert [value for key, value in found.metrics.items() if key not in strange] == [
        value for key, value in expected.metrics.items() if key not in strange
    ]
