"""TD3 (Fujimoto, van Hoof, Meger: ICML 2018): DDPG with two critics of which the smaller counts, a
smoothed target, and an actor that is updated half as often.
"""

from __future__ import annotations

from typing import Any

import gymnasium
from amc.agents.ddpg import DDPGOptions, DecayingNoise
from stable_baselines3 import TD3


class TD3Agent(DecayingNoise, TD3):
    """Stable-Baselines3's TD3, with AMC's episodes, noise and replay buffer."""

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
        TD3.__init__(self, **self.prepare(env, steps, options, seed))
