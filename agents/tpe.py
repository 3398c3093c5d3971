"""Tree-structured Parzen estimators (Bergstra et al., NeurIPS 2011), by optuna."""

from __future__ import annotations

import logging

import numpy as np
import optuna
from amc.agents.proposing import BatchOptions, ProposingAgent, Ratios
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import TPESampler
from optuna.trial import TrialState, create_trial
from pydantic import Field

optuna.logging.set_verbosity(logging.WARNING)


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


class TPEAgent(ProposingAgent):
    """Optuna's sampler proposes, and is told what was executed within the budget."""

    Options = TPEOptions
    options: TPEOptions

    def begin(self) -> None:
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
        for walk in self.walks[self._told :]:
            executed = {name: walk.ratios[int(name)].item() for name in self._ranges}
            self._study.add_trial(
                create_trial(params=executed, distributions=self._ranges, value=walk.reward)
            )
        self._told = len(self.walks)
        trials = [self._study.ask(self._ranges) for _ in range(self.options.batch)]
        for trial in trials:  # what counts is what will be executed
            self._study.tell(trial, state=TrialState.FAIL)
        return [np.array([trial.params[name] for name in self._ranges]) for trial in trials]
