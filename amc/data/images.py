"""What labelled images are. They come from memory (`arrays`), files (`folders`), or a user's
``DataLoader`` (`loaders`).
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from amc.network.layers import IntArray


class Images(Protocol):
    """Labelled images that can be fetched by index, the same ones each time."""

    labels: IntArray

    def fetch(self, indices: IntArray) -> Tensor:
        """uint8 (n, C, H, W); or float32, already normalised."""
