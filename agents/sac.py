"""SAC (Haarnoja et al., ICML 2018): a policy that is random by itself and rewarded for being so;
how much is learned.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from amc.agents.offpolicy import Array, OffPolicyAgent, OffPolicyOptions
from pydantic import Field
from stable_baselines3 import SAC


class SACOptions(OffPolicyOptions):
    """The options of the agent."""

    entropy: str = Field(
        "auto_0.1",
        description="weight of the entropy; auto: learned, auto_0.1: learned from 0.1 on",
    )


class SACAgent(OffPolicyAgent, SAC):
    """Stable-Baselines3's SAC, with AMC's episodes and replay buffer."""

    Options = SACOptions

    def algorithm(self) -> dict[str, Any]:
        return {"ent_coef": self.options.entropy}

    def explore(self, observation: Any) -> Array:
        action, _ = self.predict(observation, deterministic=False)
        return np.asarray(action, dtype=np.float64)

    @property
    def mean_layer(self) -> torch.nn.Linear:
        layer = self.actor.mu
        assert isinstance(layer, torch.nn.Linear)
        return layer
