"""AMC's agent: DDPG with truncated-normal exploration and one reward for a whole episode (AMC,
section 3.2 and 4).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from amc.agents.offpolicy import Array, OffPolicyAgent
from amc.agents.offpolicy_options import OffPolicyOptions
from amc.agents.starting import truncated_normal
from pydantic import Field
from stable_baselines3 import DDPG


class DDPGOptions(OffPolicyOptions):
    """The options of the agent; the preset `amc_paper` has the paper's."""

    sigma: float = Field(
        0.2,
        ge=0,
        le=10,
        description="standard deviation of the truncated-normal noise, in keep ratio",
    )
    sigma_decay: float = Field(
        0.99, gt=0, le=1, description="factor on sigma an episode after the warm-up"
    )


class DecayingNoise(OffPolicyAgent):
    """Explores with normal noise truncated to [0, 1] around the actor's output; its sigma decays an
    episode.

    The actor ends in a tanh over [-1, 1], which is AMC's sigmoid over [0, 1] up to scale.
    """

    Options = DDPGOptions

    @property
    def sigma(self) -> float:
        """The standard deviation of the noise now."""
        decay: float = self.options.sigma_decay ** max(
            0, self.episodes_done - self.options.warmup_episodes
        )
        return float(self.options.sigma) * decay

    def explore(self, observation: Any) -> Array:
        mean, _ = self.predict(observation, deterministic=True)
        return truncated_normal(np.asarray(mean, dtype=np.float64), self.sigma, self.generator)

    @property
    def mean_layer(self) -> torch.nn.Linear:
        actor: Any = self.policy.actor
        layer: torch.nn.Linear = actor.mu[-2]
        return layer


class DDPGAgent(DecayingNoise, DDPG):
    """Stable-Baselines3's DDPG as AMC uses it."""
