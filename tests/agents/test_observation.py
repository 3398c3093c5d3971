"""Observations of a user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_search import journal
from zoo import Mine, config_of

from amc.data.datasets import Dataset
from amc.errors import UserError
from amc.search import resume, search

SEEN: list[Any] = []


class Few:
    """Two numbers."""

    features = ("made", "budget")

    def __init__(self, space: Any) -> None:
        self.count = len(space.decisions)

    def __call__(self, position: Any) -> Any:
        SEEN.append(position)
        return [len(position.ratios) / self.count, position.budget]


class Long(Few):
    def __call__(self, position: Any) -> Any:
        return [0.0, 0.5, 1.0]


class Large(Few):
    def __call__(self, position: Any) -> Any:
        return [0.0, 2.0]


class Strange(Few):
    def __call__(self, position: Any) -> Any:
        return ["a", None]


def config(name: str, episodes: int = 8) -> Any:
    return config_of(
        f"observation={__name__}:{name}",
        "agent={name: td3, warmup_episodes: 2}",
        f"agent.episodes={episodes}",
    )


def test_an_observation_of_ones_own(digits: Dataset, tmp_path: Path) -> None:
    """Laws 3 and 12: resumed as straight; what it is told is what happened."""
    SEEN.clear()
    model = Mine()
    found = search(config("Few"), model=model, dataset=digits, out=tmp_path)
    whole = found.problem.space.cost({}).macs
    ends = [position for position in SEEN if len(position.ratios) == 2]
    for line in found.run.lines()[1:]:
        (own,) = {p for p in ends if list(p.ratios) == line["ratios"]}
        assert own.reduced == pytest.approx(1 - line["macs"] / whole) and own.rest == 0
        assert own.budget == pytest.approx(0.5, abs=1e-3)
    part = search(config("Few"), model=model, dataset=digits, out=tmp_path / "part").run.path
    lines = (part / "episodes.jsonl").read_text().splitlines(keepends=True)
    (part / "episodes.jsonl").write_text("".join(lines[:5]))
    for name in ("best.json", "checkpoint/agent.pt"):
        (part / name).unlink()
    resume(part, model=model, dataset=digits)
    assert journal(part) == journal(found.run.path)


@pytest.mark.parametrize("name", ["Long", "Large", "Strange"])
def test_what_is_no_observation_is_refused(digits: Dataset, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"an array of 2 numbers from 0 to 1"):
        search(config(name), model=Mine(), dataset=digits, out=tmp_path)


def test_features_are_numbers_of_what_is_known() -> None:
    """The ones that come with amc say what they are."""
    from amc.envs.observation import Amc, Observation
    from zoo import zoo_space

    observation = Amc(zoo_space("resnet20"))
    assert isinstance(observation, Observation)
    assert len(observation.features) == 12 and np.ptp(observation.static) <= 1
