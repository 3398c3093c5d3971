"""Searches with a device: latency budgets, rewards with latency, what a run keeps and shows."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner
from zoo import Mine, Pretended, config_of

import amc
from amc.cli.running import app
from amc.config import load_config, parse_config
from amc.cost.budget import Budget
from amc.cost.cost import Cost
from amc.data.datasets import Dataset
from amc.device.survey import measure_profile
from amc.errors import UserError
from amc.evaluate.rewards import Score, latency, memory
from amc.network.trace import Network
from amc.spaces.channel import ChannelSpace


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """A profile of `Mine` on the pretended device."""
    torch.manual_seed(0)
    network = Network.of(Mine(), (1, 8, 8), "Mine")
    path = tmp_path / "mine.yaml"
    measure_profile(ChannelSpace(network, {"repair": "none"}), Pretended(), path)
    return path


def test_a_search_within_a_latency_budget(
    device: Path, digits: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = Mine()
    config = config_of("budget.metric=latency_ms", "budget.ratio=0.6", f"device={device}")
    with caplog.at_level(logging.WARNING, "amc"):
        result = amc.search(config, model=model, dataset=digits, out=tmp_path)
    assert "made for pretended, which is not installed here" in caplog.text
    run = result.run
    limit = 0.6 * result.best["baseline"]["latency_ms"]
    for line in run.lines():
        assert line["feasible"] and 0 < line["latency_ms"] <= limit
    assert result.best["cost_ratios"]["latency_ms"] <= 0.6
    assert run.provenance["device_doubts"]

    device.unlink()  # the run has its own copy
    again = amc.resume(run.path, model=model, dataset=digits)
    assert again.best == result.best
    compressed = again.problem.space.apply(result.best["strategy"])
    measured = again.problem.measured_latency(compressed)
    assert measured["baseline"] > 0 and measured["compressed"] > 0 and measured["ratio"] > 0
    assert measured["runtime"].startswith("onnxruntime") and measured["threads"] == 1


def test_other_budgets_journal_the_latency_too(
    device: Path, digits: Dataset, tmp_path: Path
) -> None:
    config = config_of("budget.metric=memory_bytes", "budget.ratio=0.7", f"device={device}")
    result = amc.search(config, model=Mine(), dataset=digits, out=tmp_path)
    best = result.best
    assert best["memory_bytes"] <= 0.7 * best["baseline"]["memory_bytes"]
    assert best["latency_ms"] < best["baseline"]["latency_ms"]


@pytest.mark.parametrize("reward", ["latency", "memory", "mnasnet"])
def test_rewards_with_latency_and_memory(
    reward: str, device: Path, digits: Dataset, tmp_path: Path
) -> None:
    metric = "memory_bytes" if reward == "memory" else "latency_ms"
    config = config_of(
        f"budget.metric={metric}", "budget.ratio=0.9", f"device={device}", f"reward={reward}"
    )
    result = amc.search(config, model=Mine(), dataset=digits, out=tmp_path)
    lines = result.run.lines()
    assert len({line["reward"] for line in lines}) > 1
    assert result.best["reward"] == max(line["reward"] for line in lines)


def test_less_latency_and_less_memory_are_rewarded() -> None:
    score, budget = Score(0.8, 0.0, 0.0), Budget("latency_ms", 1.0)
    large, small = Cost(100, 100, 4000, 2.0), Cost(100, 100, 2000, 1.0)
    for reward in (latency, memory):
        assert reward(score, small, large, budget) > reward(score, large, large, budget)


def test_a_latency_budget_needs_a_device() -> None:
    values = {"budget": {"metric": "latency_ms", "ratio": 0.5}}
    with pytest.raises(UserError, match=r"needs a device.*amc profile"):
        parse_config(values)
    with pytest.raises(UserError, match="unknown device 'pixl'"):
        amc.search(parse_config({**values, "device": "pixl"}))


def test_from_profile_to_export_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new user's way: profile this machine, search within its latency, evaluate, export."""
    monkeypatch.chdir(tmp_path)
    preset = "digits_resnet8_channel_latency50"
    small = ["space.round_to=16", "train.epochs=2", "agent.episodes=4", "agent.warmup_episodes=2"]
    small += ["allow_untrained=true", "budget.ratio=0.9"]  # of whatever machine this runs on
    runner = CliRunner()

    def run(*arguments: str) -> str:
        result = runner.invoke(app, list(arguments))
        assert result.exit_code == 0, result.output
        return result.output

    run("profile", preset, "space.round_to=16", "--device", "here")
    assert Path("here.yaml").is_file() and Path("here.png").stat().st_size > 10_000
    output = run("search", preset, *small, "device=here.yaml", "--json")
    found = json.loads(output.splitlines()[-1])
    assert found["latency_ms"] <= 0.9 * found["baseline"]["latency_ms"]
    assert found["measured_latency_ms"]["ratio"] > 0
    assert (Path(found["run"]) / "device.yaml").is_file()
    table = run("evaluate", found["run"])
    assert "predicted" in table and "measured here" in table
    amc.export(found["run"])
    metrics = json.loads((Path(found["run"]) / "export" / "metrics.json").read_text())
    assert metrics["latency_ms"] == pytest.approx(found["latency_ms"])
    assert metrics["measured_latency_ms"]["threads"] == 1
    assert "all:" in run("profile", found["run"])


def test_latency_presets_name_devices_that_exist() -> None:
    for preset in ("cifar10_resnet56_channel_latency50", "digits_resnet8_channel_latency50"):
        assert load_config(preset)[1].device == "xeon_onnxruntime_1thread"
