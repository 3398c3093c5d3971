"""What the agent sees before each decision: `Amc`, the features of AMC (section 3.1). What else can
be seen is a class of the same shape (`Observation`), named in the config.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from amc.errors import UserError, shown
from amc.spaces.base import CompressionSpace

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
DYNAMIC_FEATURES = ("reduced", "rest", "previous_ratio", "budget")
FEATURES = STATIC_FEATURES + DYNAMIC_FEATURES
"""t, n, c, h, w, stride, k, MACs of the decision's layers; the cost that is removed so far, the
cost that can still be removed, the previous action; and the budget.
"""


@dataclass(frozen=True)
class Position:
    """Where an episode stands. Parts are of the original's cost in the budget's metric."""

    ratios: tuple[float, ...]  # the keep ratios of the decisions so far, in order
    reduced: float  # the part that they have removed
    rest: float  # the part that the decisions to come would remove, all at their floor
    budget: float  # the episode's limit, as such a part


@runtime_checkable
class Observation(Protocol):
    """``Class(space)``: a vector for every position, of features in [0, 1].

    An agent with a network may ask for ``extractor``, a features extractor of Stable-Baselines3 and
    the arguments after its observation space; None: the vector is enough.
    """

    @property
    def features(self) -> tuple[str, ...]:
        """Their names."""

    def __call__(self, position: Position) -> FloatArray:
        """The observation (features,) before the next decision; after the last one, of that one
        again.
        """

    @property
    def extractor(self) -> tuple[type, Mapping[str, Any]] | None:
        """What turns an observation into features."""


def checked(observation: Observation, seen: object) -> FloatArray:
    """What an observation has given.

    Raises:
        UserError: it is not a number from 0 to 1 for each feature.
    """
    expected = len(observation.features)
    try:
        found = np.asarray(seen, np.float32)
        sound = found.shape == (expected,) and bool(((found >= 0) & (found <= 1)).all())
    except (TypeError, ValueError):
        sound = False
    if not sound:
        raise UserError(
            f"the observation {type(observation).__name__} gives {shown(seen)}: an array of "
            f"{expected} numbers from 0 to 1, one for each of its features, is expected"
        )
    return found


class Amc:
    """AMC's features. Static ones are scaled to [0, 1] over the decisions (a constant one is 0).
    Where decisions are of several kinds, the kind comes first.
    """

    def __init__(self, space: CompressionSpace) -> None:
        decisions, layers = space.decisions, space.network.table.by_name
        kinds = sorted({decision.kind for decision in decisions})
        self.features: tuple[str, ...] = ("kind", *FEATURES) if len(kinds) > 1 else FEATURES
        rows = []
        for index, decision in enumerate(decisions):
            first = layers[decision.layers[0]]
            macs = sum(layers[name].macs for name in decision.layers)
            height, *others = first.input_size
            size = (height, prod(others), first.stride[0], first.kernel[0], macs)
            row = (index, first.out_channels, first.in_channels, *size)
            rows.append((kinds.index(decision.kind), *row) if len(kinds) > 1 else row)
        raw = np.array(rows, dtype=np.float64)
        low, span = raw.min(axis=0), np.ptp(raw, axis=0)
        self.static = np.where(span > 0, (raw - low) / np.where(span > 0, span, 1), 0.0)
        """(decisions, features that do not change)"""

    @property
    def extractor(self) -> tuple[type, Mapping[str, Any]] | None:
        """The features are few enough for the agent's own layers."""
        return None

    def __call__(self, position: Position) -> FloatArray:
        row = self.static[min(len(position.ratios), len(self.static) - 1)]
        previous = position.ratios[-1] if position.ratios else 1.0
        moving = (position.reduced, position.rest, previous, position.budget)
        features = np.array([*row, *moving], dtype=np.float32)
        return np.asarray(np.clip(features, 0, 1), dtype=np.float32)
