"""Least squares from second moments: what repair and the fitting of factors solve."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 1e-4  # of the mean diagonal of the Gram matrix
RIDGES = (1e-2, 1e-1, 1.0, 10.0)  # to choose from too, where there are few rows
ENOUGH = 4  # rows a column: with so many no ridge is chosen
APART = 8  # rows of one image that count as rows of their own: its positions are alike
BACK = 4  # one in so many rows is held back, where a ridge is chosen


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
    rows: Tensor,
    wanted: Tensor,
    start: Tensor,
    images: int,
    ridge: float = RIDGE,
    centre: bool = True,
) -> Regression:
    """Least squares: ``wanted`` (n, out) from ``rows`` (n, k), which are overwritten.

    Args:
        rows: inputs.
        wanted: outputs.
        start: weights (out, k) that the ridge pulls towards.
        images: that the rows are of, one after the other.
        ridge: see `ridge_solve`; where there are few images for so many columns, the best of some
            on images held back (experiments/repair).
        centre: leave the means out, since the result can be shifted.
    """
    mean, offset = rows.mean(0), wanted.mean(0)
    if centre:  # before the product: afterwards a small variance would be lost
        rows, wanted = rows.sub_(mean), wanted - offset
    if min(len(rows), APART * images) < ENOUGH * rows.shape[1]:
        ridge = _best_ridge(rows, wanted - rows @ start.T.to(rows.dtype), ridge)
    gram = second_moments(rows).double() / len(rows)
    # what the weights as they are now leave of the target, without computing their output
    right = (rows.T @ wanted).double() / len(rows) - gram @ start.T
    solved = ridge_solve(gram, right, ridge).T if math.isfinite(ridge) else torch.zeros_like(start)
    weight = start + solved
    return Regression(weight, gram, mean.double(), offset.double())


def _best_ridge(rows: Tensor, missing: Tensor, ridge: float) -> float:
    """The ridge whose change of the weights makes good most of what is ``missing`` (n, out) at
    rows (n, k) that it was not solved for; infinite where none makes good anything.
    """
    back = torch.arange(len(rows)) >= len(rows) - len(rows) // BACK  # of other images
    seen, held, target, left = rows[~back], rows[back], missing[~back], missing[back]
    best, least = math.inf, float(left.square().sum())
    scale = float(seen.square().sum()) / seen.shape[1]
    few = len(seen) < seen.shape[1]
    gram = (seen @ seen.T if few else second_moments(seen)).double()
    right = target.double() if few else (seen.T @ target).double()
    for one in (ridge, *RIDGES):
        damped = gram + one * scale * torch.eye(len(gram), dtype=gram.dtype)
        factor, info = torch.linalg.cholesky_ex(damped)
        if int(info):
            continue
        change = torch.cholesky_solve(right, factor).to(rows.dtype)
        change = seen.T @ change if few else change
        error = float((left - held @ change).square().sum())
        if error < least:
            best, least = one, error
    return best


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
