"""Least squares from second moments: what repair and the fitting of factors solve."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from amc.compute import Compute, full_precision

RIDGE = 1e-4  # of the mean diagonal of the Gram matrix
RIDGES = (1e-2, 1e-1, 1.0, 10.0)  # to choose from too, where there are few rows
ENOUGH = 4  # rows a column: with so many no ridge is chosen
APART = 8  # rows of one image that count as rows of their own: its positions are alike
BACK = 4  # one in so many rows is held back, where a ridge is chosen
_BLOCK = 128  # columns: measured, from 72 to 1152 columns


def second_moments(rows: Tensor) -> Tensor:
    """``rows.T @ rows``, which is symmetric: of what is below the diagonal, little is computed on
    the processor; an accelerator takes less time for one product than to launch several.
    """
    width = rows.shape[1]
    if rows.device.type != "cpu":
        with full_precision():
            return rows.T @ rows
    result = rows.new_empty(width, width)
    with full_precision():
        for start in range(0, width, _BLOCK):
            end = min(start + _BLOCK, width)
            result[start:end, start:] = rows[:, start:end].T @ rows[:, start:]
            result[end:, start:end] = result[start:end, end:].T
    return result


def mixed_moments(rows: Tensor, others: Tensor) -> Tensor:
    """``rows.T @ others``; in this order it is several times faster where ``others`` is narrow."""
    with full_precision():
        return (others.T @ rows).T


def damped_solve(gram: Tensor, right: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    """``(G + damping I)^-1 right`` by Cholesky; all in float64, on the host where the compute is
    slow at that.

    Args:
        gram: G, symmetric (k, k).
        right: (k, out).
        damping: a single number, ().

    Returns:
        (k, out), and whether the damped G is positive definite, (): without that it is no solution.
    """
    there = Compute(gram.device).solver
    damped = gram.clone()
    damped.diagonal().add_(damping)
    factor, info = torch.linalg.cholesky_ex(damped.to(there))
    solution = torch.cholesky_solve(right.to(there), factor)
    return solution.to(gram.device), (info == 0).to(gram.device)


def ridge_solve(
    gram: Tensor, right: Tensor, ridge: float = RIDGE, columns: int | None = None
) -> Tensor:
    """``(G + ridge * trace(G) / columns * I)^-1 right`` for a symmetric positive semi-definite G
    (k, k), in float64.

    The ridge grows by tens where rounding has left G indefinite.

    Args:
        gram: G.
        right: (k, out).
        ridge: as a part of the mean diagonal.
        columns: of the rows whose products G has; none: k, G is their Gram matrix.
    """
    gram, right = gram.double(), right.double()
    scale = gram.trace().clamp_min(1e-30) / (columns or len(gram))
    for _ in range(8):
        solution, sound = damped_solve(gram, right, ridge * scale)
        if sound:
            return solution
        ridge = max(ridge, 1e-8) * 10
    raise ArithmeticError("the Gram matrix is not positive semi-definite")


@dataclass(frozen=True, eq=False)
class Regression:
    """The weights that best give some outputs from some inputs."""

    weight: Tensor  # (out, k)
    rows: Tensor  # the inputs (n, k), less their means where they were centred
    mean: Tensor  # of the inputs (k,)
    offset: Tensor  # mean of the outputs (out,)

    def shift(self, weight: Tensor) -> Tensor:
        """What ``weight``'s outputs are short of on average (out,)."""
        return self.offset - weight @ self.mean

    def moments(self) -> Tensor:
        """Second moments of the outputs that the weights give (out, out), float64."""
        with full_precision():
            outputs = self.rows @ self.weight.T.to(self.rows.dtype)
        return second_moments(outputs).double() / len(outputs)


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
        rows: inputs; of what is less exact than float32 a copy is taken.
        wanted: outputs.
        start: weights (out, k), float64, that the ridge pulls towards.
        images: that the rows are of, one after the other.
        ridge: see `ridge_solve`; where there are few images for so many columns, the best of some
            on images held back (experiments/repair).
        centre: leave the means out, since the result can be shifted.
    """
    exact = torch.promote_types(rows.dtype, torch.float32)
    rows, wanted = rows.to(exact), wanted.to(exact)
    mean, offset = rows.mean(0), wanted.mean(0)
    if centre:  # before the product: afterwards a small variance would be lost
        rows, wanted = rows.sub_(mean), wanted - offset
    if min(len(rows), APART * images) < ENOUGH * rows.shape[1]:
        with full_precision():
            missing = wanted - rows @ start.T.to(exact)
        change = _best_change(rows, missing, ridge)
    else:
        gram = second_moments(rows).double()
        # what the weights as they are now leave of the target, without computing their output
        right = mixed_moments(rows, wanted).double() - gram @ start.T
        change = ridge_solve(gram, right, ridge)
    return Regression(start + change.T, rows, mean.double(), offset.double())


def _best_change(rows: Tensor, missing: Tensor, ridge: float) -> Tensor:
    """The change of the weights (k, out), float64, that makes good what is ``missing`` (n, out):
    with the ridge whose change makes good most of it at rows (n, k) that it was not solved for;
    none where no ridge's makes good anything.

    Where there are fewer rows than columns the changes are sums of rows, and their shares in them
    are solved for: ``(X^T X + d I)^-1 X^T = X^T (X X^T + d I)^-1``.
    """
    few = len(rows) < rows.shape[1]
    cut = len(rows) - len(rows) // BACK  # behind it are other images
    seen, held, target, left = rows[:cut], rows[cut:], missing[:cut], missing[cut:]
    whole = second_moments(rows.T).double() if few else None
    gram = second_moments(seen).double() if whole is None else whole[:cut, :cut]
    right = mixed_moments(seen, target).double() if whole is None else target.double()
    scale = gram.trace() / rows.shape[1]
    errors = [left.square().sum()]
    for one in (ridge, *RIDGES):
        change, sound = damped_solve(gram, right, one * scale)
        change = change.to(rows.dtype)
        error = (left - held @ (seen.T @ change if few else change)).square().sum()
        errors.append(torch.where(sound, error, math.inf))
    found = torch.stack(errors).nan_to_num(math.inf).tolist()
    best = found.index(min(found))
    if best == 0:
        return gram.new_zeros(rows.shape[1], missing.shape[1])
    ridge = (ridge, *RIDGES)[best - 1]
    if whole is not None:
        shares = ridge_solve(whole, missing, ridge, rows.shape[1])
        return rows.T.double() @ shares
    gram += second_moments(held)
    right += mixed_moments(held, left)
    return ridge_solve(gram, right, ridge)


def centred(gram: Tensor, mean: Tensor) -> Tensor:
    """The covariance, from the second moments and the means."""
    return gram - mean[:, None] * mean[None]


def principal(weight: Tensor, moments: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The two factors whose product predicts most of what ``weight`` predicts. Each component's
    scale is shared evenly, so that they can be trained.

    Args:
        weight: (out, k).
        moments: second moments of what it predicts (out, out).
        rank: of the product.

    Returns:
        (rank, k), and (out, rank) with orthogonal columns.
    """
    _, vectors = torch.linalg.eigh(moments)
    directions = vectors[:, -rank:]
    inward = directions.T @ weight
    root = inward.norm(dim=1).clamp_min(1e-12).sqrt()
    return inward / root[:, None], directions * root
