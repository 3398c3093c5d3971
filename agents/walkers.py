"""Episodes side by side, for algorithms that learn step by step."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import DummyVecEnv


class Walkers(DummyVecEnv):
    """Environments in step with each other, whose episodes all take as many steps. Before the last
    step all episodes are announced, so that their strategies are measured at once.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], count: int, steps: int) -> None:
        """The environment itself and ``count`` - 1 twins of it; episodes of ``steps`` steps."""
        others = [env.get_wrapper_attr("twin") for _ in range(count - 1)]
        super().__init__([lambda: env, *others])
        self._steps = steps
        self.start(0)

    def start(self, episode: int) -> None:
        """After the next reset, the first environment walks the episode of this number, the second
        the one after it, and so on.
        """
        self._episode = episode
        self._taken: list[NDArray[np.float32]] = []
        count = self.num_envs
        self.set_options([{"episode": episode + n, "stride": count} for n in range(count)])

    def step_wait(self) -> Any:
        self._taken.append(np.array(self.actions, np.float32)[:, 0])
        last = len(self._taken) == self._steps
        if last and self.num_envs > 1:
            announce = self.envs[0].get_wrapper_attr("announce")
            announce(list(np.stack(self._taken, axis=1)), self._episode)
        result = super().step_wait()
        if last:
            self._episode, self._taken = self._episode + self.num_envs, []
        return result
