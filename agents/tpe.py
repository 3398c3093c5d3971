"""Tree-structured Parzen estimators (Bergstra et al., NeurIPS 2011), by optuna."""

from __future__ import annotations

import logging

import numpy as np
import optuna
from amc.agents.proposing import BatchOptions, ProposingAgent, Ratios
from amc.agents.starting import Start, starting, truncated_normal
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import TPESampler
from optuna.trial import TrialState, create_trial
from pydantic import Field

optuna.logging.set_verbosity(logging.WARNING)

SPREAD = 0.15  # standard deviation of the startup around a strategy, in keep ratio


class TPEOptions(BatchOptions):
    """The options of the agent."""

    batch: int = Field(
        4,
        ge=1,
        le=10_000,
        description="strategies that are proposed at once, and measured side by side; the first "
        "is taken for a bad one when the next is proposed (constant liar)",
    )

    startup: int = Field(
        30, ge=1, le=1_000_000, description="episodes with random keep ratios to begin with"
    )
    start: Start = Field(
        "none",
        description="what these are drawn around, and their first: the uniform strategy; what "
        "sensitivity finds from single decisions, which are measured first and count as episodes; "
        "none: anything",
    )


class TPEAgent(ProposingAgent):
    """Optuna's sampler proposes, and is told what was executed within the budget."""

    Options = TPEOptions
    options: TPEOptions

    def begin(self) -> None:
        options = self.options
        begun = starting(self.env, self.steps, options.start, options.episodes, self.seed)
        self.opening, self._centre = begun
        sampler = TPESampler(
            n_startup_trials=self.options.startup,
            seed=self.seed,
            multivariate=True,
            constant_liar=self.options.batch > 1,
        )
        self._study = optuna.create_study(sampler=sampler, direction="maximize")
        self._ranges: dict[str, BaseDistribution] = {
            str(step): FloatDistribution(0.0, 1.0) for step in range(self.steps)
        }
        self._told = 0

    def propose(self) -> list[Ratios]:
        own = len(self.walks) - (0 if self.opening is None else self.opening.episodes)
        if self._centre is not None and own < self.options.startup:
            return self._around(self._centre(0), own)
        for walk in self.walks[self._told :]:
            if not walk.feasible:
                continue
            executed = {name: walk.ratios[int(name)].item() for name in self._ranges}
            self._study.add_trial(
                create_trial(params=executed, distributions=self._ranges, value=walk.reward)
            )
        self._told = len(self.walks)
        trials = [self._study.ask(self._ranges) for _ in range(self.options.batch)]
        for trial in trials:  # what counts is what will be executed
            self._study.tell(trial, state=TrialState.FAIL)
        return [np.array([trial.params[name] for name in self._ranges]) for trial in trials]

    def _around(self, centre: Ratios, own: int) -> list[Ratios]:
        """A batch of the startup: the strategy that it starts from, and others around it."""
        count = min(self.options.batch, self.options.startup - own)
        drawn = [truncated_normal(centre, SPREAD, self.generator) for _ in range(count)]
        return [centre, *drawn[1:]] if own == 0 else drawn
