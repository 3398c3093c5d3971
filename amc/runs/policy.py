"""A trained agent's policy, taken from one run into another: of it only weights, and how to build
what they belong to.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amc.errors import UserError
from amc.reading import damaged
from amc.runs.directory import Run
from amc.sections import Config


@dataclass(frozen=True, eq=False)
class Policy:
    """The actor and the critic of an agent, as its last checkpoint has them."""

    agent: str  # its name
    options: dict[str, Any]
    observation: str  # what it sees, by name
    weights: dict[str, Tensor]  # of the policy of Stable-Baselines3

    @classmethod
    def of_run(cls, path: str | Path) -> Policy:
        """What a run has learned so far. Nothing that it names is imported.

        Raises:
            UserError: it is not a run, it has no checkpoint yet, or its agent has no policy.
        """
        run = Run.open(Path(path))
        state = run.load_checkpoint()
        if state is None:
            raise UserError(f"{str(path)!r} has no checkpoint yet that a policy could come from")
        options = {key: value for key, value in run.config.agent.items() if key != "name"}
        name = run.config.agent["name"]
        modules = state.get("modules")
        if not isinstance(modules, dict) or "policy" not in modules:
            raise UserError(
                f"{str(path)!r} was searched by {name}, which has no policy to be carried over: "
                "td3, ddpg and sac have one"
            )
        return cls(name, options, run.config.observation, modules["policy"])

    @classmethod
    def wanted_by(cls, config: Config) -> Policy | None:
        """What the agent of a config begins with: the policy of the run that it names.

        Raises:
            UserError: that run has learned nothing, or from other observations.
        """
        source = config.agent.get("pretrained")
        if source is None:
            return None
        policy = cls.of_run(source)
        if policy.observation != config.observation:
            raise UserError(
                f"agent.pretrained: the agent of {source!r} sees the observation "
                f"{policy.observation!r}, this one {config.observation!r}: set "
                f"observation={policy.observation}"
            )
        return policy

    @classmethod
    def read(cls, path: Path) -> Policy:
        """The inverse of `to_bytes`.

        Raises:
            UserError: the file is damaged.
        """
        with damaged(path):
            held = torch.load(io.BytesIO(path.read_bytes()), weights_only=True)
            agent, options, observation = json.loads(held["how"])
            return cls(agent, options, observation, held["weights"])

    def to_bytes(self) -> bytes:
        """As `names.POLICY` holds it."""
        buffer = io.BytesIO()
        how = json.dumps([self.agent, self.options, self.observation])
        torch.save({"how": how, "weights": self.weights}, buffer)
        return buffer.getvalue()
