"""Searches in which the agent sees the whole network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from amc.envs.graph import GraphExtractor
from torch import Tensor, nn
from zoo import Mine, config_of, journal

import amc
from amc.data.datasets import Dataset
from amc.search import resume, search

GRAPH = [
    "observation=graph",
    "agent={name: td3}",
    "agent.episodes=12",
    "agent.warmup_episodes=3",
    "agent.hidden=32",
]


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("agent.envs=2", "agent.warmup_episodes=4"),
        ("space.name=mixed", "space.min_ratio=0.3", "budget.ratio=0.7"),
        ("agent.start=sensitivity", "agent.sensitivities=true", "agent.episodes=20"),
    ],
    ids=["channels", "side by side", "mixed", "sensitivities"],
)
def test_law_3_resumed_as_straight(
    digits: Dataset, tmp_path: Path, more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[int] = []
    forward = GraphExtractor.forward

    def counting(self: GraphExtractor, observations: Tensor) -> Tensor:
        called.append(len(observations))
        return forward(self, observations)

    monkeypatch.setattr(GraphExtractor, "forward", counting)
    torch.manual_seed(0)
    model, config = Mine(), config_of(*GRAPH, *more)
    straight = search(config, model=model, dataset=digits, out=tmp_path / "straight")

    class Stop(Exception):
        pass

    def stopping(what: str, done: int, total: int) -> None:
        if what.startswith("searching") and done >= 7:
            raise Stop

    with pytest.raises(Stop):
        search(config, model=model, dataset=digits, out=tmp_path / "stopped", report=stopping)
    path = next((tmp_path / "stopped").glob("*/s*"))
    torch.rand(3)  # somebody else's random numbers
    resume(path, model=model, dataset=digits)
    assert journal(path) == journal(straight.run.path)
    assert called, "the agent looks through it"


def test_what_was_learned_is_carried_over_to_another_network(
    digits: Dataset, tmp_path: Path
) -> None:
    """Of another number of decisions: the graph's weights are of no network."""
    torch.manual_seed(0)
    other = nn.Sequential(
        *(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3)),
        *(nn.Flatten(), nn.Linear(128, 6), nn.ReLU(), nn.Linear(6, 3)),
    )
    source = search(config_of(*GRAPH), model=Mine(), dataset=digits, out=tmp_path / "of").run
    config = config_of(*GRAPH, f"agent.pretrained='{source.path}'")
    found = search(config, model=other, dataset=digits, out=tmp_path)
    assert len(found.run.lines()) == 13
    assert len(found.run.lines()[0]["ratios"]) > len(source.lines()[0]["ratios"])
    (line,) = amc.apply(source.path, other, dataset=digits, out=tmp_path).policy
    assert line["phase"] == "apply" and line["feasible"]
