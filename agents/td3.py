"""TD3 (Fujimoto, van Hoof, Meger: ICML 2018): DDPG with two critics of which the smaller counts, a
smoothed target, and an actor that is updated half as often.
"""

from __future__ import annotations

from amc.agents.ddpg import DecayingNoise
from stable_baselines3 import TD3


class TD3Agent(DecayingNoise, TD3):
    """Stable-Baselines3's TD3, with AMC's episodes, noise and replay buffer."""
