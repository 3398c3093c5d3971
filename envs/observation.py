"""The state that the agent sees before each decision: AMC's 11 features, each in [0, 1] (AMC,
section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from amc.network.layers import LayerTable
from amc.spaces.base import Decision

FloatArray = NDArray[np.float32]

STATIC_FEATURES = (
    "index",
    "out_channels",
    "in_channels",
    "height",
    "width",
    "stride",
    "kernel",
    "macs",
)
DYNAMIC_FEATURES = ("reduced", "rest", "previous_ratio")
FEATURES = STATIC_FEATURES + DYNAMIC_FEATURES
"""t, n, c, h, w, stride, k, MACs of the decision's layers; MACs removed so far, MACs still to come,
the previous action.
"""
BUDGET = "budget"
"""The budget of the episode, where each has its own."""


class Observer:
    """Computes observations. Static features are scaled to [0, 1] over the decisions (a constant
    one is 0), MACs by the network's. Where decisions are of several kinds, the kind comes first;
    where budgets differ, the budget comes last.
    """

    def __init__(
        self, decisions: Sequence[Decision], table: LayerTable, budgets_differ: bool = False
    ) -> None:
        kinds = sorted({decision.kind for decision in decisions})
        self.features = ("kind", *FEATURES) if len(kinds) > 1 else FEATURES
        self._budgets_differ = budgets_differ
        if budgets_differ:
            self.features = (*self.features, BUDGET)
        layers = table.by_name
        self._macs = np.array(
            [sum(layers[name].macs for name in d.layers) for d in decisions], dtype=np.float64
        )
        rows = []
        for index, decision in enumerate(decisions):
            first = layers[decision.layers[0]]
            size = (*first.input_size, first.stride[0], first.kernel[0])
            row = (index, first.out_channels, first.in_channels, *size, self._macs[index])
            rows.append((kinds.index(decision.kind), *row) if len(kinds) > 1 else row)
        raw = np.array(rows, dtype=np.float64)
        low, span = raw.min(axis=0), np.ptp(raw, axis=0)
        self._static = np.where(span > 0, (raw - low) / np.where(span > 0, span, 1), 0.0)
        self._total = table.macs

    def __call__(
        self, index: int, macs_now: int, previous_ratio: float, budget: float = 1.0
    ) -> FloatArray:
        """The observation (features,) before decision ``index``; after the last one, the features
        of the last decision are repeated.

        Args:
            index: which decision comes next.
            macs_now: MACs with the decisions so far, the rest untouched.
            previous_ratio: the last executed keep ratio (1 before the first).
            budget: the episode's, as a part of the original's cost.
        """
        row = self._static[min(index, len(self._static) - 1)]
        reduced = 1 - macs_now / self._total
        rest = min(1.0, self._macs[index + 1 :].sum() / self._total)
        last = (budget,) if self._budgets_differ else ()
        features = np.array([*row, reduced, rest, previous_ratio, *last], dtype=np.float32)
        return np.asarray(np.clip(features, 0, 1), dtype=np.float32)
