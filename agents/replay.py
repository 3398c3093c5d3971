"""The replay buffer of AMC: the episode's final reward is written to every transition of the
episode; and the best episodes, however long ago.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples

Array = NDArray[Any]
_Step = tuple[Array, Array, Array, Array]  # observation, the next, action, done
SAME = 1e-6  # budgets, as parts of the original's cost
SPARE = 4  # times as many episodes are kept as are used, where budgets differ
_ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones")


class EpisodeReplayBuffer(ReplayBuffer):
    """Holds back an episode until it ends, then stores it with its final reward, as it was
    executed: the actions AND the observations on the way to them, where the environment gives them
    at the end. Episodes that are walked in step are stored one after the other.

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
        best: int = 10,
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
        self.best = BestEpisodes(best)
        self._episodes: list[list[_Step]] = [[] for _ in range(n_envs)]

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

        ``infos[i]["executed_ratios"]`` and ``["observations"]``, where the environment gives them
        at the end, replace the actions and what was seen: the critic learns from what was done.
        """
        for number, episode in enumerate(self._episodes):
            own = slice(number, number + 1)
            episode.append((obs[own], next_obs[own], action[own], done[own]))
            if done[number]:
                self._store(episode, reward[own], infos[number])
                episode.clear()

    def _store(self, episode: list[_Step], reward: Array, info: dict[str, Any]) -> None:
        actions = np.concatenate([action for _, _, action, _ in episode])
        if "executed_ratios" in info:
            actions = self._scaled(np.array(info["executed_ratios"], np.float32))
        seen = info.get("observations")
        if seen is None:
            seen = np.concatenate([*(obs for obs, *_ in episode), episode[-1][1]])
        for step, (*_, done) in enumerate(episode):
            rows = seen[step : step + 1], seen[step + 1 : step + 2], actions[step : step + 1]
            super().add(*rows, reward, done, [info])
        final = float(reward[0])
        self.best.add(seen[:-1], actions, final, info.get("budget", 1.0))
        decay = self.baseline_decay
        self.baseline = (
            final if self.baseline is None else decay * self.baseline + (1 - decay) * final
        )

    def _scaled(self, ratios: Array) -> Array:
        """Keep ratios (n,) as Stable-Baselines3 stores actions: scaled to [-1, 1], (n, 1)."""
        assert isinstance(self.action_space, spaces.Box)
        low, high = self.action_space.low, self.action_space.high
        return np.asarray(2 * (ratios[:, None] - low) / (high - low) - 1, np.float32)

    def sample(self, batch_size: int, env: Any = None) -> ReplayBufferSamples:
        samples = self._get_samples(self.generator.integers(0, self.size(), size=batch_size))
        return samples._replace(rewards=samples.rewards - (self.baseline or 0.0))

    def sample_best(self, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Observations and actions of the best episodes so far (`BestEpisodes`)."""
        seen, actions = self.best.sample(batch_size, self.generator)
        return self.to_torch(seen), self.to_torch(actions)

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
        kept = {"best": self.best.state(), "baseline": self.baseline}
        return {**arrays, **kept, "pos": self.pos, "full": self.full}

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        for name in _ARRAYS:
            getattr(self, name)[...] = state[name].numpy()
        self.pos, self.full, self.baseline = state["pos"], state["full"], state["baseline"]
        self.best.load_state(state["best"])
        for episode in self._episodes:
            episode.clear()


@dataclass(frozen=True)
class _Episode:
    """What was seen and done."""

    number: int
    observations: Array  # (steps, features)
    actions: Array  # (steps, 1)


class BestEpisodes:
    """The episodes with the highest rewards so far; where budgets differ, the highest for their
    budgets (`standing`), which is found anew as episodes come: then more are kept than are used.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._rewards: list[float] = []  # of all episodes
        self._budgets: list[float] = []
        self._kept: list[_Episode] = []  # the best first

    def add(self, observations: Array, actions: Array, reward: float, budget: float) -> None:
        """Take note of an episode."""
        self._rewards.append(reward)
        self._budgets.append(budget)
        self._kept.append(_Episode(len(self._rewards) - 1, observations, actions))
        worth = standing(np.array(self._rewards), np.array(self._budgets))
        self._kept.sort(key=lambda one: (-worth[one.number], one.number))
        differ = np.ptp(self._budgets) > SAME
        del self._kept[self.count * (SPARE if differ else 1) :]

    def sample(self, size: int, generator: np.random.Generator) -> tuple[Array, Array]:
        """So many observations (size, features) and actions (size, 1), drawn from the best."""
        best = self._kept[: self.count]
        seen = np.concatenate([one.observations for one in best])
        done = np.concatenate([one.actions for one in best])
        chosen = generator.integers(0, len(done), size=size)
        return seen[chosen], done[chosen]

    def state(self) -> dict[str, Any]:
        """What `load_state` needs."""
        kept = [(one.number, one.observations, one.actions) for one in self._kept]
        numbers, seen, actions = zip(*kept, strict=True) if kept else ((), (), ())
        return {
            "rewards": torch.tensor(self._rewards, dtype=torch.float64),
            "budgets": torch.tensor(self._budgets, dtype=torch.float64),
            "numbers": torch.tensor(numbers, dtype=torch.int64),
            "observations": torch.from_numpy(np.array(seen, np.float32)),
            "actions": torch.from_numpy(np.array(actions, np.float32)),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self._rewards, self._budgets = (state[name].tolist() for name in ("rewards", "budgets"))
        rows = (state["numbers"].tolist(), state["observations"], state["actions"])
        self._kept = [
            _Episode(number, seen.numpy(), actions.numpy())
            for number, seen, actions in zip(*rows, strict=True)
        ]


def standing(rewards: Array, budgets: Array) -> Array:
    """How good rewards are for their budgets: above the mean that a cubic in the budget fits to
    all of them, in deviations that another one fits.
    """
    if np.ptp(budgets) < SAME:
        return rewards
    x = (budgets - budgets.mean()) / budgets.std()
    degree = min(3, len(np.unique(budgets)) - 1)
    residuals = rewards - np.polyval(np.polyfit(x, rewards, degree), x)
    spread = np.polyval(np.polyfit(x, np.abs(residuals), degree), x)
    return np.asarray(residuals / np.maximum(spread, 0.1 * np.abs(residuals).mean() + 1e-12))
