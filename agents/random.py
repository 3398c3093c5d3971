"""Random search: the control that every other agent has to beat."""

from __future__ import annotations

from amc.agents.proposing import BatchOptions, ProposingAgent, Ratios


class RandomAgent(ProposingAgent):
    """Every keep ratio uniform in [0, 1], within the budget by the same bounding as any agent's."""

    Options = BatchOptions
    options: BatchOptions
    conditioned = True

    def propose(self) -> list[Ratios]:
        return [self.generator.uniform(size=self.steps) for _ in range(self.options.batch)]
