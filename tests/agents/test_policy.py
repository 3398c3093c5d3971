"""What an agent has learned, carried over to another network."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from test_search import journal
from torch import nn
from zoo import Mine, command, config_of, taught

import amc
from amc.data.datasets import Dataset
from amc.errors import UserError
from amc.runs import names
from amc.runs.policy import Policy
from amc.search import resume, search


class Deeper(nn.Module):
    """Another network for the same images."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 8, 12, 16, 10)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


@pytest.fixture(scope="module")
def source(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    options = ["agent={name: td3, warmup_episodes: 3}", "agent.episodes=12", "reward=kl"]
    config = config_of(*options, "budget.ratio=[0.5, 0.9]")
    model = taught(Mine(), digits)  # of an untrained one no cut is worse than another
    return search(config, model=model, dataset=digits, out=tmp_path_factory.mktemp("of")).run.path


def of(source: Path, *overrides: str, agent: str = "td3") -> list[str]:
    return [f"agent={{name: {agent}, warmup_episodes: 2, pretrained: '{source}'}}", *overrides]


def test_a_search_begins_with_what_another_has_learned(
    digits: Dataset, source: Path, tmp_path: Path
) -> None:
    """On another network; and goes on though that run is gone (laws 3 and 7)."""
    torch.manual_seed(1)
    model, gone = taught(Deeper(), digits), tmp_path / "gone"
    source.rename(gone)
    config = config_of(*of(gone), "agent.episodes=8", "reward=kl")
    straight = search(config, model=model, dataset=digits, out=tmp_path / "straight")
    learned = Policy.of_run(gone).weights
    kept = Policy.read(straight.run.path / names.POLICY)
    assert kept.agent == "td3" and all(
        torch.equal(learned[key], kept.weights[key]) for key in learned
    )
    plain = config_of("agent={name: td3, warmup_episodes: 2, episodes: 8}", "reward=kl")
    other = search(plain, model=model, dataset=digits, out=tmp_path / "plain")
    assert journal(other.run.path) != journal(straight.run.path)

    class Stop(Exception):
        pass

    def stopping(what: str, done: int, total: int) -> None:
        if what.startswith("searching") and done == stop:
            raise Stop

    for stop in (1, 5):
        with pytest.raises(Stop):
            search(config, model=model, dataset=digits, out=tmp_path / str(stop), report=stopping)
    gone.rename(source)
    for stop in (1, 5):
        path = next((tmp_path / str(stop)).glob("*/s*"))
        (path / names.CHECKPOINT).unlink()
        resume(path, model=model, dataset=digits)
        assert journal(path) == journal(straight.run.path)


def test_a_policy_is_applied_to_another_network(
    digits: Dataset, source: Path, tmp_path: Path
) -> None:
    """One walk, within the budget that is named; the actor's own, without noise."""
    for ratio in (0.5, 0.9):
        budget = f"budget.ratio={ratio}"
        found = amc.apply(source, Deeper(), [budget], dataset=digits, out=tmp_path)
        (line,) = found.policy
        assert line["phase"] == "apply" and line["feasible"]
        assert found.uniform["phase"] == "uniform"
        assert found.result.best["reward"] == max(line["reward"], found.uniform["reward"])
        again = amc.apply(source, Deeper(), [budget], dataset=digits, out=tmp_path)
        assert again.policy[0]["ratios"] == line["ratios"]


def test_a_range_of_budgets_is_applied_to_each(
    digits: Dataset, source: Path, tmp_path: Path
) -> None:
    found = amc.apply(source, Deeper(), ["agent.episodes=5"], dataset=digits, out=tmp_path)
    assert len(found.policy) == 5 and all(line["feasible"] for line in found.policy)
    costs = np.array([line["macs"] for line in found.policy])
    assert len(set(costs)) > 2, "each has its own budget"


def test_what_does_not_fit_is_refused(digits: Dataset, source: Path, tmp_path: Path) -> None:
    for wrong, match in (
        (of(source, "agent.hidden=20"), "hidden"),
        (of(source, agent="sac"), "same agent"),
        (of(tmp_path / "nothing"), "not a run"),
    ):
        config = config_of(*wrong, "agent.episodes=8")
        with pytest.raises(UserError, match=match):
            search(config, model=Mine(), dataset=digits, out=tmp_path)
    config = config_of("agent={name: random, episodes: 2}")
    without = search(config, model=Mine(), dataset=digits, out=tmp_path).run.path
    with pytest.raises(UserError, match="no policy"):
        amc.apply(without, Mine(), dataset=digits, out=tmp_path)


def test_the_command(tmp_path: Path) -> None:
    """What a search has learned, on the preset's own network, trained otherwise."""
    quick = ["digits_resnet8_channel_macs50", "train.epochs=1", "allow_untrained=true"]
    agent = "agent={name: td3, episodes: 4, warmup_episodes: 2}"
    done = command("search", *quick, agent, "--json", "--out", str(tmp_path / "of"))
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout.splitlines()[-1])["run"]
    other = [*quick, "seed=1", "budget.ratio=0.6", "--out", str(tmp_path / "on")]
    done = command("apply", run, *other)
    assert done.returncode == 0, done.stderr
    assert "the policy" in done.stdout and "the uniform strategy" in done.stdout
    (applied,) = (tmp_path / "on").glob("*/s1-*")
    lines = (applied / names.JOURNAL).read_text().splitlines()
    phases = [json.loads(line)["phase"] for line in lines]
    assert phases == ["uniform", "apply"]
    done = command("apply", str(tmp_path), *other)
    assert done.returncode == 2 and "not a run directory" in done.stderr
