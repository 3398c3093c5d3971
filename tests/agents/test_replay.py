"""What an agent learns from is what happened (law 12)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from amc.agents.replay import BestEpisodes
from zoo import zoo_env, zoo_space

from amc.registry import lookup


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("envs", [1, 2])
def test_stored_transitions_are_those_of_what_was_executed(fill: bool, envs: int) -> None:
    """Whoever walks the stored actions, exactly, sees the stored observations, and the rewards
    are those of their episodes.
    """
    env, steps = zoo_env("plain20", 0.4, fill=fill), len(zoo_space("plain20").decisions)
    found = lookup("agent", "td3")
    options = found.Options(episodes=6, warmup_episodes=4, envs=envs, warmup_spread=None)
    agent = found(env, steps, options, 0)
    agent.run()
    buffer = agent.replay_buffer
    assert buffer.size() == 6 * steps
    for start in range(0, 6 * steps, steps):
        own = slice(start, start + steps)
        ratios = (buffer.actions[own, 0, 0] + 1) / 2
        seen = [env.reset(options={"exact": True})[0]]
        for ratio in ratios:
            observation, *_, info = env.step(np.array([ratio], np.float32))
            seen.append(observation)
        np.testing.assert_allclose(info["executed_ratios"], ratios, atol=1e-6)
        np.testing.assert_allclose(buffer.observations[own, 0], seen[:-1], atol=1e-6)
        np.testing.assert_allclose(buffer.next_observations[own, 0], seen[1:], atol=1e-6)


def test_the_best_episodes_are_never_forgotten() -> None:
    """However small the ring is: the ten best of 144 came first here."""
    env, steps = zoo_env("plain20", 0.5, fill=True), len(zoo_space("plain20").decisions)
    found = lookup("agent", "td3")
    agent = found(env, steps, found.Options(episodes=2, replay=steps, imitate=3), 0)
    agent.run()
    assert agent.replay_buffer.size() == steps, "the ring holds one episode"
    assert len(agent.replay_buffer.best._kept) == 2

    best = BestEpisodes(10)
    for number in range(144):
        rows = np.full((3, 2), number, np.float32)
        best.add(rows, rows[:, :1], -float(number), 0.5)
    seen, _ = best.sample(2000, np.random.default_rng(0))
    assert set(seen[:, 0]) == set(range(10))
    again = BestEpisodes(10)
    again.load_state(best.state())
    again.add(rows, rows[:, :1], 1.0, 0.5)
    seen, actions = again.sample(2000, np.random.default_rng(0))
    assert set(seen[:, 0]) == {*range(9), 143} and (seen[:, :1] == actions).all()


def test_the_best_for_their_budgets() -> None:
    """Where budgets differ a high reward may be that of a large budget only."""
    rng, best = np.random.default_rng(0), BestEpisodes(20)
    budgets, luck = rng.uniform(0.3, 0.8, 300), rng.normal(0, 0.1, 300)
    for number, (budget, own) in enumerate(zip(budgets, luck, strict=True)):
        rows = np.full((2, 1), number, np.float32)
        best.add(rows, rows, float(5 * budget + own), float(budget))
    chosen = sorted({int(value) for value in best.sample(4000, rng)[0][:, 0]})
    assert len(chosen) == 20 and luck[chosen].mean() > 1.3 * 0.1
    assert budgets[chosen].min() < 0.45 and budgets[chosen].max() > 0.65


def test_a_state_without_episodes_can_be_saved() -> None:
    best = BestEpisodes(3)
    again = BestEpisodes(3)
    again.load_state(best.state())
    assert torch.equal(again.state()["rewards"], best.state()["rewards"])
