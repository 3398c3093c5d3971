"""The laws of every search algorithm, on a small network and on a toy whose best is known."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from amc.agents import Agent, ddpnas
from amc.agents.ddpnas import DDPNASAgent, DDPNASOptions
from amc.agents.genetic import GeneticAgent
from amc.envs import ENV_ID
from test_search import journal
from zoo import Mine, config_of, zoo_space

from amc.cost.budget import Budget
from amc.data.datasets import Dataset
from amc.registry import KNOWN, lookup
from amc.search import resume, search
from amc.spaces.bounding import Bounds

SEARCHING = ["ddpg", "td3", "sac", "random", "greedy", "genetic", "ddpnas", "tpe", "sensitivity"]
ONCE = ["uniform", "shallow", "deep"]
FEW = {name: ["agent.warmup_episodes=3"] for name in ("ddpg", "td3", "sac")}
FEW["sensitivity"] = ["agent.choices=1"]


def overrides(name: str, episodes: int = 12) -> list[str]:
    own = [] if name in ONCE else [f"agent.episodes={episodes}"]
    return [f"agent={{name: {name}}}", *own, *FEW.get(name, [])]


def test_all_are_known() -> None:
    assert {*SEARCHING, *ONCE, "vbmf", "policy"} == set(KNOWN["agent"])


@pytest.mark.parametrize("name", [*SEARCHING, *ONCE])
def test_laws_2_3_and_7_for_every_agent(digits: Dataset, tmp_path: Path, name: str) -> None:
    """Within budget, journaled alike, resumed after a stop as straight, same seed same journal."""
    torch.manual_seed(0)
    model, config = Mine(), config_of(*overrides(name))
    straight = search(config, model=model, dataset=digits, out=tmp_path / "straight")
    lines = straight.run.lines()
    assert len(lines) == 1 + {"uniform": 0, "shallow": 1, "deep": 1}.get(name, 12)
    assert all(line["feasible"] for line in lines if line["phase"] != "measure")
    assert len({tuple(line) for line in lines}) == 1, "the same fields in every line"

    class Stop(Exception):
        pass

    def stopping(what: str, done: int, total: int) -> None:
        assert total >= done
        if what.startswith("searching") and done == stop:
            raise Stop

    for stop in () if name in ONCE else (1, 7):
        with pytest.raises(Stop):
            search(config, model=model, dataset=digits, out=tmp_path / str(stop), report=stopping)
        path = next((tmp_path / str(stop)).glob("*/s*"))
        torch.rand(stop)  # somebody else's random numbers
        resume(path, model=model, dataset=digits)
        assert journal(path) == journal(straight.run.path)


class Toy(gymnasium.Env[Any, Any]):
    """A real space and budget, with a reward that is made up: minus the squared distance from keep
    ratios that exactly fit the budget.
    """

    def __new__(cls, wanted: tuple[float, ...]) -> Any:
        space = zoo_space("plain20")
        ratios = dict(zip([d.name for d in space.decisions], wanted, strict=True))
        target = {d.name: space.decode(d, ratios[d.name]) for d in space.decisions}
        best = np.array([space.encode(d, target[d.name]) for d in space.decisions])
        rewards: list[float] = []

        class Outcome:
            def __init__(self, strategy: dict[str, int], budget: Budget) -> None:
                own = np.array([space.encode(d, strategy[d.name]) for d in space.decisions])
                self.reward = -float(np.mean((own - best) ** 2))
                rewards.append(self.reward)

        budget = Budget("macs", space.cost(target).macs)
        env = gymnasium.make(ENV_ID, space=space, budget=budget, evaluate=Outcome)
        env.rewards = rewards  # type: ignore[attr-defined]
        return env


def toy() -> Any:
    count = len(zoo_space("plain20").decisions)
    return Toy(tuple(np.linspace(0.9, 0.4, count).tolist()))


def best_of(name: str, seed: int, **options: Any) -> float:
    env, found = toy(), lookup("agent", name)
    steps = len(env.get_wrapper_attr("space").decisions)
    agent = found(env, steps, found.Options(episodes=150, **options), seed)
    assert isinstance(agent, Agent)
    agent.run()
    assert len(env.rewards) <= 150
    return float(max(env.rewards))


@cache
def random_best() -> float:
    return max(best_of("random", seed) for seed in range(3))


@pytest.mark.parametrize("name", ["greedy", "genetic", "ddpnas", "tpe"])
def test_law_7_better_than_random_on_a_toy(name: str) -> None:
    assert np.mean([best_of(name, seed) for seed in range(3)]) > random_best()


def test_a_distribution_loses_choices_until_one_is_left() -> None:
    env = toy()
    steps = len(env.get_wrapper_attr("space").decisions)
    agent = DDPNASAgent(env, steps, DDPNASOptions(episodes=100))
    left = []
    agent.run(lambda: left.append([int((p > 0).sum()) for p in agent.probabilities()]))
    assert [sorted(set(counts)) for counts in left][-1] == [1]
    assert all((np.diff(counts) <= 0).all() for counts in np.array(left).T)
    assert all(p.sum() == pytest.approx(1) for p in agent.probabilities())
    first, last = (
        np.array([walk.reward for walk in agent.walks[part]])
        for part in (slice(0, 20), slice(-20, None))
    )
    assert last.mean() > first.mean()


class Sized:
    """An environment of decisions with so many choices, which executes what is proposed, or the
    next larger choice.
    """

    def __init__(self, sizes: tuple[int, ...], shift: int = 0) -> None:
        ratios = [tuple((1 + one) / size for one in range(size)) for size in sizes]
        self.space = SimpleNamespace(decisions=[SimpleNamespace(ratios=own) for own in ratios])
        self.shift, self.walked = shift, []  # type: ignore[var-annotated]

    def get_wrapper_attr(self, name: str) -> Any:
        return {"space": self.space, "bounds": None, "announce": lambda *_: None}[name]

    def reset(self, options: Any) -> None:
        self.walked.append([])

    def step(self, action: Any) -> Any:
        ratios = self.space.decisions[len(self.walked[-1])].ratios
        choice = int(np.abs(np.array(ratios) - action.item()).argmin())
        self.walked[-1].append(ratios[min(choice + self.shift, len(ratios) - 1)])
        info = {"executed_ratios": self.walked[-1]}
        return None, -float(np.square(self.walked[-1]).sum()), False, False, info


@pytest.mark.parametrize("sizes", [(1,), (1, 2), (3, 3, 3), (2, 5, 17), (30, 30), (45, 12, 7)])
@pytest.mark.parametrize("shift", [0, 1])
def test_one_choice_a_decision_is_left_after_any_number_of_episodes(
    sizes: tuple[int, ...], shift: int
) -> None:
    for episodes in (*range(2, 40), *range(40, 401, 23), 400):
        env: Any = Sized(sizes, shift)
        agent = DDPNASAgent(env, len(sizes), DDPNASOptions(episodes=episodes), 1)
        agent.run()
        assert all((p > 0).sum() == 1 for p in agent.probabilities()), episodes
        assert agent.episodes_done <= episodes
        if max(sizes) > 1:
            assert episodes - agent.episodes_done < max(sizes), "hardly any is left over"
        for number, (p, size) in enumerate(zip(agent.probabilities(), sizes, strict=True)):
            proposed = min((1 + int(p.argmax()) + shift) / size, 1)
            assert agent.walks[-1].ratios[number] == pytest.approx(proposed)


def test_every_live_choice_is_tried_once_a_subround_and_the_update_is_the_published_one() -> None:
    sizes = (6, 6)
    env: Any = Sized(sizes)
    options = DDPNASOptions(episodes=200, subrounds=2, sharpness=4.0)
    agent = DDPNASAgent(env, len(sizes), options, 3)
    rounds = ddpnas.rounds(6, 199, 2)
    assert [one.left for one in rounds] == [5, 4, 3, 2, 1], "one by one where episodes suffice"
    assert sum(one.samples * one.subrounds for one in rounds) in (198, 199)
    theta, proposed = [np.full(6, 1 / 6), np.full(6, 1 / 6)], agent.propose()
    for one in rounds:
        walks = []
        for _ in range(one.subrounds):
            walks.append([agent._walk(ratios) for ratios in proposed])
            agent.walks += walks[-1]
            proposed = agent.propose()
        rewards = np.array([walk.reward for walk in agent.walks])
        middle = np.median(rewards)
        for number in range(2):
            alive = np.flatnonzero(theta[number])
            shares = np.zeros((one.subrounds, 6))
            for share, part in zip(shares, walks, strict=True):
                choices = [round(6 * walk.ratios[number]) - 1 for walk in part]
                assert sorted(choices) == alive.tolist()
                for choice, walk in zip(choices, part, strict=True):
                    share[choice] = np.exp(4 * (walk.reward - middle) / (rewards.max() - middle))
            shares /= shares.sum(1, keepdims=True)
            theta[number] = shares.mean(0) + 0.5 * theta[number]
            theta[number][alive[theta[number][alive].argmin()]] = 0
            theta[number] /= theta[number].sum()
        for own, expected in zip(agent.probabilities(), theta, strict=True):
            assert own == pytest.approx(expected)
    assert len(proposed) == 1 and agent.propose() == []


def test_genetic_screens_by_the_layers_errors() -> None:
    """Children that are measured have a smaller estimate than those that are not screened."""
    env = toy()
    space = env.get_wrapper_attr("space")
    steps = len(space.decisions)
    names = [d.name for d in space.decisions]

    def errors(decision: Any) -> tuple[float, ...]:
        weight = 1.0 + names.index(decision.name)
        return tuple(weight * (1 - ratio) for ratio in decision.ratios)

    space_errors, space.layer_errors = space.layer_errors, errors
    try:
        means = []
        for screened in (1, 8):
            options = GeneticAgent.Options(episodes=40, screened=screened)
            agent = GeneticAgent(env, steps, options, 0)
            agent.run()
            estimates = [
                sum(
                    errors(d)[d.ratios.index(ratio)]
                    for d, ratio in zip(space.decisions, walk.ratios, strict=True)
                )
                for walk in agent.walks[1:]
            ]
            means.append(np.mean(estimates))
    finally:
        space.layer_errors = space_errors
    assert means[1] < means[0]


@pytest.mark.parametrize("name", ["genetic", "greedy", "shallow", "deep"])
def test_proposals_use_the_whole_budget(digits: Dataset, tmp_path: Path, name: str) -> None:
    config = config_of(*overrides(name))
    result = search(config, model=Mine(), dataset=digits, out=tmp_path)
    bounds = Bounds.of(result.problem.space, result.problem.budget)
    for line in result.run.lines():
        for decision, choices in bounds.choices.items():
            larger = [choice for choice in choices if choice > line["strategy"][decision]]
            if larger:
                cost = result.problem.space.cost({**line["strategy"], decision: larger[0]})
                assert not bounds.budget.allows(cost), "a step more would still have fitted"


def test_shallow_and_deep_are_what_they_say(digits: Dataset, tmp_path: Path) -> None:
    slopes = {}
    for name in ("shallow", "deep"):
        config = config_of(*overrides(name))
        lines = search(config, model=Mine(), dataset=digits, out=tmp_path).run.lines()
        assert [line["phase"] for line in lines] == ["uniform", name]
        slopes[name] = np.polyfit(range(len(lines[1]["ratios"])), lines[1]["ratios"], 1)[0]
    assert slopes["shallow"] > 0 > slopes["deep"]
