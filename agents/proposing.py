"""Search algorithms that propose whole strategies, batch by batch, and learn from their rewards.

What such an agent proposes follows from its seed and the rewards so far, and from nothing else: so
a resumed one need only be told the rewards again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
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


@dataclass(frozen=True, eq=False)
class Exactly:
    """Keep ratios (steps,) that are measured as they are, whether or not the budget allows them."""

    ratios: Ratios
    phase: str = "measure"  # what the journal calls it


@dataclass(frozen=True)
class Walk:
    """One episode that is over."""

    ratios: Ratios  # executed keep ratios (steps,), which bounding may have lowered
    reward: float
    feasible: bool = True  # within the budget


class ProposingAgent(ABC):
    """Proposes keep ratios for all decisions at once; the environment bounds and measures them, all
    proposals of a batch side by side where it can.

    A new one defines `propose` and, where it keeps anything, `begin`. It may use ``walks``,
    ``generator`` and what it derived from them in earlier calls, nothing else. Where it sets
    ``opening``, that agent walks first.
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
        self.opening: ProposingAgent | None = None
        self._batch: list[Exactly | Ratios] = []
        self._waiting: list[Exactly | Ratios] = []  # of the batch
        self._phases: list[str] = []  # of the episodes so far
        self._first = 0  # episode of the batch
        self.begin()

    def begin(self) -> None:  # noqa: B027 - most need none
        """Make what the agent derives from the space; called once, before anything is proposed."""

    @abstractmethod
    def propose(self) -> Sequence[Ratios | Exactly]:
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
        return self._phases[episode]

    def run(self, on_episode: Callable[[], None] | None = None) -> None:
        """Walk the episodes that are left. ``on_episode`` is called after each."""
        announced = None
        while (wanted := self._next()) is not None:
            if announced != self._first:
                self._announce()
                announced = self._first
            self.walks.append(self._walk(wanted))
            if on_episode is not None:
                on_episode()

    def _announce(self) -> None:
        numbered = list(enumerate(self._batch, self._first))
        exact = {number for number, one in numbered if isinstance(one, Exactly)}
        ratios = [one.ratios if isinstance(one, Exactly) else one for one in self._batch]
        self.env.get_wrapper_attr("announce")(ratios, self._first, exact)

    def _next(self) -> Ratios | Exactly | None:
        if self.episodes_done >= self.episodes:
            return None
        if not self._waiting:
            self._first = self.episodes_done
            self._batch = self._proposed()[: self.episodes - self._first]
            self._waiting = list(self._batch)
        if not self._waiting:
            return None
        first = self._waiting.pop(0)
        self._phases.append(first.phase if isinstance(first, Exactly) else "explore")
        return first

    def _proposed(self) -> list[Ratios | Exactly]:
        """The next batch: of the opening, while it has any."""
        if self.opening is not None:
            self.opening.walks = self.walks
            if opening := self.opening._proposed():
                return opening
        proposed = self.propose()
        if not isinstance(proposed, Iterable):
            raise self._strange(proposed)
        return [self._checked(one) for one in proposed]

    def _checked(self, proposal: object) -> Ratios | Exactly:
        if isinstance(proposal, Exactly):
            return replace(proposal, ratios=self._array(proposal.ratios))
        return self._array(proposal)

    def _array(self, proposal: object) -> Ratios:
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

    def _walk(self, wanted: Ratios | Exactly) -> Walk:
        exact = isinstance(wanted, Exactly)
        self.env.reset(options={"episode": self.episodes_done, "exact": exact})
        for ratio in wanted.ratios if isinstance(wanted, Exactly) else wanted:
            _, reward, _, _, info = self.env.step(np.array([ratio], np.float32))
        executed = np.array(info["executed_ratios"])
        return Walk(executed, float(reward), info.get("feasible", True))

    def scaled(self, ratios: Ratios) -> Ratios:
        """Keep ratios (steps,) times a common factor, as large as the budget allows: legal ones."""
        names = [decision.name for decision in self.space.decisions]
        strategy = self.bounds.scaled(dict(zip(names, ratios.tolist(), strict=True)))
        return np.array(self.space.ratios(strategy))

    def best(self, count: int = 1) -> list[Walk]:
        """The walks within the budget with the highest rewards, the best first, the earlier of
        equals.
        """
        within = [walk for walk in self.walks if walk.feasible]
        return sorted(within, key=lambda walk: -walk.reward)[:count]

    def state(self) -> dict[str, Any]:
        """What `load_state` needs to go on."""
        return {
            "counters": [self.episodes_done * self.steps],
            "ratios": torch.tensor(np.array([walk.ratios for walk in self.walks])),
            "rewards": torch.tensor([walk.reward for walk in self.walks], dtype=torch.float64),
            "feasible": torch.tensor([walk.feasible for walk in self.walks]),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`, in a new agent: proposes again what was walked already."""
        columns = (state["ratios"].numpy(), state["rewards"].tolist(), state["feasible"].tolist())
        for row in zip(*columns, strict=True):
            self._next()
            self.walks.append(Walk(*row))


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
