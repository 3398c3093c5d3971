"""What guessing gives: a network that is no better has learned nothing that a search could keep."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor


@dataclass(frozen=True)
class Guessing:
    """Always naming the most frequent class of some images."""

    accuracy: float
    images: int

    @classmethod
    def of(cls, labels: Tensor | ArrayLike) -> Guessing:
        """On images with these class numbers (n,), of which there is one at least."""
        counts = np.bincount(np.asarray(labels))
        return cls(float(counts.max() / counts.sum()), int(counts.sum()))

    @property
    def reach(self) -> float:
        """The accuracy that guessing may come to by chance: one standard error above its own."""
        return self.accuracy + math.sqrt(self.accuracy * (1 - self.accuracy) / self.images)
