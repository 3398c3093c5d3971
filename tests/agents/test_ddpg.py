"""AMC's DDPG."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from amc.agents.ddpg import DDPGAgent, DDPGOptions
from amc.agents.replay import EpisodeReplayBuffer
from amc.agents.starting import truncated_normal
from gymnasium import spaces

from amc.config import load_config

TARGET = (0.2, 0.9, 0.5)
_, _PRESET = load_config("amc_paper")
PAPER = {key: value for key, value in _PRESET.agent.items() if key not in ("name", "episodes")}


class Toy(gymnasium.Env):
    """The best ratio of each step is known; the reward at the end is minus the squared distance
    from it.
    """

    observation_space = spaces.Box(0, 1, (3,), np.float32)
    action_space = spaces.Box(0, 1, (1,), np.float32)

    def __init__(self) -> None:
        self.rewards: list[float] = []
        self.actions: list[float] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.done_: list[float] = []
        return np.eye(3, dtype=np.float32)[0], {}

    def step(self, action: Any) -> Any:
        self.done_.append(round(float(action[0]), 1))  # a legal choice: multiples of 0.1
        self.actions.append(float(action[0]))
        done = len(self.done_) == 3
        reward = (
            -sum((a - b) ** 2 for a, b in zip(self.done_, TARGET, strict=True)) if done else 0.0
        )
        if done:
            self.rewards.append(reward)
        observation = np.eye(3, dtype=np.float32)[min(len(self.done_), 2)]
        return observation, reward, done, False, {"executed_ratios": self.done_} if done else {}


def paper(**options: Any) -> DDPGOptions:
    return DDPGOptions(**{**PAPER, **options})


def trained(episodes: int = 300, seed: int = 0, **options: Any) -> tuple[Toy, DDPGAgent]:
    env = Toy()
    agent = DDPGAgent(env, 3, paper(episodes=episodes, **{"warmup_episodes": 60, **options}), seed)
    agent.run()
    return env, agent


def test_warmup_around_a_ratio_of_the_episode() -> None:
    env, _ = trained(episodes=200, warmup_episodes=200, warmup_spread=0.05)
    actions = np.array(env.actions).reshape(200, 3)
    assert 0 < actions.std(axis=1).mean() < 0.06, "those of an episode are alike"
    assert 0.25 < actions.mean(axis=1).std() < 0.32, "episodes are spread over [0, 1]"
    env, _ = trained(episodes=200, warmup_episodes=200)
    assert np.array(env.actions).reshape(200, 3).std(axis=1).mean() > 0.2


def test_law_7_solves_a_toy_better_than_random() -> None:
    env, agent = trained()
    rng = np.random.default_rng(0)
    random = [
        -sum((round(a, 1) - b) ** 2 for a, b in zip(rng.random(3), TARGET, strict=True))
        for _ in range(300)
    ]
    assert len(env.rewards) == 300
    assert np.mean(env.rewards[-50:]) > np.percentile(random, 98)
    ratios = [agent.best_ratio(np.eye(3, dtype=np.float32)[step]) for step in range(3)]
    assert np.abs(np.array(ratios) - TARGET).max() < 0.2


def test_law_7_same_seed_same_journal() -> None:
    first, second, other = trained(90)[0], trained(90)[0], trained(90, seed=1)[0]
    assert first.actions == second.actions
    assert first.actions != other.actions


def test_warm_up_is_uniform_and_untrained() -> None:
    env, agent = trained(100, warmup_episodes=100)
    counts, _ = np.histogram(env.actions, bins=5, range=(0, 1))
    assert counts.min() > 35 and counts.max() < 90
    assert agent._n_updates == 0


def test_updates_come_one_for_each_transition_after_the_warm_up() -> None:
    _, agent = trained(70)
    assert agent._n_updates == 10 * 3
    assert agent.actor.optimizer.param_groups[0]["lr"] == 1e-4
    assert agent.critic.optimizer.param_groups[0]["lr"] == 1e-3
    assert [m.out_features for m in agent.actor.mu if isinstance(m, torch.nn.Linear)] == [
        300,
        300,
        1,
    ]
    assert agent.gamma == 1.0


def test_imitation_moves_the_actor_to_the_best() -> None:
    env, agent = trained(60, imitate=10)  # all warm-up
    best = np.argsort(env.rewards)[-10:]
    wanted = np.array(env.actions).reshape(60, 3).round(1)[best].mean(axis=0)

    def distance() -> float:
        ratios = [agent.best_ratio(np.eye(3, dtype=np.float32)[step]) for step in range(3)]
        return float(np.abs(ratios - wanted).max())

    before = distance()
    agent._imitate(300, 64)
    assert distance() < 0.2 * before


def test_resumed_agent_goes_on_exactly() -> None:
    straight, _ = trained(100)
    states: list[Any] = []
    env = Toy()
    agent = DDPGAgent(env, 3, paper(episodes=75, warmup_episodes=60), 0)
    agent.run(lambda: states.append(agent.state()))
    assert len(states) == 75
    torch.save(states[-1], buffer := __import__("io").BytesIO())
    buffer.seek(0)
    again = Toy()
    fresh = DDPGAgent(again, 3, paper(episodes=100, warmup_episodes=60), 0)
    fresh.load_state(torch.load(buffer, weights_only=True))
    assert fresh.episodes_done == 75
    fresh.run()
    assert env.actions + again.actions == straight.actions


def test_noise_is_truncated_not_clipped_and_decays() -> None:
    rng = np.random.default_rng(0)
    drawn = np.concatenate(
        [truncated_normal(np.array([[0.95]]), 0.5, rng).ravel() for _ in range(2000)]
    )
    assert drawn.min() > 0 and drawn.max() < 1
    assert (drawn > 0.999).mean() < 0.02  # clipping would put almost half of them on 1
    assert truncated_normal(np.array([[0.3]]), 1e-9, rng).item() == pytest.approx(0.3)
    agent = DDPGAgent(Toy(), 3, paper(episodes=10, warmup_episodes=2), 0)
    agent.num_timesteps = 2 * 3
    assert agent.sigma == 0.5
    agent.num_timesteps = 5 * 3
    assert agent.sigma == pytest.approx(0.5 * 0.95**3)


def test_replay_credits_the_episode_and_stores_what_was_done() -> None:
    box = spaces.Box(0, 1, (1,), np.float32)
    buffer = EpisodeReplayBuffer(10, spaces.Box(0, 1, (3,), np.float32), box, baseline_decay=0.5)
    observation = np.zeros((1, 3), np.float32)

    executed: list[float] = []

    def add(ratio: float, reward: float, done: bool) -> None:
        executed.append(ratio)
        raw = np.array([[0.9]], np.float32)
        buffer.add(
            observation,
            observation,
            raw,
            np.array([reward]),
            np.array([done]),
            [{"executed_ratios": executed}] if done else [{}],
        )
        if done:
            executed.clear()

    add(0.25, 0, False)
    assert buffer.pos == 0, "nothing is stored before the episode ends"
    add(0.5, -2.0, True)
    assert buffer.rewards[:2].ravel().tolist() == [-2.0, -2.0]
    assert buffer.actions[:2].ravel().tolist() == [-0.5, 0.0]
    assert buffer.dones[:2].ravel().tolist() == [0.0, 1.0]
    add(1.0, -1.0, True)
    assert buffer.baseline == -1.5
    assert set(buffer.sample(64).rewards.ravel().tolist()) == {-0.5, 0.5}
