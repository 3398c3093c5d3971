"""Measured sensitivity, and what starts from it."""

from __future__ import annotations

from itertools import pairwise, product
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from amc.agents.curves import Curve, Interaction, spread
from amc.agents.knapsack import Losses, cheapest
from amc.agents.sensitivity import SensitivityAgent, SensitivityOptions
from amc.agents.td3 import TD3Agent
from amc.envs import ENV_ID
from test_search import journal
from zoo import Mine, config_of, zoo_space

from amc.analysis.pareto import pareto
from amc.cost.budget import Budget
from amc.data.datasets import Dataset
from amc.errors import UserError
from amc.registry import lookup
from amc.search import resume, search


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("pairs", [False, True])
def test_the_knapsack_is_solved_exactly(pairs: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 5, 5)
    alone = [np.sort(rng.random(size))[::-1].copy() for size in sizes]
    weights = [np.sort(rng.integers(0, 12, size)) for size in sizes]
    alone[2][0] = np.inf
    together = [rng.normal(0, 0.3, shape) for shape in pairwise(sizes)]
    losses = Losses(alone, together if pairs else [])
    capacity = int(rng.integers(5, 30))
    allowed = [
        (losses.of(taken), taken)
        for taken in product(*(range(size) for size in sizes))
        if sum(int(w[i]) for w, i in zip(weights, taken, strict=True)) <= capacity
    ]
    best = min(allowed, default=(np.inf, ()))
    found = cheapest(losses, weights, capacity)
    if not np.isfinite(best[0]):
        assert found is None
    else:
        assert found is not None and losses.of(found) == pytest.approx(best[0])
        assert sum(int(w[i]) for w, i in zip(weights, found, strict=True)) <= capacity


def test_a_curve_falls_and_says_nothing_beyond_what_was_measured() -> None:
    curve = Curve({0.2: 1.0, 0.4: 0.3, 0.6: 0.35, 1.0: 0.0})
    ratios = np.linspace(0.2, 1.0, 30)
    assert (np.diff(curve(ratios.tolist())) <= 1e-12).all()
    assert curve([0.2, 1.0]) == pytest.approx([1.0, 0.0])
    assert np.isinf(curve([0.1])).all()
    assert spread([0.1, 0.2, 0.3, 0.5, 0.7, 1.0], 3) == [0.1, 0.2, 0.5]
    assert spread([1.0], 3) == []


def test_an_interaction_is_what_was_measured() -> None:
    both = Interaction([0.25, 0.5, 1.0], [0.5, 1.0], np.array([[3.0, 0.0], [1.0, 0.0], [0.0, 0.0]]))
    assert both([0.25, 0.5], [0.5, 1.0]) == pytest.approx(np.array([[3.0, 0.0], [1.0, 0.0]]))
    assert both([np.sqrt(0.125)], [0.5])[0, 0] == pytest.approx(2.0)


class Toy:
    """A real space and budget; the reward is made up of what each decision loses alone and, where
    there are any, of what neighbours lose together.
    """

    def __init__(self, ratio: float = 0.5, together: float = 0.0) -> None:
        self.space = space = zoo_space("plain20")
        self.names = [decision.name for decision in space.decisions]
        rng = np.random.default_rng(0)
        self.worth = rng.uniform(0.2, 3.0, len(self.names))
        self.together = together
        self.rewards: list[float] = []
        toy = self

        class Outcome:
            def __init__(self, strategy: dict[str, int], budget: Budget) -> None:
                ratios = [space.encode(d, strategy[d.name]) for d in space.decisions]
                self.reward = toy.reward(ratios)
                if budget.allows(space.cost(strategy)):
                    toy.rewards.append(self.reward)

        budget = Budget.of("macs", space.cost({}), ratio, fill=True)
        self.env = gymnasium.make(ENV_ID, space=space, budget=budget, evaluate=Outcome)

    def reward(self, ratios: Any) -> float:
        lost = self.worth * np.log(np.array(ratios)) ** 2
        both = self.together * np.minimum(lost[1:], lost[:-1]).sum()
        return -float(lost.sum() - both)

    def agent(self, name: str, episodes: int, **options: Any) -> Any:
        found = lookup("agent", name)
        return found(self.env, len(self.names), found.Options(episodes=episodes, **options), 0)


def test_where_losses_add_up_the_first_solution_is_as_good_as_the_rounds_make_it() -> None:
    toy = Toy()
    agent: SensitivityAgent = toy.agent("sensitivity", 400, choices=6)
    agent.run()
    first = next(n for n, walk in enumerate(agent.walks) if agent.phase_of(n) == "solve")
    assert first == agent.measurements
    best = agent.best()[0].reward
    assert agent.walks[first].reward == pytest.approx(best, rel=0.03)
    assert len(agent.walks) < 400, "it ends by itself"
    control = Toy()
    control.agent("random", 400).run()
    assert best > max(control.rewards)


def test_rounds_mend_what_does_not_add_up() -> None:
    """And pairs see it at once."""
    firsts, bests = [], []
    for pairs in (False, True):
        toy = Toy(together=3.0)
        agent: SensitivityAgent = toy.agent("sensitivity", 600, pairs=pairs)
        agent.run()
        firsts.append(agent.walks[agent.measurements].reward)
        bests.append(agent.best()[0].reward)
    assert bests[0] > firsts[0] + 1e-6
    assert firsts[1] > firsts[0] + 1e-6


def test_too_few_episodes_are_refused() -> None:
    with pytest.raises(UserError, match="so at least"):
        Toy().agent("sensitivity", 5)
    with pytest.raises(UserError, match="so at least"):
        Toy().agent("td3", 5, start="sensitivity")


