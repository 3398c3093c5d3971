"""Searches in which the agent sees the whole network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from amc.envs.graph import GraphExtractor
from torch import Tensor
from zoo import Mine, config_of, journal

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
