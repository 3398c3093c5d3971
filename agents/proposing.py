"""Search algorithms that propose whole strategies, batch by batch, and learn from their rewards.

What such an agent proposes follows from its seed and the rewards so far, and from nothing else: so
a resumed one need only be told the rewards again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from amc.errors import UserError, shown
from amc.options import Options
from amc.spaces.base import CompressionSpace
from amc.spaces.bounding import Bounds

Ratios = NDArray[np.float64]


class EpisodeOptions(Options):
    """Options of an agent that takes as many episodes as it is given."""

    episodes: int = Field(400, ge=1, le=1_000_000, description="episodes of the search")


class BatchOptions(EpisodeOptions):
    """Options of an agent to which the size of a batch is all the same, or nearly."""

    batch: int = Field(
        10,
        ge=1,
        le=10_000,
        description="strategies that are proposed at once, and measured side by side",
    )


@dataclass(frozen=True)
class Walk:
    """One episode that is over."""

    ratios: Ratios  # executed keep ratios (steps,), which bounding may have lowered
    reward: float


class ProposingAgent(ABC):
    """Proposes keep ratios for all decisions at once; the environment bounds and measures them, all
    proposals of a batch side by side where it can.

    A new one defines `propose` and, where it keeps anything, `begin`. It may use ``walks``,
    ``generator`` and what it derived from them in earlier calls, nothing else.
    """

    Options: ClassVar[type[Options]] = EpisodeOptions
    options: Any

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        steps: int,
        options: Any = None,
        seed: int = 0,
    ) -> None:
        """An agent for episodes of ``steps`` decisions in ``env``, whose action is one keep ratio
        in [0, 1].
        """
        self.env, self.steps = env, steps
        self.space: CompressionSpace = env.get_wrapper_attr("space")
        self.bounds: Bounds = env.get_wrapper_attr("bounds")
        self.options = options or self.Options()
        self.seed = seed
        self.generator = np.random.default_rng([seed, 1])
        self.walks: list[Walk] = []
        self._batch: list[Ratios] = []
        self._waiting: list[Ratios] = []  # of the batch
        self._first = 0  # episode of the batch
        self.begin()

    def begin(self) -> None:  # noqa: B027 - most need none
        """Make what the agent derives from the space; called once, before anything is proposed."""

    @abstractmethod
    def propose(self) -> Sequence[Ratios]:
        """The next proposals, (steps,) each; called when all before them have been walked. No more
        of them: the search is over.
        """

    @property
    def episodes(self) -> int:
        """How many there will be, at most."""
        count: int = self.options.episodes
        return count

    @property
    def episodes_done(self) -> int:
        return len(self.walks)

    def phase_of(self, episode: int) -> str:
        """What the journal calls an episode; they count from 0."""
        return "explore"

    def run(self, on_episode: Callable[[], None] | None = None) -> None:
        """Walk the episodes that are left. ``on_episode`` is called after each."""
        announced = None
        while (wanted := self._next()) is not None:
            if announced != self._first:
                self.env.get_wrapper_attr("announce")(self._batch, self._first)
                announced = self._first
            self.walks.append(self._walk(wanted))
            if on_episode is not None:
                on_episode()

    def _next(self) -> Ratios | None:
        if self.episodes_done >= self.episodes:
            return None
        if not self._waiting:
            self._first = self.episodes_done
            proposed = self.propose()
            if not isinstance(proposed, Iterable):
                raise self._strange(proposed)
            self._batch = [self._checked(one) for one in proposed][: self.episodes - self._first]
            self._waiting = list(self._batch)
        return self._waiting.pop(0) if self._waiting else None

    def _checked(self, proposal: object) -> Ratios:
        try:
            ratios = np.asarray(proposal, dtype=np.float64)
        except (TypeError, ValueError):
            raise self._strange(proposal) from None
        if ratios.shape != (self.steps,) or np.isnan(ratios).any():
            raise self._strange(proposal)
        return ratios

    def _strange(self, proposal: object) -> UserError:
        return UserError(
            f"the agent {type(self).__name__} proposes {shown(proposal)}: a list of arrays of "
            f"{self.steps} keep ratios each is expected"
        )

    def _walk(self, wanted: Ratios) -> Walk:
        self.env.reset(options={"episode": self.episodes_done})
        for ratio in wanted:
            _, reward, _, _, info = self.env.step(np.array([ratio], np.float32))
        return Walk(np.array(info["executed_ratios"]), float(reward))

    def scaled(self, ratios: Ratios) -> Ratios:
        """Keep ratios (steps,) times a common factor, as large as the budget allows: legal ones."""
        names = [decision.name for decision in self.space.decisions]
        strategy = self.bounds.scaled(dict(zip(names, ratios.tolist(), strict=True)))
        return np.array(self.space.ratios(strategy))

    def best(self, count: int = 1) -> list[Walk]:
        """The walks with the highest rewards, the best first, the earlier of equals."""
        return sorted(self.walks, key=lambda walk: -walk.reward)[:count]

    def state(self) -> dict[str, Any]:
        """What `load_state` needs to go on."""
        return {
            "counters": [self.episodes_done * self.steps],
            "ratios": torch.tensor(np.array([walk.ratios for walk in self.walks])),
            "rewards": torch.tensor([walk.reward for walk in self.walks], dtype=torch.float64),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`, in a new agent: proposes again what was walked already."""
        for ratios, reward in zip(state["ratios"], state["rewards"].tolist(), strict=True):
            self._next()
            self.walks.append(Walk(ratios.numpy(), reward))


class OneShotAgent(ProposingAgent):
    """Walks a few strategies that follow from the space alone, just as they are."""

    Options: ClassVar[type[Options]] = Options
    exact = True  # no scaling to the budget: `amc.walk` sees to it
    one_shot = True  # kept in the run, for readers that import no agents

    def begin(self) -> None:
        self._proposals = self.proposals()

    @abstractmethod
    def proposals(self) -> dict[str, Ratios]:
        """Phase -> keep ratios (steps,)."""

    @property
    def episodes(self) -> int:
        return len(self._proposals)

    def phase_of(self, episode: int) -> str:
        return list(self._proposals)[episode]

    def propose(self) -> list[Ratios]:
        return list(self._proposals.values())
