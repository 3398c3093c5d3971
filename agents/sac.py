"""SAC (Haarnoja et al., ICML 2018): a policy that is random by itself and rewarded for being so;
how much is learned.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch
from amc.agents.offpolicy import Array, OffPolicyAgent
from amc.agents.offpolicy_options import OffPolicyOptions
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError
from stable_baselines3 import SAC

LARGEST_ENTROPY = 1000.0


def _entropy(value: Any) -> Any:
    """auto, auto_NUMBER or a number, as Stable-Baselines3 takes it."""
    text = str(value)
    number = text.removeprefix("auto").removeprefix("_") if text.startswith("auto_") else text
    try:
        known = text == "auto" or 0 < float(number) <= LARGEST_ENTROPY
    except ValueError:
        known = False
    if not known or isinstance(value, bool):
        raise PydanticCustomError(
            "entropy", "input should be auto, auto_0.1, or a number above 0 and at most 1000"
        )
    return text


class SACOptions(OffPolicyOptions):
    """The options of the agent."""

    entropy: Annotated[str, BeforeValidator(_entropy)] = Field(
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