@pytest.mark.parametrize("around", ["whole", "uniform"])
def test_solutions_keep_any_budget(around: str) -> None:
    """One set of measurements gives a strategy for every budget."""
    toy = Toy()
    agent: SensitivityAgent = toy.agent("sensitivity", 100, around=around)
    agent.run()
    space, whole = toy.space, toy.space.cost({})
    for ratio in (0.3, 0.45, 0.6, 0.9):
        budget = Budget.of("macs", whole, ratio)
        bounds = type(agent.bounds).of(space, budget)
        pairs = zip(space.decisions, agent.solution(bounds), strict=True)
        strategy = {decision.name: space.decode(decision, one) for decision, one in pairs}
        assert budget.allows(space.cost(strategy))


STARTING = ["td3", "ddpg", "sac", "genetic", "tpe"]


def own(name: str) -> list[str]:
    more = {"genetic": [], "tpe": ["agent.startup=4"]}.get(name, ["agent.warmup_episodes=3"])
    return [f"agent={{name: {name}}}", "agent.start=sensitivity", "agent.episodes=16", *more]


@pytest.mark.parametrize("name", STARTING)
def test_laws_2_and_3_of_agents_that_start_from_it(
    digits: Dataset, tmp_path: Path, name: str
) -> None:
    """What is measured counts; nothing over the budget is ever the best; resumed as straight."""
    model, config = Mine(), config_of(*own(name))
    straight = search(config, model=model, dataset=digits, out=tmp_path / "straight")
    lines = straight.run.lines()
    assert len(lines) == 17
    phases = [line["phase"] for line in lines]
    count = phases.index("solve") - 1
    assert phases[1 : 1 + count] == ["measure"] * count and phases[1 + count] == "solve"
    assert "measure" not in phases[2 + count :]
    assert any(not line["feasible"] for line in lines[1 : 1 + count])
    assert all(line["feasible"] for line in lines[1 + count :])
    assert lines[straight.best["episode"]]["feasible"]

    class Stop(Exception):
        pass

    def stopping(what: str, done: int, total: int) -> None:
        if what.startswith("searching") and done == stop:
            raise Stop

    for stop in (2, 14):
        with pytest.raises(Stop):
            search(config, model=model, dataset=digits, out=tmp_path / str(stop), report=stopping)
        path = next((tmp_path / str(stop)).glob("*/s*"))
        resume(path, model=model, dataset=digits)
        assert journal(path) == journal(straight.run.path)


@pytest.mark.parametrize("sensitivities", [False, True])
def test_the_actor_begins_at_the_solution(sensitivities: bool) -> None:
    toy = Toy()
    agent: TD3Agent = toy.agent(
        "td3", 60, start="sensitivity", sensitivities=sensitivities, warmup_episodes=1, sigma=0.0
    )
    seen: list[float] = []

    def first() -> None:
        assert agent.opening is not None
        if agent.opening.over and not seen:
            agent._know(agent.opening)
            walkers: Any = agent.env
            wanted = agent.opening.solution(agent.opening.bounds)
            observations, _ = walkers.way(wanted, 0)
            seen.extend(agent.best_ratio(one) for one in observations)
            np.testing.assert_allclose(seen, wanted, atol=0.06)
            if sensitivities:
                assert observations.shape[1] == 12 + 3
                np.testing.assert_allclose(observations[:, -3:], agent.opening.lost, rtol=1e-5)

    agent.run(first)
    assert seen and agent.episodes_done == 60


@pytest.mark.parametrize("episodes", [176, 177])
def test_auto_is_sensitivity_where_that_takes_a_third_of_the_episodes(episodes: int) -> None:
    toy = Toy()
    agent: TD3Agent = toy.agent("td3", episodes)
    assert agent.options.start == "auto"
    count = toy.agent("sensitivity", 400).measurements + 1
    assert count == 59
    assert (agent.opening is not None) == (episodes >= 3 * count)
    assert agent._centre is not None
    middle = agent.opening is None and agent._centre(0)
    if middle is not False:
        uniform = toy.env.get_wrapper_attr("bounds").uniform()
        assert list(middle) == list(toy.space.ratios(uniform))


def test_several_environments_after_an_opening() -> None:
    toy = Toy()
    agent = toy.agent("td3", 60, start="sensitivity", envs=4, warmup_episodes=4)
    agent.run()
    assert agent.episodes_done == agent.episodes and 56 < agent.episodes <= 60


def test_a_range_of_budgets_from_one_set_of_measurements(digits: Dataset, tmp_path: Path) -> None:
    """`amc pareto` draws the curve."""
    ranges = ["budget.ratio=[0.5, 0.9]", "agent.episodes=16"]
    config = config_of("agent={name: sensitivity, choices: 1}", *ranges)
    result = search(config, model=Mine(), dataset=digits, out=tmp_path)
    lines = [line for line in result.run.lines() if line["phase"] == "solve"]
    assert len(lines) > 5 and all(line["feasible"] for line in lines)
    assert len({line["macs"] for line in lines}) > 3
    assert len(pareto([result.run.path]).front) >= 1
    config = config_of("agent={name: td3, start: sensitivity, warmup_episodes: 2}", *ranges)
    lines = search(config, model=Mine(), dataset=digits, out=tmp_path).run.lines()
    assert all(line["feasible"] for line in lines if line["phase"] in ("warmup", "explore"))


def test_options_of_earlier_versions_are_read() -> None:
    """``centred`` was whether to start from the uniform strategy."""
    options = TD3Agent.Options
    assert options(**{"centred": False}).start == "none"
    assert options(**{"centred": True}).start == "uniform"
    assert SensitivityOptions().choices == 3
