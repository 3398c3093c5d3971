"""What AMC's agent adds to the off-policy algorithms of Stable-Baselines3, whichever it is.

- what it starts from: the uniform strategy, or measured sensitivities (`Start`)
- warm-up: random keep ratios, no noise on top; no update before it ends
- updates at the end of an episode, one for each transition; then the best episodes are imitated
- two learning rates
- `EpisodeReplayBuffer`: the episode's reward on every transition, executed actions, moving baseline
- exact resume, with torch's random numbers of its own
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, ClassVar, cast

import gymnasium
import numpy as np
import torch
from amc.agents.offpolicy_options import OffPolicyOptions
from amc.agents.replay import EpisodeReplayBuffer
from amc.agents.starting import (
    MEASURED,
    Opening,
    Start,
    starting,
    truncated_normal,
    uniform_ratio,
)
from amc.agents.walkers import AfterEpisode, Walkers, extractor_of
from numpy.typing import NDArray
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import polyak_update

from amc.errors import UserError
from amc.randomness import own_randomness
from amc.runs.policy import Policy

Array = NDArray[np.float64]

LESSONS = 16  # budgets of a range for which the actor learns what it starts from
LESSON_STEPS = 1000  # updates


class OffPolicyAgent(OffPolicyAlgorithm):
    """AMC's episodes around an algorithm of Stable-Baselines3, which comes second in the bases."""

    Options: ClassVar[type[OffPolicyOptions]] = OffPolicyOptions
    options: Any
    conditioned = True
    buffer: ClassVar[type[EpisodeReplayBuffer]] = EpisodeReplayBuffer
    steps: int
    generator: np.random.Generator
    replay_buffer: EpisodeReplayBuffer

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        steps: int,
        options: Any = None,
        seed: int = 0,
    ) -> None:
        """An agent for episodes of ``steps`` decisions in ``env``, whose action is one keep ratio
        in [0, 1].
        """
        self.options = options or self.Options()
        self.steps = steps
        self.generator = np.random.default_rng([seed, 1])
        self._torch_state = torch.Generator().manual_seed(seed).get_state()
        start = self.options.start
        # a policy of another run comes in the place of measurements, unless these are asked for
        before: Start = "none" if start == "auto" and self.options.pretrained else start
        begun = starting(env, steps, before, self.options.episodes, seed)
        self.opening, self._centre = begun
        self._first_ratio = 0.5 if start == "none" else uniform_ratio(env)
        self._round = steps * self.options.envs  # steps of all environments in an episode
        columns = MEASURED if self.options.sensitivities else 0
        super().__init__(
            "MlpPolicy",
            Walkers(env, self.options.envs, steps, columns),
            learning_rate=self.options.actor_lr,
            buffer_size=max(self.options.replay, steps),
            learning_starts=self.options.warmup_episodes * steps,
            batch_size=self.options.batch_size,
            tau=self.options.tau,
            gamma=self.options.gamma,
            train_freq=(steps, "step"),
            gradient_steps=-1,
            replay_buffer_class=self.buffer,
            replay_buffer_kwargs={
                "seed": seed,
                "baseline_decay": self.options.baseline_decay,
                "best": max(1, self.options.imitate),
            },
            policy_kwargs={
                "net_arch": [self.options.hidden] * 2,
                "optimizer_kwargs": {"fused": True},  # one kernel an update
                **extractor_of(env),
            },
            seed=seed,
            device="cpu",
            **self.algorithm(),
        )
        self.set_logger(Logger(None, []))  # the default one leaves folders behind

    def algorithm(self) -> dict[str, Any]:
        """Further arguments of the algorithm."""
        return {}

    @abstractmethod
    def explore(self, observation: Any) -> Array:
        """Keep ratios (environments, 1) after the warm-up."""

    @property
    @abstractmethod
    def mean_layer(self) -> torch.nn.Linear:
        """The last layer of the actor, before its tanh."""

    @property
    def episodes(self) -> int:
        """The opening's, and whole rounds of the environments."""
        before = self.opening.episodes if self.opening is not None else 0
        own = max(0, self.options.episodes - before)
        return int(before + own - own % self.options.envs)

    @property
    def episodes_done(self) -> int:
        return self._before + self._own_episodes

    @property
    def _before(self) -> int:
        """Episodes of the opening so far."""
        return self.opening.episodes_done if self.opening is not None else 0

    @property
    def _own_episodes(self) -> int:
        """Episodes so far, without the opening's."""
        rounds: int = self.num_timesteps // self._round
        return rounds * int(self.options.envs)

    def phase_of(self, episode: int) -> str:
        """Of the opening; then warmup or explore. Episodes count from 0."""
        if self.opening is not None:
            if episode < self._before or not self.opening.over:
                return self.opening.phase_of(episode)
            episode -= self._before
        first = episode - episode % self.options.envs
        return "warmup" if first < self.options.warmup_episodes else "explore"

    def run(self, on_episode: Callable[[], None] | None = None) -> None:
        """Walk the episodes that are left. ``on_episode`` is called after each, when its updates
        are done.
        """
        if self.opening is not None:
            self.opening.run(on_episode)
            self._know(self.opening)
        left = (self.episodes - self._before) * self.steps - self.num_timesteps
        if left > 0:
            self._last_obs = None  # begin with a reset
            cast("Walkers", self.env).start(self.episodes_done)
            callback = AfterEpisode(on_episode or (lambda: None))
            self.learn(left, callback=callback, log_interval=None, reset_num_timesteps=False)  # type: ignore[arg-type]

    def adopt(self, policy: Policy) -> None:
        """Begin with what another agent of this kind has learned.

        Raises:
            UserError: its networks have other shapes.
        """
        own = self.options.model_dump()
        shapes = {key: policy.options.get(key) for key in ("hidden", "sensitivities")}
        for key, value in shapes.items():
            if value != own[key]:
                raise UserError(
                    f"agent.pretrained: that agent has {key} {value}, this one {own[key]}: set "
                    f"agent.{key}={value}"
                )
        try:
            self.policy.load_state_dict(policy.weights)
        except RuntimeError as error:
            raise UserError(
                f"agent.pretrained: the networks of that agent ({policy.agent}) are not like this "
                "one's: the same agent is needed, and a space with as many kinds of decision"
            ) from error
        if self.opening is None:
            rehearse = cast("Walkers", self.env).envs[0].get_wrapper_attr("rehearse")
            self._centre = lambda episode: np.array(rehearse(self.best_ratio, episode)[0])

    def _know(self, opening: Opening) -> None:
        """Take over what was measured; the actor learns the strategies that follow from it."""
        walkers = cast("Walkers", self.env)
        if self.options.sensitivities:
            walkers.beside[:] = opening.lost
        if self.num_timesteps:
            return
        assert self._centre is not None
        ways = [walkers.way(self._centre(n), n) for n in range(LESSONS if opening.ranging else 1)]
        seen = torch.from_numpy(np.concatenate([observations for observations, _ in ways]))
        done = torch.from_numpy(np.concatenate([ratios for _, ratios in ways])[:, None])
        for _ in range(LESSON_STEPS):
            self._move_actor(seen, 2 * done - 1)
        self._copy_to_target()

    def best_ratio(self, observation: NDArray[np.float32]) -> float:
        """The actor's keep ratio, without noise."""
        action, _ = self.predict(observation, deterministic=True)
        return float(action.item())

    def _sample_action(
        self, learning_starts: int, action_noise: Any = None, n_envs: int = 1
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        if self._own_episodes < self.options.warmup_episodes:
            ratio = self._warmup_ratio(n_envs)
        else:
            with self._own_random_numbers():
                ratio = self.explore(self._last_obs)
        action = ratio.astype(np.float32)
        return action, self.policy.scale_action(action)

    def _warmup_ratio(self, n_envs: int) -> Array:
        shape = (n_envs, 1)
        if self.options.warmup_spread is None:
            return self.generator.uniform(0.0, 1.0, size=shape)
        step = self.num_timesteps % self._round // n_envs
        if step == 0:
            first = self.episodes_done
            self._middles = (
                np.tile(self.generator.uniform(0.0, 1.0, size=shape), self.steps)
                if self._centre is None
                else np.array([self._centre(first + n) for n in range(n_envs)])
            )  # (environments, steps)
        middle = self._middles[:, step : step + 1]
        return truncated_normal(middle, self.options.warmup_spread, self.generator)

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        with self._own_random_numbers():
            super().train(gradient_steps, batch_size)
            if self.options.imitate:
                self._imitate(gradient_steps, batch_size)

    def _imitate(self, gradient_steps: int, batch_size: int) -> None:
        """Move the actor towards what was done in the best episodes, an update a transition."""
        for _ in range(gradient_steps):
            self._move_actor(*self.replay_buffer.sample_best(batch_size))

    def _move_actor(self, observations: torch.Tensor, actions: torch.Tensor) -> None:
        """One update towards the actions (n, 1), in [-1, 1]."""
        policy: Any = self.policy
        wanted = policy._predict(observations, deterministic=True)
        loss = torch.nn.functional.mse_loss(wanted, actions)
        policy.actor.optimizer.zero_grad()
        loss.backward()
        policy.actor.optimizer.step()

    def _copy_to_target(self) -> None:
        policy: Any = self.policy
        if hasattr(policy, "actor_target"):
            polyak_update(policy.actor.parameters(), policy.actor_target.parameters(), 1.0)

    def _update_learning_rate(self, optimizers: Any) -> None:
        """Leave each optimiser its own rate."""

    def _setup_model(self) -> None:
        with own_randomness(int(self.seed or 0)):  # Stable-Baselines3 sets the global states
            super()._setup_model()
        policy: Any = self.policy
        for group in policy.critic.optimizer.param_groups:
            group["lr"] = self.options.critic_lr
        if self.options.start != "none":
            with torch.no_grad():
                self.mean_layer.weight.mul_(0.1)
                self.mean_layer.bias.fill_(float(np.arctanh(2 * self._first_ratio - 1)))
            self._copy_to_target()

    @contextmanager
    def _own_random_numbers(self) -> Iterator[None]:
        """Stable-Baselines3 draws from torch's global generator, others too: keep a state of our
        own, so that a resumed search draws the same.
        """
        others = torch.get_rng_state()
        torch.set_rng_state(self._torch_state)
        try:
            yield
        finally:
            self._torch_state = torch.get_rng_state()
            torch.set_rng_state(others)

    def state(self) -> dict[str, Any]:
        """Everything that `load_state` needs to go on exactly: tensors and plain values, no pickled
        objects.
        """
        modules, variables = self._get_torch_save_params()
        generators = [self.generator, self.replay_buffer.generator]
        return {
            "modules": {name: attrgetter(name)(self).state_dict() for name in modules},
            "variables": {name: attrgetter(name)(self).detach() for name in variables},
            "replay": self.replay_buffer.state(),
            "torch": self._torch_state,
            "generators": json.dumps([generator.bit_generator.state for generator in generators]),
            "counters": [
                self.episodes_done * self.steps,
                self.num_timesteps,
                self._n_updates,
                self._episode_num,
            ],
            "opening": None if self.opening is None else self.opening.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`; the next episode starts from the environment's reset."""
        for name, saved in state["modules"].items():
            attrgetter(name)(self).load_state_dict(saved)
        for name, saved in state["variables"].items():
            attrgetter(name)(self).data.copy_(saved)
        self.replay_buffer.load_state(state["replay"])
        self._torch_state = state["torch"]
        for generator, saved in zip(
            (self.generator, self.replay_buffer.generator),
            json.loads(state["generators"]),
            strict=True,
        ):
            generator.bit_generator.state = saved
        _, self.num_timesteps, self._n_updates, self._episode_num = state["counters"]
        if self.opening is not None:
            self.opening.load_state(state["opening"])
