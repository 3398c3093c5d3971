"""AMC's agent: DDPG with truncated-normal exploration and one reward for a whole episode (AMC,
section 3.2 and 4).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from amc.agents.replay import EpisodeReplayBuffer
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.stats import truncnorm
from stable_baselines3 import DDPG
from stable_baselines3.common.callbacks import BaseCallback


class DDPGOptions(BaseModel):
    """The options of the agent; the defaults are the paper's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    episodes: int = Field(400, ge=1, description="episodes of the search, warm-up included")
    warmup_episodes: int = Field(
        100, ge=0, description="episodes with random keep ratios, before any update"
    )
    warmup_spread: float | None = Field(
        None,
        gt=0,
        description="none: every keep ratio of the warm-up is uniform; a number: normal with this "
        "standard deviation around a ratio drawn for the episode, so that whole episodes are small "
        "or large",
    )
    sigma: float = Field(
        0.5, ge=0, description="standard deviation of the truncated-normal noise, in keep ratio"
    )
    sigma_decay: float = Field(
        0.95, gt=0, le=1, description="factor on sigma an episode after the warm-up"
    )
    actor_lr: float = Field(1e-4, gt=0, description="learning rate of the actor (Adam)")
    critic_lr: float = Field(1e-3, gt=0, description="learning rate of the critic (Adam)")
    batch_size: int = Field(64, ge=1, description="transitions an update")
    tau: float = Field(0.01, gt=0, le=1, description="soft update of the target networks")
    gamma: float = Field(1.0, gt=0, le=1, description="discount")
    replay: int = Field(2000, ge=1, description="transitions in the replay buffer")
    hidden: int = Field(
        300, ge=1, description="units in each of the two hidden layers of actor and critic"
    )
    baseline_decay: float = Field(
        0.95, ge=0, lt=1, description="of the moving average of rewards that is subtracted"
    )


