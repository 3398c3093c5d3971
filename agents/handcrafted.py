"""The hand-crafted policies that AMC is compared with (AMC, section 4): one strategy each, as large
as the budget allows.
"""

from __future__ import annotations

import numpy as np
from amc.agents.proposing import OneShotAgent, Ratios
from pydantic import Field

from amc.options import Options


class UniformAgent(OneShotAgent):
    """The same keep ratio everywhere: that is episode 0 of every search, so it adds none."""

    def proposals(self) -> dict[str, Ratios]:
        return {}


class SlopeOptions(Options):
    """How steep the policy is."""

    smallest: float = Field(
        0.4,
        gt=0,
        le=1,
        description="keep ratio at the end that is pruned most, as a part of that at the other",
    )


class DeepAgent(OneShotAgent):
    """Prunes late layers more: the keep ratio falls linearly from first to last decision."""

    Options = SlopeOptions
    options: SlopeOptions

    def proposals(self) -> dict[str, Ratios]:
        return {"deep": self.scaled(np.linspace(1.0, self.options.smallest, self.steps))}


class ShallowAgent(OneShotAgent):
    """Prunes early layers more: the keep ratio rises linearly from first to last decision."""

    Options = SlopeOptions
    options: SlopeOptions

    def proposals(self) -> dict[str, Ratios]:
        return {"shallow": self.scaled(np.linspace(self.options.smallest, 1.0, self.steps))}
