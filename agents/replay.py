"""The replay buffer of AMC: the episode's final reward is written to every transition of the
episode.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples

Array = NDArray[Any]
_Step = tuple[Array, Array, Array, Array]  # observation, the next, action, done
_ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones")


class EpisodeReplayBuffer(ReplayBuffer):
    """Holds back an episode until it ends, then stores it with its final reward and its EXECUTED
    actions. Episodes that are walked in step are stored one after the other.

    Sampled rewards are reduced by a moving average of past episodes' rewards (AMC's baseline b, for
    less variance). Samples are drawn with the buffer's own generator.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: str = "cpu",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        seed: int = 0,
        baseline_decay: float = 0.95,
        budgets_differ: bool = False,
    ) -> None:
        super().__init__(
            buffer_size,
            observation_space,
            action_space,
            device,
            n_envs=1,
            optimize_memory_usage=optimize_memory_usage,
            handle_timeout_termination=False,
        )
        self.generator = np.random.default_rng(seed)
        self.baseline_decay = baseline_decay
        self.baseline: float | None = None
        self._budgets_differ = budgets_differ  # the last feature of an observation is the budget
        self._episodes: list[list[_Step]] = [[] for _ in range(n_envs)]
        self._order: Array | None = None  # the best transitions first; none: to be found

    def add(
        self,
        obs: Array,
        next_obs: Array,
        action: Array,
        reward: Array,
        done: Array,
        infos: list[dict[str, Any]],
    ) -> None:
        """Hold a transition of each environment; at the end of an episode store all of it.

        ``infos[i]["executed_ratios"]``, where the environment gives it at the end, replaces the
        actions: the critic learns from what was done.
        """
        for number, episode in enumerate(self._episodes):
            own = slice(number, number + 1)
            episode.append((obs[own], next_obs[own], action[own], done[own]))
            if done[number]:
                self._store(episode, reward[own], infos[number])
                episode.clear()

    def _store(self, episode: list[_Step], reward: Array, info: dict[str, Any]) -> None:
        executed = info.get("executed_ratios", [None] * len(episode))
        for (obs, next_obs, action, done), ratio in zip(episode, executed, strict=True):
            taken = action if ratio is None else self._action(ratio)
            super().add(obs, next_obs, taken, reward, done, [info])
        self._order = None
        final = float(reward[0])
        decay = self.baseline_decay
        self.baseline = (
            final if self.baseline is None else decay * self.baseline + (1 - decay) * final
        )

    def _action(self, ratio: float) -> Array:
        """A keep ratio as Stable-Baselines3 stores it: scaled to [-1, 1]."""
        assert isinstance(self.action_space, spaces.Box)
        low, high = self.action_space.low, self.action_space.high
        scaled = 2 * (np.array([[ratio]], np.float32) - low) / (high - low) - 1
        return np.asarray(scaled, np.float32)

    def sample(self, batch_size: int, env: Any = None) -> ReplayBufferSamples:
        samples = self._get_samples(self.generator.integers(0, self.size(), size=batch_size))
        return samples._replace(rewards=samples.rewards - (self.baseline or 0.0))

    def sample_best(self, transitions: int, batch_size: int) -> ReplayBufferSamples:
        """Samples of those transitions that have the highest rewards, which are their episodes';
        where budgets differ, the highest for their budgets.
        """
        if self._order is None:
            worth = self.rewards[: self.size(), 0]
            if self._budgets_differ:
                worth = standing(worth, self.observations[: self.size(), 0, -1])
            self._order = np.argsort(-worth, kind="stable")
        best = self._order[:transitions]
        return self._get_samples(self.generator.choice(best, size=batch_size))

    def _get_samples(self, batch_inds: Array, env: Any = None) -> ReplayBufferSamples:
        rows = [
            getattr(self, name)[batch_inds, 0]
            for name in ("observations", "actions", "next_observations")
        ]
        ends, rewards = (
            getattr(self, name)[batch_inds, 0].reshape(-1, 1) for name in ("dones", "rewards")
        )
        return ReplayBufferSamples(*map(self.to_torch, (*rows, ends, rewards)))

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as tensors and plain values."""
        arrays = {name: torch.from_numpy(getattr(self, name).copy()) for name in _ARRAYS}
        return {**arrays, "pos": self.pos, "full": self.full, "baseline": self.baseline}

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        for name in _ARRAYS:
            getattr(self, name)[...] = state[name].numpy()
        self.pos, self.full, self.baseline = state["pos"], state["full"], state["baseline"]
        self._order = None
        for episode in self._episodes:
            episode.clear()


def standing(rewards: Array, budgets: Array) -> Array:
    """How good rewards are for their budgets: above the mean that a cubic in the budget fits to
    all of them, in deviations that another one fits.
    """
    if np.ptp(budgets) < 1e-6:
        return rewards
    x = (budgets - budgets.mean()) / budgets.std()
    degree = min(3, len(np.unique(budgets)) - 1)
    residuals = rewards - np.polyval(np.polyfit(x, rewards, degree), x)
    spread = np.polyval(np.polyfit(x, np.abs(residuals), degree), x)
    return np.asarray(residuals / np.maximum(spread, 0.1 * np.abs(residuals).mean() + 1e-12))