class DDPGAgent(DDPG):
    """Stable-Baselines3's DDPG with AMC's differences.

    - warm-up: plain uniform actions, no noise on top; no update before it ends
    - exploration: normal noise truncated to [0, 1] around the actor's output, its sigma decaying an
      episode
    - two learning rates; updates at the end of an episode, one for each transition
    - `EpisodeReplayBuffer`: the episode's reward on every transition, executed actions, moving
      baseline

    The actor ends in a tanh over [-1, 1], which is AMC's sigmoid over [0, 1] up to scale.
    """

    Options = DDPGOptions

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        steps: int,
        options: DDPGOptions | None = None,
        seed: int = 0,
    ) -> None:
        """An agent for episodes of ``steps`` decisions in ``env``, whose action is one keep ratio
        in [0, 1].
        """
        self.options = options or DDPGOptions()
        self.steps = steps
        self.generator = np.random.default_rng([seed, 1])
        super().__init__(
            "MlpPolicy",
            env,
            learning_rate=self.options.actor_lr,
            buffer_size=max(self.options.replay, steps),
            learning_starts=self.options.warmup_episodes * steps,
            batch_size=self.options.batch_size,
            tau=self.options.tau,
            gamma=self.options.gamma,
            train_freq=(1, "episode"),
            gradient_steps=-1,
            replay_buffer_class=EpisodeReplayBuffer,
            replay_buffer_kwargs={"seed": seed, "baseline_decay": self.options.baseline_decay},
            policy_kwargs={
                "net_arch": [self.options.hidden] * 2,
                "optimizer_kwargs": {"fused": True},  # one kernel an update
            },
            seed=seed,
            device="cpu",
        )

    @property
    def episodes(self) -> int:
        return self.options.episodes

    @property
    def episodes_done(self) -> int:
        return self.num_timesteps // self.steps

    def phase_of(self, episode: int) -> str:
        """warmup or explore; episodes count from 0."""
        return "warmup" if episode < self.options.warmup_episodes else "explore"

    @property
    def sigma(self) -> float:
        """The standard deviation of the noise now."""
        return self.options.sigma * self.options.sigma_decay ** max(
            0, self.episodes_done - self.options.warmup_episodes
        )

    def run(self, on_episode: Callable[[], None] | None = None) -> None:
        """Walk the episodes that are left. ``on_episode`` is called after each, when its updates
        are done.
        """
        left = self.options.episodes * self.steps - self.num_timesteps
        if left > 0:
            callback = _AfterEpisode(on_episode or (lambda: None))
            self.learn(left, callback=callback, log_interval=None, reset_num_timesteps=False)  # type: ignore[arg-type]

    def best_ratio(self, observation: NDArray[np.float32]) -> float:
        """The actor's keep ratio, without noise."""
        action, _ = self.predict(observation, deterministic=True)
        return float(action.item())

    def _sample_action(
        self, learning_starts: int, action_noise: Any = None, n_envs: int = 1
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        assert isinstance(self.action_space, gymnasium.spaces.Box)
        if self.phase_of(self.episodes_done) == "warmup":
            ratio = self._warmup_ratio(n_envs)
        else:
            assert self._last_obs is not None
            mean, _ = self.predict(self._last_obs, deterministic=True)
            ratio = truncated_normal(np.asarray(mean, dtype=np.float64), self.sigma, self.generator)
        action = ratio.astype(np.float32)
        return action, self.policy.scale_action(action)

    def _warmup_ratio(self, n_envs: int) -> NDArray[np.float64]:
        if self.options.warmup_spread is None:
            return self.generator.uniform(0.0, 1.0, size=(n_envs, 1))
        if self.num_timesteps % self.steps == 0:
            self._warmup_centre = self.generator.uniform(0.0, 1.0, size=(n_envs, 1))
        return truncated_normal(self._warmup_centre, self.options.warmup_spread, self.generator)

    def _update_learning_rate(self, optimizers: Any) -> None:
        """Leave each optimiser its own rate."""

    def _setup_model(self) -> None:
        super()._setup_model()
        for group in self.critic.optimizer.param_groups:
            group["lr"] = self.options.critic_lr

    def state(self) -> dict[str, Any]:
        """Everything that `load_state` needs to go on exactly: tensors and plain values, no pickled
        objects.
        """
        assert isinstance(self.replay_buffer, EpisodeReplayBuffer)
        generators = [self.generator, self.replay_buffer.generator]
        return {
            "policy": self.policy.state_dict(),
            "actor_optimizer": self.actor.optimizer.state_dict(),
            "critic_optimizer": self.critic.optimizer.state_dict(),
            "replay": self.replay_buffer.state(),
            "generators": json.dumps([generator.bit_generator.state for generator in generators]),
            "counters": [self.num_timesteps, self._n_updates, self._episode_num],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`; the next episode starts from the environment's reset."""
        assert isinstance(self.replay_buffer, EpisodeReplayBuffer)
        self.policy.load_state_dict(state["policy"])
        self.actor.optimizer.load_state_dict(state["actor_optimizer"])
        self.critic.optimizer.load_state_dict(state["critic_optimizer"])
        self.replay_buffer.load_state(state["replay"])
        for generator, saved in zip(
            (self.generator, self.replay_buffer.generator),
            json.loads(state["generators"]),
            strict=True,
        ):
            generator.bit_generator.state = saved
        self.num_timesteps, self._n_updates, self._episode_num = state["counters"]
        self._last_obs = None


class _AfterEpisode(BaseCallback):
    """Calls a function after the updates of each episode: before the next rollout starts, and at
    the end.
    """

    def __init__(self, call: Callable[[], None]) -> None:
        super().__init__()
        self._call = call
        self._episodes = 0

    def _on_rollout_start(self) -> None:
        if self._episodes:
            self._call()
        self._episodes += 1

    def _on_training_end(self) -> None:
        self._call()

    def _on_step(self) -> bool:
        return True


def truncated_normal(
    mean: NDArray[np.float64], sigma: float, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Normal around ``mean``, truncated (not clipped) to [0, 1]; ``mean`` itself where sigma has
    all but vanished.
    """
    if sigma < 1e-6:
        return np.clip(mean, 0.0, 1.0)
    drawn = truncnorm.rvs(
        (0 - mean) / sigma, (1 - mean) / sigma, loc=mean, scale=sigma, random_state=generator
    )
    return np.asarray(drawn, dtype=np.float64).reshape(mean.shape)
