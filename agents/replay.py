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
_ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones")


class EpisodeReplayBuffer(ReplayBuffer):
    """Holds back an episode until it ends, then stores it with its final reward and its EXECUTED
    actions.

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
    ) -> None:
        super().__init__(
            buffer_size,
            observation_space,
            action_space,
            device,
            n_envs,
            optimize_memory_usage,
            handle_timeout_termination=False,
        )
        self.generator = np.random.default_rng(seed)
        self.baseline_decay = baseline_decay
        self.baseline: float | None = None
        self._episode: list[tuple[Array, Array, Array, Array]] = []

    def add(
        self,
        obs: Array,
        next_obs: Array,
        action: Array,
        reward: Array,
        done: Array,
        infos: list[dict[str, Any]],
    ) -> None:
        """Hold a transition; at the end of the episode store them all.

        ``infos[0]["executed_ratios"]``, where the environment gives it at the end, replaces the
        actions: the critic learns from what was done.
        """
        self._episode.append((obs, next_obs, action, done))
        if not done[0]:
            return
        executed = infos[0].get("executed_ratios", [None] * len(self._episode))
        for (held_obs, held_next, held_action, held_done), ratio in zip(
            self._episode, executed, strict=True
        ):
            taken = held_action if ratio is None else self._action(ratio)
            super().add(held_obs, held_next, taken, reward, held_done, infos)
        self._episode = []
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
        """Samples of those transitions that have the highest rewards, which are their episodes'."""
        order = np.argsort(-self.rewards[: self.size(), 0], kind="stable")[:transitions]
        return self._get_samples(self.generator.choice(order, size=batch_size))

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
        self._episode = []
