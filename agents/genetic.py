"""A genetic algorithm over strategies with a two-step fitness: a cheap estimate screens children,
the measured reward decides (after Hu et al. 2018, "A novel channel pruning method for deep neural
network compression": they, too, estimate a layer's loss before anything is measured).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from amc.agents.proposing import EpisodeOptions, ProposingAgent, Ratios
from amc.agents.starting import Start, starting
from pydantic import Field


class GeneticOptions(EpisodeOptions):
    """The options of the agent."""

    population: int = Field(10, ge=2, le=10_000, description="strategies that can be parents")
    children: int = Field(
        10, ge=1, le=1000, description="strategies that are measured in a generation"
    )
    crossover: float = Field(
        0.5, ge=0, le=1, description="how often a child has two parents rather than one"
    )
    mutation: float = Field(
        0.3, gt=0, le=1, description="how often a keep ratio of a child is changed"
    )
    spread: float = Field(
        0.5,
        gt=0,
        le=10,
        description="standard deviation of a change, in the logarithm of the keep ratio",
    )
    start: Start = Field(
        "uniform",
        description="what the first generation is made of mutations of: the uniform strategy; what "
        "sensitivity finds from single decisions, which are measured first and count as episodes; "
        "none: strategies at random",
    )
    screened: int = Field(
        2,
        ge=1,
        le=100,
        description="children that are estimated for each that is measured, where the space can "
        "estimate its layers' errors; 1 measures all",
    )


class GeneticAgent(ProposingAgent):
    """Keep ratios cross over and mutate; each child is scaled to be as large as the budget allows.

    The first generation is what it starts from and mutations of that. A child is estimated by the
    sum of its layers' reconstruction errors, each layer repaired on its own (`layer_errors` of the
    space).
    """

    Options = GeneticOptions
    options: GeneticOptions

    def begin(self) -> None:
        options = self.options
        begun = starting(self.env, self.steps, options.start, options.episodes, self.seed)
        self.opening, self._centre = begun
        self._errors: list[tuple[float, ...]] = []
        if self.options.screened > 1:
            tables = [self.space.layer_errors(decision) for decision in self.space.decisions]
            found = [table for table in tables if table is not None]
            if len(found) == len(tables):  # an estimate of some layers only says nothing
                self._errors = found
        self._children: set[tuple[float, ...]] = set()

    def propose(self) -> list[Ratios]:
        parents = [walk.ratios for walk in self.best(self.options.population)]
        children: list[Ratios] = []
        if not parents:
            parents = self._first_parents()
            children = parents[:1]
        while len(children) < self.options.children:
            if self._errors:
                candidates = [self._child(parents) for _ in range(self.options.screened)]
                children.append(min(candidates, key=self._estimate))
            else:
                children.append(self._child(parents))
        return children

    def _first_parents(self) -> list[Ratios]:
        if self._centre is not None:
            return [self._centre(0)]
        drawn = self.generator.uniform(size=(self.options.population, self.steps))
        return [self.scaled(ratios) for ratios in drawn]

    def _child(self, parents: Sequence[Ratios]) -> Ratios:
        """A strategy that was not proposed yet, where one turns up."""
        for _ in range(50):
            child = self.scaled(self._mutated(self._parent(parents)))
            if tuple(child) not in self._children:
                break
        self._children.add(tuple(child))
        return child

    def _parent(self, parents: Sequence[Ratios]) -> Ratios:
        """One of the population, or two of it crossed; the better the likelier."""
        weights = np.arange(len(parents), 0, -1, dtype=np.float64)
        chosen = self.generator.choice(len(parents), 2, p=weights / weights.sum())
        first, second = (parents[int(index)] for index in chosen)
        if self.generator.random() >= self.options.crossover:
            return first
        mask = self.generator.random(self.steps) < 0.5
        return np.asarray(np.where(mask, first, second))

    def _mutated(self, ratios: Ratios) -> Ratios:
        changed = self.generator.random(self.steps) < self.options.mutation
        changed[self.generator.integers(self.steps)] = True
        noise = self.generator.normal(0.0, self.options.spread, self.steps)
        # what is gone comes back from where it went: half of the smallest other ratio
        alive = (next(one for one in d.ratios if one) for d in self.space.decisions)
        least = np.fromiter(alive, np.float64, self.steps) / 2
        ratios = np.where(changed, np.maximum(ratios, least), ratios)
        return np.asarray(np.clip(ratios * np.exp(changed * noise), 0.0, 1.0))

    def _estimate(self, ratios: Ratios) -> float:
        """The sum of the layers' errors."""
        parts = zip(self.space.decisions, ratios, self._errors, strict=True)
        return sum(
            errors[decision.choices.index(self.space.decode(decision, ratio))]
            for decision, ratio, errors in parts
        )
