"""What an agent starts from: the uniform strategy, what `sensitivity` finds first, or nothing.

``auto`` is sensitivity where its measurements take at most a third of the episodes, else uniform.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import gymnasium
import numpy as np
from amc.agents.proposing import Exactly, Ratios
from amc.agents.sensitivity import SensitivityAgent, SensitivityOptions
from numpy.typing import NDArray
from scipy.stats import truncnorm

Array = NDArray[np.float64]
Start = Literal["auto", "none", "uniform", "sensitivity"]
Centre = Callable[[int], Ratios]
"""From the number of an episode, of which its budget follows, to keep ratios (steps,)."""

MOST = 1_000_000  # episodes that any agent can have
MEASURED = 3  # keep ratios at which each decision is measured alone


class Opening(SensitivityAgent):
    """Measures single decisions, and the strategy that follows from them; no more."""

    @property
    def episodes(self) -> int:
        return self.measurements + 1

    @property
    def over(self) -> bool:
        """Whether all is measured."""
        return self.episodes_done >= self.episodes

    @property
    def ranging(self) -> bool:
        """Whether episodes have budgets of their own."""
        return self.bounds.budget.least is not None

    def _search(self) -> Iterator[list[Exactly]]:
        yield from self._each_alone()
        yield [Exactly(self.solution(self.bounds.of_episode(len(self.walks))), "solve")]


def starting(
    env: gymnasium.Env[Any, Any], steps: int, start: Start, episodes: int, seed: int
) -> tuple[Opening | None, Centre | None]:
    """What an agent of so many episodes walks first, and the strategy that it starts from.

    Raises:
        UserError: the episodes are too few for what it walks first.
    """
    measured = _opening(env, steps, start, episodes, seed)
    return measured, None if start == "none" else _centre(env, measured)


def _opening(
    env: gymnasium.Env[Any, Any], steps: int, start: Start, episodes: int, seed: int
) -> Opening | None:
    """What an agent of so many episodes walks first.

    Raises:
        UserError: the episodes are too few for it.
    """
    if start not in ("auto", "sensitivity"):
        return None
    enough = MOST if start == "auto" else episodes
    options = SensitivityOptions(episodes=enough, choices=MEASURED)
    found = Opening(env, steps, options, seed)
    return None if start == "auto" and 3 * found.episodes > episodes else found


def _centre(env: gymnasium.Env[Any, Any], measured: Opening | None) -> Centre:
    """The strategy that an agent starts from, within the budget of each episode: the measured one,
    else uniform.
    """
    space, bounds = env.get_wrapper_attr("space"), env.get_wrapper_attr("bounds")

    def ratios(episode: int) -> Ratios:
        within = bounds.of_episode(episode)
        if measured is not None:
            return measured.solution(within)
        return np.array(space.ratios(within.uniform()))

    return ratios


def uniform_ratio(env: gymnasium.Env[Any, Any]) -> float:
    """The mean keep ratio of the uniform strategy at the environment's budget (of a range, the one
    in the middle, which is the first), inside (0, 1).
    """
    space, bounds = env.get_wrapper_attr("space"), env.get_wrapper_attr("bounds")
    uniform = bounds.of_episode(0).uniform()
    return float(np.clip(np.mean(space.ratios(uniform)), 0.01, 0.99))


def truncated_normal(mean: Array, sigma: float, generator: np.random.Generator) -> Array:
    """Normal around ``mean``, truncated (not clipped) to [0, 1]; ``mean`` itself where sigma has
    all but vanished.
    """
    if sigma < 1e-6:
        return np.clip(mean, 0.0, 1.0)
    drawn = truncnorm.rvs(
        (0 - mean) / sigma, (1 - mean) / sigma, loc=mean, scale=sigma, random_state=generator
    )
    return np.asarray(drawn, dtype=np.float64).reshape(mean.shape)
