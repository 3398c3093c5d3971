"""How far a training has come, and what each epoch came to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training images came to."""

    epoch: int  # from 1
    lr: float  # at its end
    train_loss: float
    train_accuracy: float  # of the augmented images, while training
    heldout_accuracy: float | None
    seconds: float


@dataclass
class Progress:
    """How far a training has come; with the states of network and optimizer, all that a checkpoint
    holds.
    """

    step: int = 0  # updates done
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # loss, correct, images
    seconds: float = 0.0  # of the epoch
    epochs: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, saved: dict[str, Any], updates: int, total: int) -> Progress:
        """The inverse of ``asdict``.

        Args:
            saved: in a checkpoint.
            updates: in an epoch.
            total: in the training.

        Raises:
            ValueError: it is not whole, or does not fit the training.
        """
        found = TypeAdapter(cls).validate_python(saved)
        epochs = [Epoch(**row).epoch for row in found.epochs]
        if set(saved) != set(asdict(found)):
            raise ValueError("its progress is not whole")
        if found.step > total or epochs != list(range(1, found.step // updates + 1)):
            raise ValueError(f"{found.step} updates are not {len(epochs)} epochs")
        return found

    @property
    def best(self) -> dict[str, Any]:
        """The epoch that is the result: the best on the held-out images, of equal ones the last,
        since the learning rate has fallen further; without such images the last.
        """
        if self.epochs[-1]["heldout_accuracy"] is None:
            return self.epochs[-1]
        return max(reversed(self.epochs), key=lambda row: row["heldout_accuracy"])
