"""A policy that was learned before, on this network or another: applied, not searched for."""

from __future__ import annotations

from amc.agents.proposing import Exactly, ProposingAgent, Ratios
from pydantic import Field

from amc.errors import UserError
from amc.options import Options
from amc.registry import lookup
from amc.runs.policy import Policy


class PolicyOptions(Options):
    """The options of the agent."""

    pretrained: str = Field(description="the run whose agent's policy is applied")
    episodes: int = Field(
        1,
        ge=1,
        le=1_000_000,
        description="strategies: one is all that there is within one budget; of a range of budgets "
        "each has its own",
    )


class PolicyAgent(ProposingAgent):
    """Walks the network as the actor says, without noise. Nothing is learned, and nothing has to be
    measured for it: what it proposes is measured to know what it gives.
    """

    Options = PolicyOptions
    options: PolicyOptions
    conditioned = True

    def adopt(self, policy: Policy) -> None:
        """Take the policy over.

        Raises:
            UserError: it needs to see what only measurements tell, or does not fit what is seen
                here.
        """
        if policy.options.get("sensitivities"):
            raise UserError(
                f"{self.options.pretrained!r} was searched with agent.sensitivities: its policy "
                "needs measurements, search with agent.pretrained instead"
            )
        found = lookup("agent", policy.agent)
        options = {**policy.options, "start": "none", "pretrained": None, "envs": 1}
        learner = found(self.env, self.steps, found.Options(**options), self.seed)
        learner.adopt(policy)
        self._ratio = learner.best_ratio

    def propose(self) -> list[Ratios | Exactly]:
        if self.walks and self.bounds.budget.least is None:
            return []
        rehearse = self.env.get_wrapper_attr("rehearse")
        first, last = len(self.walks), self.options.episodes
        walked = (rehearse(self._ratio, episode)[0] for episode in range(first, last))
        return [Exactly(ratios, "apply") for ratios in walked]
