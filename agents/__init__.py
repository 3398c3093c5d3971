"""Search algorithms, imported as `amc.agents`. They know Gymnasium environments, never the ones in
`amc.envs`.

`Agent` is what `amc.search` asks of one. The short ways to a new one: a `ProposingAgent`
(`amc.agents.proposing`), which proposes whole strategies, or an `OffPolicyAgent`
(`amc.agents.offpolicy`) around an algorithm of Stable-Baselines3.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Protocol, runtime_checkable

from pydantic import BaseModel

if __name__ != "amc.agents":
    raise ImportError(
        "import this package as amc.agents: another name would load every class twice"
    )


@runtime_checkable
class Agent(Protocol):
    """A search algorithm: ``Class(env, steps, options, seed)`` for episodes of ``steps`` decisions.

    `amc.search` journals every episode that ends in the environment. What an agent does next may
    depend on its seed and on what the environment has given so far, on nothing else: then a run
    that was stopped goes on as if it had not been. A true class attribute ``exact`` says that its
    strategies are meant as they are: then they are bounded, never scaled to the budget. A true
    class attribute ``conditioned`` says that every episode may have a budget of its own.
    """

    Options: ClassVar[type[BaseModel]]

    @property
    def episodes(self) -> int:
        """How many there will be, at most."""

    @property
    def episodes_done(self) -> int:
        """How many have ended."""

    def phase_of(self, episode: int) -> str:
        """What the journal calls an episode; they count from 0."""

    def run(self, on_episode: Callable[[], None] | None = None) -> None:
        """Walk the episodes that are left; call ``on_episode`` after each."""

    def state(self) -> dict[str, Any]:
        """What `load_state` needs to go on: tensors and plain values. ``counters`` begins with the
        number of steps that were taken.
        """

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`, in a new agent."""
