"""The other way out of "seen and executed differ": learn from what was wanted, throughout.

Where the whole budget is used, an episode's keep ratios are scaled at its end. `TD3Agent` stores
what was executed, and what would have been seen on the way there; this one what it wanted and saw.
"""

from __future__ import annotations

from typing import Any

from amc.agents.replay import EpisodeReplayBuffer
from amc.agents.td3 import TD3Agent

EXECUTED = ("executed_ratios", "observations")


class WantedBuffer(EpisodeReplayBuffer):
    """Stores wanted ratios."""

    def _store(self, episode: Any, reward: Any, info: dict[str, Any]) -> None:
        super()._store(episode, reward, {k: v for k, v in info.items() if k not in EXECUTED})


class WantedAgent(TD3Agent):
    """TD3 on what it wanted."""

    buffer = WantedBuffer
