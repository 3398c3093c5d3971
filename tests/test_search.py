"""Searches, resumed searches, and what goes wrong around them."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn
from zoo import Mine, command, config_of, journal

from amc.config import parse_config
from amc.data.datasets import Dataset
from amc.deliver.evaluate import evaluate
from amc.deliver.export import export
from amc.deliver.load import load
from amc.errors import UserError
from amc.network.layers import evaluating, example_input
from amc.problem import Problem
from amc.progress import ConsoleReport
from amc.runs.directory import Run
from amc.search import resume, search

TINY = [
    "evaluate.images=100",
    "evaluate.calibration_images=60",
    "train.epochs=2",
    "allow_untrained=true",
    "agent.warmup_episodes=4",
]
PRESET = "digits_resnet8_channel_macs50"


def test_a_users_own_network_and_data(digits: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Mine().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = search(config_of(), model=model, dataset=digits, out=tmp_path)
    assert model.training and all(
        torch.equal(before[key], value) for key, value in model.state_dict().items()
    )
    lines = result.run.lines()
    assert [line["phase"] for line in lines] == ["uniform"] + ["warmup"] * 4 + ["explore"] * 6
    assert all(
        line["feasible"] and line["macs"] <= 0.5 * result.best["baseline"]["macs"] for line in lines
    )
    assert result.best["reward"] == max(line["reward"] for line in lines)
    assert {"search.png", "layers.csv", "provenance.json", "config.yaml", "best.json"} <= set(
        os.listdir(result.run.path)
    )

    metrics = export(result.run.path, model=Mine(), dataset=digits)
    assert metrics["macs"] == result.best["macs"] and metrics["onnx_max_abs_diff"] < 1e-4
    assert metrics["finetuned_test_accuracy"] is None and 0 <= metrics["test_accuracy"] <= 1
    loaded = load(result.run.path / "export", model=Mine())
    expected = result.problem.space.apply(result.best["strategy"])
    image = example_input(loaded, (1, 8, 8), batch=3)
    with evaluating(expected):
        assert torch.allclose(loaded(image), expected(image), atol=1e-6)
    loaded.train()(image).sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())
    counted = sum(p.numel() for p in loaded.parameters())
    assert counted == result.best["params"]
    with pytest.raises(UserError, match="given from Python"):
        load(result.run.path / "export")


def test_a_users_own_function_may_give_a_trained_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_network.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef build():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    overrides = ["dataset=digits", "model=my_network:build", "budget.ratio=0.5"]
    overrides += ["allow_untrained=true"]
    config = parse_config({"evaluate": {"images": 50, "calibration_images": 50}}, overrides)
    config = parse_config(config.model_dump(), ["agent.episodes=3", "agent.warmup_episodes=2"])
    path = search(config, out=tmp_path).run.path
    before = journal(path)
    resume(path)
    assert journal(path) == before
    assert load(export_path(path)).state_dict()["1.weight"].shape[1] == 64


def export_path(run: Path) -> Path:
    export(run, ["safetensors"])
    return run / "export"


def test_nothing_is_measured_twice(digits: Dataset) -> None:
    problem = Problem.build(config_of(), Mine(), digits)
    evaluator = problem.evaluator()
    first = evaluator(problem.space.uniform(0.5))
    problem.space.apply = None  # type: ignore[assignment,method-assign]
    again = evaluator(problem.space.uniform(0.5))
    assert again == replace(first, seconds=again.seconds, profile=again.profile)


@pytest.mark.parametrize(
    "overrides", [[], ["reward=kl", "evaluate.images=300", "evaluate.racing=0.5"]]
)
def test_law_3_resumed_after_any_episode_is_as_straight(
    digits: Dataset, tmp_path: Path, overrides: list[str]
) -> None:
    torch.manual_seed(0)
    model, config = Mine(), config_of(*overrides)
    straight = search(config, model=model, dataset=digits, out=tmp_path / "straight").run.path
    assert any(line["stopped_after"] for line in journal(straight)) == bool(overrides)

    class Stop(Exception):
        pass

    for stop in (1, 3, 7):
        count = 0

        def stopping(what: str, done: int, total: int, stop: int = stop) -> None:
            if what.startswith("searching") and done == stop:
                raise Stop

        with pytest.raises(Stop):
            search(config, model=model, dataset=digits, out=tmp_path / str(stop), report=stopping)
        path = next((tmp_path / str(stop)).glob("*/s*"))
        assert len(journal(path)) == 1 + stop
        resume(path, model=Mine(), dataset=digits)
        assert journal(path) == journal(straight), count


def test_the_journal_says_where_the_time_went(digits: Dataset, tmp_path: Path) -> None:
    run = search(config_of(), model=Mine(), dataset=digits, out=tmp_path).run
    lines = run.lines()
    parts = {part for line in lines for part in line["profile"]}
    assert parts == {"agent", "apply", "repair", "evaluate"}
    measured = [sum(line["profile"].values()) - line["profile"].get("agent", 0) for line in lines]
    for line, seconds in zip(lines, measured, strict=True):
        assert seconds <= line["seconds"] + 1e-3
    profile = run.profile()
    assert profile["repair"] > 0 and profile["evaluate"] > 0 and profile["agent"] > 0
    assert sum(profile.values()) >= sum(measured) / len(lines)


@pytest.mark.parametrize(
    "damage", ["no checkpoint", "torn checkpoint", "torn journal", "old checkpoint"]
)
def test_law_3_whatever_was_half_written(digits: Dataset, tmp_path: Path, damage: str) -> None:
    torch.manual_seed(0)
    model = Mine()
    path = search(config_of(), model=model, dataset=digits, out=tmp_path).run.path
    expected = journal(path)
    agent = path / "checkpoint" / "agent.pt"
    if damage == "no checkpoint":
        agent.unlink()
    elif damage == "torn checkpoint":
        agent.write_bytes(agent.read_bytes()[:1000])
    elif damage == "torn journal":
        text = (path / "episodes.jsonl").read_text()
        (path / "episodes.jsonl").write_text(text[: len(text) - 40])
    else:  # killed between the journal's line and the checkpoint
        short = search(
            config_of("agent.episodes=7"), model=model, dataset=digits, out=tmp_path / "short"
        ).run.path
        shutil.copy(short / "checkpoint" / "agent.pt", agent)
    resume(path, model=Mine(), dataset=digits)
    assert journal(path) == expected


def test_law_3_killed_with_signal_9_and_with_ctrl_c(tmp_path: Path) -> None:
    overrides = [*TINY, "agent.episodes=12"]
    straight = command("search", PRESET, *overrides, "--out", str(tmp_path / "straight"))
    assert straight.returncode == 0, straight.stderr
    for number in (signal.SIGKILL, signal.SIGINT):
        out = tmp_path / number.name
        process = subprocess.Popen(
            [sys.executable, "-m", "amc.cli", "search", PRESET, *overrides, "--out", str(out)],
            stderr=subprocess.PIPE,
            text=True,
        )
        while (
            not (lines := list(out.glob("*/*/episodes.jsonl")))
            or len(lines[0].read_text().splitlines()) < 5
        ):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        _, message = process.communicate(timeout=60)
        path = lines[0].parent
        if number == signal.SIGINT:
            assert process.returncode == 130 and f"amc resume {path}" in message.replace("\n", "")
        assert len(journal(path)) < 13
        resumed = command("resume", str(path), "--json")
        assert resumed.returncode == 0, resumed.stderr
        assert json.loads(resumed.stdout.splitlines()[-1])["run"] == str(path)
        assert journal(path) == journal(next((tmp_path / "straight").glob("*/*")))


def test_export_and_evaluate_from_the_command_line(tmp_path: Path) -> None:
    done = command("search", PRESET, *TINY, "agent.episodes=6", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    path = next(tmp_path.glob("*/*"))
    exported = command("export", str(path))
    assert exported.returncode == 0 and "test accuracy" in exported.stdout, exported.stderr
    metrics = json.loads((path / "export" / "metrics.json").read_text())
    results = [evaluate(path, test=True), evaluate(path / "export", test=True)]
    assert results[1]["test_accuracy"] == metrics["test_accuracy"]
    # repaired anew, with the threads of this process: rounding may decide an image or two
    assert abs(results[0]["test_accuracy"] - metrics["test_accuracy"]) <= 0.01
    assert results[0]["search_accuracy"] == pytest.approx(
        Run.open(path).best["search_accuracy"], abs=0.011
    )
    assert (
        load(path / "export").state_dict().keys()
        == torch.nn.Module.state_dict(load(path / "export")).keys()
    )
    again = command("search", str(path / "config.yaml"), "--out", str(tmp_path / "again"))
    assert again.returncode == 0
    assert journal(next((tmp_path / "again").glob("*/*"))) == journal(path)


def test_a_run_is_never_overwritten_and_never_changed(digits: Dataset, tmp_path: Path) -> None:
    path = search(
        config_of("agent.episodes=2"), model=Mine(), dataset=digits, out=tmp_path
    ).run.path
    with pytest.raises(UserError, match="nothing is overwritten"):
        Run.create(path, config_of(), {})
    text = (path / "config.yaml").read_text()
    (path / "config.yaml").write_text(text.replace("episodes: 2", "episodes: 3"))
    with pytest.raises(UserError, match="was changed after the run started"):
        resume(path, model=Mine(), dataset=digits)
    (path / "config.yaml").write_text(text)
    lines = (path / "episodes.jsonl").read_text().splitlines(keepends=True)
    (path / "episodes.jsonl").write_text(lines[0] + "{torn\n" + lines[2])
    with pytest.raises(UserError, match="damaged in line 2"):
        resume(path, model=Mine(), dataset=digits)
    with pytest.raises(UserError, match="is not a run directory"):
        resume(tmp_path, model=Mine(), dataset=digits)


def test_another_network_is_noticed_on_resume(digits: Dataset, tmp_path: Path) -> None:
    path = search(
        config_of("agent.episodes=2"), model=Mine(), dataset=digits, out=tmp_path
    ).run.path
    with pytest.raises(UserError, match="do not fit the network"):
        resume(path, model=nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), dataset=digits)


def test_a_full_disk_is_one_line_and_loses_nothing(digits: Dataset, tmp_path: Path) -> None:
    path = search(
        config_of("agent.episodes=6"), model=Mine(), dataset=digits, out=tmp_path
    ).run.path
    run = Run.open(path)
    lines, before = run.lines(), (path / "episodes.jsonl").read_bytes()
    from amc.evaluate.outcome import Outcome

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (len(before) + 20, hard)
    )  # the next line will not fit
    try:
        with pytest.raises(UserError, match="cannot be written"):
            run.append(7, "explore", Outcome.from_line(lines[-1]))
        with pytest.raises(UserError, match="cannot be written"):
            run.save_checkpoint({"weights": torch.zeros(100000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert (path / "episodes.jsonl").read_bytes() == before
    assert run.load_checkpoint() is not None and not list((path / "checkpoint").glob("*.part"))


NOWHERE = "does not exist: give its whole path, or name its folder as data_dir or AMC_DATA_DIR"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "nosuch"], "unknown preset 'nosuch'"),
        (["search", PRESET, "model=cifar:resnet21"], "did you mean 'cifar:resnet"),
        (["search", PRESET, "model=torchvision:resnet19"], "did you mean 'torchvision:resnet1"),
        (["search", PRESET, "model=nosuch:Net"], "no module 'nosuch'"),
        (["search", PRESET, "dataset=digit"], "did you mean 'digits'"),
        (["search", PRESET, "dataset=npz:nowhere.npz"], NOWHERE),
        (["search", PRESET, "dataset=imagefolder:nowhere"], "must have a folder train"),
        (["search", PRESET, "space.name=chanel"], "did you mean 'channel'"),
        (["search", PRESET, "budget.ratio=0.0001"], "the smallest possible is"),
        (["search", PRESET, "budget.ratio=2"], "at most 1"),
        (
            ["search", PRESET, "weights=nowhere.safetensors"],
            "nowhere.safetensors' does not exist: give its whole path, or name its folder as "
            "weights_dir or AMC_WEIGHTS_DIR",
        ),
        (["search", PRESET, "train=null"], "has no weights"),
        (["search", PRESET, "evaluate.images=5000"], "are more than 'digits' has"),
        (["search", PRESET, "heldout=nowhere.npy"], NOWHERE),
        (["search", PRESET, "model=torchvision:vgg11"], "does not run on an input of shape"),
        (["resume", "nowhere"], "is not a run directory"),
        (["export", "nowhere"], "is not a run directory"),
        (["evaluate", "nowhere"], "is not a run directory"),
        (["check", "chanel"], "did you mean 'channel'"),
        (["show", "digts_resnet8_channel_macs50"], "did you mean"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from amc import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["amc", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    captured = capsys.readouterr()
    assert caught.value.code == 2
    assert (
        message in captured.err
        and captured.err.count("\n") == 1
        and captured.err.startswith("amc: ")
    )
    assert not (tmp_path / "runs").exists()


def test_damaged_and_unfitting_files(digits: Dataset, tmp_path: Path) -> None:
    import numpy as np
    from safetensors.torch import save_file

    from amc.data.datasets import load_dataset
    from amc.network.models import build_model, load_weights

    model = build_model("digits:resnet8", 10, 1)
    good = tmp_path / "good.safetensors"
    save_file(model.state_dict(), good)
    (tmp_path / "torn.safetensors").write_bytes(good.read_bytes()[:5000])
    for name in ("torn.safetensors", "torn.pth"):
        (tmp_path / name).write_bytes(good.read_bytes()[:5000])
        with pytest.raises(UserError, match=r"damaged|cannot be read"):
            load_weights(model, tmp_path / name)
    with pytest.raises(
        UserError, match=r"conv1.weight is \(32, 1, 3, 3\), not \(32, 3, 3, 3\).*linear"
    ):
        load_weights(build_model("digits:resnet8", 7, 3), good)
    with pytest.raises(UserError, match=r"is missing.* and [0-9]+ more"):
        load_weights(build_model("cifar:resnet20", 10, 1), good)
    archive = tmp_path / "data.npz"
    np.savez(
        archive,
        x_train=np.zeros((4, 8, 8, 1), np.uint8),
        y_train=np.zeros(4),
        x_test=np.zeros((2, 8, 8, 1), np.uint8),
    )
    with pytest.raises(UserError, match="no array 'y_test'"):
        load_dataset(f"npz:{archive}", tmp_path)
    archive.write_bytes(archive.read_bytes()[:200])
    with pytest.raises(UserError, match="damaged"):
        load_dataset(f"npz:{archive}", tmp_path)
    with pytest.raises(UserError, match="has 3 classes"):
        Problem.build(config_of(), Mine(classes=2), digits)


def test_a_network_that_does_as_well_on_all_images_is_not_called_memorised(
    digits: Dataset, tmp_path: Path
) -> None:
    """Trained on the held-out images too, it does no worse on test images (those that it has seen
    by heart: tests/evaluate/test_memory.py).
    """
    from amc.training.settings import TrainConfig
    from amc.training.trainer import train

    torch.manual_seed(0)
    model = Mine()
    import numpy as np

    settings = TrainConfig(epochs=40, batch_size=32, lr=0.1, augment=False)
    train(model, digits, np.arange(len(digits.train.labels)), settings)
    result = search(config_of("agent.episodes=1"), model=model, dataset=digits, out=tmp_path)
    assert result.problem.accuracy(model, test=True) > 0.98
    assert result.run.provenance["warning"] is None


def test_a_run_of_an_earlier_version_is_not_gone_on_with(digits: Dataset, tmp_path: Path) -> None:
    run = search(config_of(), model=Mine(), dataset=digits, out=tmp_path).run
    run.update_provenance(schema=1)
    with pytest.raises(UserError, match="earlier version"):
        resume(run.path, model=Mine(), dataset=digits)
    assert export(run.path, ["safetensors"], model=Mine(), dataset=digits)["test_accuracy"] >= 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_in_a_finaliser_is_not_lost() -> None:
    """Python drops exceptions that are raised in `__del__`."""

    class Finalised:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)

    before = signal.getsignal(signal.SIGINT)
    try:
        report = ConsoleReport(Console(quiet=True)).listen()
        report("searching", 1, 3)
        with contextlib.suppress(KeyboardInterrupt):
            Finalised()
        with pytest.raises(KeyboardInterrupt):
            report("searching", 2, 3)
    finally:
        signal.signal(signal.SIGINT, before)
