"""Least squares from second moments: what repair and the fitting of factors solve."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 1e-4  # of the mean diagonal of the Gram matrix


def second_moments(rows: Tensor) -> Tensor:
    """``rows.T @ rows``, which is symmetric: a quarter of the work is left out."""
    a, b = rows.tensor_split(2, dim=1)
    corner = a.T @ b
    return torch.cat([torch.cat([a.T @ a, corner], 1), torch.cat([corner.T, b.T @ b], 1)])


def ridge_solve(gram: Tensor, right: Tensor, ridge: float = RIDGE) -> Tensor:
    """``(G + ridge * mean(diag G) I)^-1 right`` for a symmetric positive semi-definite G (k, k), by
    Cholesky in float64.

    The ridge grows by tens where rounding has left G indefinite.
    """
    gram, right = gram.double(), right.double()
    scale = gram.diagonal().mean().clamp_min(1e-30)
    for _ in range(8):
        damped = gram + ridge * scale * torch.eye(len(gram), dtype=gram.dtype)
        factor, info = torch.linalg.cholesky_ex(damped)
        if int(info) == 0:
            return torch.cholesky_solve(right, factor)
        ridge = max(ridge, 1e-8) * 10
    raise ArithmeticError("the Gram matrix is not positive semi-definite")


@dataclass(frozen=True, eq=False)
class Regression:
    """The weights that best give some outputs from some inputs."""

    weight: Tensor  # (out, k)
    gram: Tensor  # second moments of the inputs (k, k), about their means where they were centred
    mean: Tensor  # of the inputs (k,)
    offset: Tensor  # mean of the outputs (out,)

    def shift(self, weight: Tensor) -> Tensor:
        """What ``weight``'s outputs are short of on average (out,)."""
        return self.offset - weight @ self.mean


def regress(
    rows: Tensor, wanted: Tensor, start: Tensor, ridge: float = RIDGE, centre: bool = True
) -> Regression:
    """Least squares: ``wanted`` (n, out) from ``rows`` (n, k), which are overwritten.

    Args:
        rows: inputs.
        wanted: outputs.
        start: weights (out, k) that the ridge pulls towards.
        ridge: see `ridge_solve`.
        centre: leave the means out, since the result can be shifted.
    """
    mean, offset = rows.mean(0), wanted.mean(0)
    if centre:  # before the product: afterwards a small variance would be lost
        rows, wanted = rows.sub_(mean), wanted - offset
    gram = second_moments(rows).double() / len(rows)
    # what the weights as they are now leave of the target, without computing their output
    right = (rows.T @ wanted).double() / len(rows) - gram @ start.T
    weight = start + ridge_solve(gram, right, ridge).T
    return Regression(weight, gram, mean.double(), offset.double())


def centred(gram: Tensor, mean: Tensor) -> Tensor:
    """The covariance, from the second moments and the means."""
    return gram - mean[:, None] * mean[None]


def principal(weight: Tensor, gram: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The two factors whose product predicts most of what ``weight`` predicts. Each component's
    scale is shared evenly, so that they can be trained.

    Args:
        weight: (out, k).
        gram: second moments of the inputs (k, k).
        rank: of the product.

    Returns:
        (rank, k), and (out, rank) with orthogonal columns.
    """
    _, vectors = torch.linalg.eigh(weight @ gram @ weight.T)
    directions = vectors[:, -rank:]
    inward = directions.T @ weight
    root = inward.norm(dim=1).clamp_min(1e-12).sqrt()
    return inward / root[:, None], directions * root
