"""A range of budgets: every episode has its own, and the agent sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from amc.agents.replay import standing
from amc.agents.td3 import TD3Agent
from amc.envs import ENV_ID
from test_search import journal
from zoo import Mine, config_of, zoo_space

from amc.analysis.compare import compare
from amc.analysis.pareto import pareto
from amc.config import load_config, parse_config
from amc.cost.budget import Budget
from amc.data.datasets import Dataset
from amc.deliver.export import export
from amc.deliver.finetune import finetune
from amc.deliver.load import load
from amc.errors import UserError
from amc.problem import Problem
from amc.search import SearchResult, resume, search

LOW, HIGH = 0.4, 0.8


def wide(agent: str, *overrides: str) -> Any:
    own = [f"agent={agent}", "agent.episodes=12", f"budget.ratio=[{LOW},{HIGH}]"]
    more = [] if agent == "random" else ["agent.warmup_episodes=4"]
    return config_of(*own, *more, "reward=kl", *overrides)


def model() -> Mine:
    torch.manual_seed(0)
    return Mine()


def test_the_budgets_of_episodes_spread_evenly_and_reach_both_ends() -> None:
    budget = Budget("macs", 800.0, least=400.0)
    limits = np.array([budget.of_episode(number).limit for number in range(100)])
    assert limits[0] == pytest.approx(600)
    assert limits.min() == 400 and limits.max() == 800
    assert (limits == 400).sum() == pytest.approx(5, abs=1) == (limits == 800).sum()
    assert np.diff(np.sort(limits)).max() < 400 * 0.03
    assert budget.of_episode(3).least is None
    assert Budget("macs", 800.0).of_episode(3) == Budget("macs", 800.0)


@pytest.mark.parametrize("agent", ["random", "td3"])
@pytest.mark.parametrize("options", [(), ("evaluate.racing=0.6", "evaluate.images=300")])
def test_laws_2_and_3(
    agent: str, options: tuple[str, ...], digits: Dataset, tmp_path: Path
) -> None:
    """Each episode uses its own budget, and no more of it; a stopped search goes on the same."""
    straight = search(wide(agent, *options), model=model(), dataset=digits, out=tmp_path / "a")
    original, budget = straight.problem.space.cost({}).macs, straight.problem.budget
    lines = straight.run.lines()
    assert lines[0]["phase"] == "uniform" and lines[0]["macs"] <= HIGH * original
    for number, line in enumerate(lines[1:]):
        limit = budget.of_episode(number).limit
        assert line["feasible"] and 0.8 * limit < line["macs"] <= limit
    part = search(wide(agent, *options), model=model(), dataset=digits, out=tmp_path / "b")
    whole = (part.run.path / "episodes.jsonl").read_text().splitlines(keepends=True)
    (part.run.path / "episodes.jsonl").write_text("".join(whole[:6]))
    (part.run.path / "checkpoint" / "agent.pt").unlink()
    resume(part.run.path, model=model(), dataset=digits)
    assert journal(part.run.path) == journal(straight.run.path)


def test_the_agent_sees_the_budget() -> None:
    space = zoo_space("plain20")
    whole = space.cost({})
    budget = Budget.of("macs", whole, ratio=(0.2, 0.8))
    env = gymnasium.make(ENV_ID, space=space, budget=budget, evaluate=lambda *_: None)
    assert env.observation_space.shape == (12,)
    for number in (0, 5, 1):
        observation, _ = env.reset(options={"episode": number})
        assert observation[-1] == pytest.approx(budget.of_episode(number).limit / whole.macs)
    assert env.reset()[0][-1] == pytest.approx(budget.of_episode(2).limit / whole.macs)


def test_what_is_imitated_is_good_for_its_budget() -> None:
    """A reward that grows with the budget, and is spread more where the budget is small."""
    rng = np.random.default_rng(0)
    budgets = np.linspace(0.2, 0.8, 300)
    luck = rng.uniform(-1, 1, 300)
    rewards = -1 / budgets + (1 - budgets) * luck
    order = np.argsort(-standing(rewards, budgets))[:60]
    assert luck[order].min() > 0.2 and luck[order].mean() > 0.7
    counts, _ = np.histogram(budgets[order], bins=3, range=(0.2, 0.8))
    assert counts.min() >= 10
    same = np.full(300, 0.5)
    assert (np.argsort(standing(rewards, same)) == np.argsort(rewards)).all()


class Counts:
    """What the environment wants to know."""

    def __init__(self, reward: float) -> None:
        self.reward = reward


def test_law_7_the_agent_learns_what_each_budget_needs(digits: Dataset) -> None:
    """The best first keep ratio falls with the budget: the actor must look at it."""
    space = Problem.build(wide("td3"), model(), digits).space
    first = space.decisions[0]
    whole = space.cost({}).macs

    def evaluate(strategy: Any, budget: Budget) -> Counts:
        wanted = 1.3 - budget.limit / whole
        return Counts(-abs(space.encode(first, strategy[first.name]) - wanted))

    budget = Budget.of("macs", space.cost({}), ratio=(0.4, 0.9))
    env = gymnasium.make(ENV_ID, space=space, budget=budget, evaluate=evaluate)
    options = TD3Agent.Options(episodes=250, sigma=0.3)
    agent = TD3Agent(env, len(space.decisions), options)
    agent.run()
    ratios = []
    for number in range(40):
        observation, _ = env.reset(options={"episode": number})
        ratios.append((observation[-1], agent.best_ratio(observation)))
    assert np.corrcoef(np.array(ratios).T)[0, 1] < -0.8


@pytest.fixture(scope="module")
def run(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    out = tmp_path_factory.mktemp("range")
    return search(wide("td3"), model=model(), dataset=digits, out=out)


def test_one_run_is_a_curve(run: SearchResult, digits: Dataset, tmp_path: Path) -> None:
    found = pareto([run.run.path])
    (curve,) = found.curves()
    assert curve.agent == "td3, 0.4 to 0.8"
    assert len(curve.hypervolume) == 1 and len(found.points) == 13
    for pick in found.picks:
        limit = float(pick.budget.removeprefix("macs "))
        within = [line for line in run.run.lines() if line["macs"] <= limit * found.original + 1e-6]
        best = max(line["reward"] for line in within)
        assert run.run.lines()[pick.point.episode]["reward"] == best
    with pytest.raises(UserError, match="no best strategy to be compared"):
        compare([run.run.path])


def test_any_episode_can_be_trained_and_exported(run: SearchResult, digits: Dataset) -> None:
    """Its own folder, its own strategy; another episode cannot go on there."""
    episode = pareto([run.run.path]).picks[0].point.episode
    tuned = finetune(run, ["epochs=1", "augment=none"], episode=episode)
    assert tuned.path == run.run.path / f"episode_{episode}" / "finetune"
    metrics = export(run, ["safetensors"], episode=episode)
    assert metrics["finetuned_test_accuracy"] == tuned.metrics["finetuned_test_accuracy"]
    line = run.run.lines()[episode]
    assert metrics["macs"] == line["macs"]
    folder = run.run.path / f"episode_{episode}" / "export"
    assert json.loads((folder / "strategy.json").read_text())["strategy"] == line["strategy"]
    load(folder, model())
    with pytest.raises(UserError, match="was begun with the strategy of episode"):
        finetune(run, ["epochs=1", "augment=none"], episode=0, to=tuned.path)
    with pytest.raises(UserError, match="has no episode 99: they go from 0 to 12"):
        export(run, ["safetensors"], episode=99)


def test_what_cannot_be() -> None:
    with pytest.raises(UserError, match="'genetic' searches one budget"):
        wide("random", "agent=genetic")
    with pytest.raises(UserError, match=r"\[0.4, 1.5\]: it must be above 0 and at most 1"):
        wide("td3", "budget.ratio=[0.4,1.5]")
    with pytest.raises(UserError, match="a range must ascend"):
        wide("td3", "budget.ratio=[0.8,0.4]")
    with pytest.raises(UserError, match=r"budget\.ratio"):
        wide("td3", "budget.ratio=[0.4,0.5,0.6]")
    with pytest.raises(UserError, match=r"^agent: 12 episodes are no multiple of 5 envs$"):
        wide("td3", "agent.envs=5")


def test_a_range_is_written_and_read(tmp_path: Path) -> None:
    config = wide("td3")
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(config.model_dump(mode="json")))
    assert load_config(str(path))[1] == config
    assert parse_config(config.model_dump(mode="json")) == config
