"""Between Gymnasium and Stable-Baselines3: episodes side by side, what comes after each, and what
turns an observation into features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv


class Walkers(DummyVecEnv):
    """Environments in step with each other, whose episodes all take as many steps. Before the last
    step all episodes are announced, so that their strategies are measured at once.

    What an agent knows of each decision may stand beside what it sees before it.
    """

    def __init__(
        self, env: gymnasium.Env[Any, Any], count: int, steps: int, columns: int = 0
    ) -> None:
        """The environment itself and ``count`` - 1 twins of it; episodes of ``steps`` steps;
        ``columns`` more features.
        """
        others = [env.get_wrapper_attr("twin") for _ in range(count - 1)]
        super().__init__([lambda: env, *others])
        self._steps = steps
        self.beside = np.zeros((steps, columns), np.float32)
        if columns:
            features = cast(spaces.Box, env.observation_space).shape[0] + columns
            self.observation_space = spaces.Box(0.0, 1.0, (features,), np.float32)
        self.start(0)

    def start(self, episode: int) -> None:
        """After the next reset, the first environment walks the episode of this number, the second
        the one after it, and so on.
        """
        self._episode = episode
        self._taken: list[NDArray[np.float32]] = []
        count = self.num_envs
        self.set_options([{"episode": episode + n, "stride": count} for n in range(count)])

    def reset(self) -> Any:
        return self._with(np.asarray(super().reset()), 0)

    def step_wait(self) -> Any:
        self._taken.append(np.array(self.actions, np.float32)[:, 0])
        last = len(self._taken) == self._steps
        if last and self.num_envs > 1:
            announce = self.envs[0].get_wrapper_attr("announce")
            announce(list(np.stack(self._taken, axis=1)), self._episode)
        seen, rewards, dones, infos = super().step_wait()
        for info in infos if last else ():
            info["terminal_observation"] = self._with(info["terminal_observation"], -1)
            if "observations" in info:
                info["observations"] = self._all_with(info["observations"])
        if last:
            self._episode, self._taken = self._episode + self.num_envs, []
        return self._with(np.asarray(seen), len(self._taken)), rewards, dones, infos

    def way(self, ratios: Iterable[float], episode: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """What is seen on the way to a strategy, (steps, features), and the keep ratios that are
        executed, (steps,); nothing is measured.
        """
        wanted = iter(ratios)
        rehearse = self.envs[0].get_wrapper_attr("rehearse")
        executed, seen = rehearse(lambda _: next(wanted), episode)
        return self._all_with(seen)[:-1], np.array(executed, np.float32)

    def _with(self, seen: NDArray[Any], step: int) -> NDArray[Any]:
        """What is seen (..., features) before a decision, and what is known of it."""
        rows = np.broadcast_to(self.beside[step], (*seen.shape[:-1], self.beside.shape[1]))
        return np.concatenate([seen, rows], axis=-1)

    def _all_with(self, seen: NDArray[Any]) -> NDArray[Any]:
        """The same of a whole episode, (steps + 1, features)."""
        return np.concatenate([seen, np.concatenate([self.beside, self.beside[-1:]])], axis=1)


class AfterEpisode(BaseCallback):
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


def extractor_of(env: gymnasium.Env[Any, Any]) -> dict[str, Any]:
    """What turns an observation into features, as a policy's arguments."""
    found = getattr(env.unwrapped, "extractor", None)
    if found is None:
        return {}
    extractor, arguments = found
    return {"features_extractor_class": extractor, "features_extractor_kwargs": dict(arguments)}
