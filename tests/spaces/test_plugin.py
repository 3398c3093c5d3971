"""The README's plug-in example, outside the package: it conforms, and a search uses it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from readme import BLOCKS
from torch import nn
from zoo import Mine, Pretended, config_of

from amc import cli
from amc.config import parse_config
from amc.cost.budget import Budget
from amc.cost.cost import cost_of
from amc.data.datasets import Dataset
from amc.deliver.export import export
from amc.deliver.load import load
from amc.device.survey import measure_profile
from amc.network.trace import Network, trace
from amc.search import search
from amc.spaces.base import CompressionSpace
from amc.testing import check_space, walk

SOURCE = next(block for block in BLOCKS if "class LinearSVD" in block)
AGENT = next(block for block in BLOCKS if "class HillClimber" in block)


@pytest.fixture
def linear_svd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[CompressionSpace]:
    (tmp_path / "my_space.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("my_space", None)
    space: type[CompressionSpace] = __import__("my_space").LinearSVD
    return space


def test_the_example_is_short() -> None:
    body = SOURCE[SOURCE.index("class LinearSVD") :]
    assert len([line for line in body.splitlines() if line.strip()]) <= 20


def test_the_example_conforms(
    linear_svd: type[CompressionSpace],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["amc", "check", "my_space:LinearSVD"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    assert capsys.readouterr().out.count("ok ") >= 14


def test_a_space_that_lies_is_caught(linear_svd: type[CompressionSpace]) -> None:
    class Lies(linear_svd):  # type: ignore[valid-type,misc]
        def resize_layer(self, layer, rank):  # type: ignore[no-untyped-def]
            first, second = super().resize_layer(layer, rank)
            return first, second.__class__(**{**second.__dict__, "in_channels": rank + 1})

    with pytest.raises(AssertionError, match="paper = metal"):
        check_space(Lies)


def test_a_latency_budget_with_the_example(
    linear_svd: type[CompressionSpace], tmp_path: Path
) -> None:
    """A profile sees the two layers that one becomes, and a walk keeps to their time."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(256, 200),
        nn.ReLU(),
        nn.Linear(200, 200),
        nn.ReLU(),
        nn.Linear(200, 9),
    )
    space = linear_svd(Network.of(model, (1, 16, 16), "mlp"))
    profile = measure_profile(space, Pretended(), tmp_path / "mine.yaml")
    fit = profile.networks["mlp"]
    assert fit.fidelity is not None and fit.fidelity.median_ape < 0.03
    space.latency = profile.latency_model("mlp")
    budget = Budget.of("latency_ms", space.cost({}), ratio=0.7)
    strategy = walk(space, budget, lambda: 1.0)
    assert budget.allows(space.cost(strategy)) and strategy != space.complete({})
    metal = cost_of(trace(space.apply(strategy), (1, 16, 16)), space.latency)
    assert metal.latency_ms == pytest.approx(space.cost(strategy).latency_ms)


def test_a_search_with_the_example(
    linear_svd: type[CompressionSpace], digits: Dataset, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 3)
    )
    config = parse_config(
        {
            "space": {"name": "my_space:LinearSVD"},
            "budget": {"metric": "params", "ratio": 0.6},
            "evaluate": {"images": 100, "calibration_images": 50},
            "agent": {"name": "ddpg", "episodes": 6, "warmup_episodes": 2},
            "allow_untrained": True,
        }
    )
    result = search(config, model=model, dataset=digits, out=tmp_path)
    assert result.best["params"] <= 0.6 * result.best["baseline"]["params"]
    export(result.run.path, ["safetensors"], model=model, dataset=digits)
    loaded = load(result.run.path / "export", model=model)
    assert sum(p.numel() for p in loaded.parameters()) == result.best["params"]
    assert np.isfinite(loaded(torch.zeros(1, 1, 8, 8)).detach().numpy()).all()


def test_the_agent_of_the_readme_searches(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_agent.py").write_text(AGENT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = config_of("agent={name: my_agent:HillClimber, episodes: 25}")
    lines = search(config, model=Mine(), dataset=digits, out=tmp_path).run.lines()
    assert len(lines) == 26 and all(line["feasible"] for line in lines)
    assert len({tuple(line["ratios"]) for line in lines}) > 5
