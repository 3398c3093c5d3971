"""One-shot ranks by variational Bayesian matrix factorisation: how Kim et al. (ICLR 2016, section
3.2) choose the ranks of a whole network, with no search at all.

The rank of a matrix is estimated by the global analytic solution of empirical VB matrix
factorisation with an unknown noise variance (Nakajima, Sugiyama, Babacan, Tomioka: JMLR 14, 2013).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from amc.agents.proposing import OneShotAgent, Ratios
from scipy.optimize import brentq, minimize_scalar

from amc.errors import UserError

FloatArray = npt.NDArray[np.float64]

_GRID = 200  # noise variances that are tried before the best is refined


def estimated_rank(matrix: FloatArray) -> int:
    """How many components of a matrix are signal rather than noise; may be 0.

    Args:
        matrix: of any shape (rows, columns).
    """
    rows, columns = sorted(matrix.shape)
    squares: FloatArray = np.linalg.svd(matrix, compute_uv=False).astype(np.float64) ** 2
    if squares[0] <= 0:
        return 0
    ratio = rows / columns
    threshold = _threshold(ratio)
    variance = noise_variance(squares, rows, columns)
    return int(np.sum(squares > columns * variance * threshold))


def noise_variance(squares: FloatArray, rows: int, columns: int) -> float:
    """The noise variance that minimises the free energy (Nakajima et al. 2013, theorem on the
    global EVB solution with unknown noise).

    Args:
        squares: of all singular values, descending (rows,).
        rows: the shorter side of the matrix.
        columns: the longer.
    """
    ratio = rows / columns
    threshold = _threshold(ratio)
    most = min(int(np.ceil(rows / (1 + ratio))) - 1, rows - 1)  # components that can be signal
    upper = float(squares.sum() / (rows * columns))
    rest = squares[most:]
    lower = max(float(rest[0]) / (columns * threshold), float(rest.mean()) / columns)
    lower = max(lower, 1e-12 * upper)
    if lower >= upper:
        return upper

    def energy(log_variance: float) -> float:
        return _free_energy(squares / (columns * np.exp(log_variance)), ratio, threshold)

    grid = np.linspace(np.log(lower), np.log(upper), _GRID)
    best = int(np.argmin([energy(point) for point in grid]))
    around = grid[max(0, best - 1)], grid[min(_GRID - 1, best + 1)]
    return float(np.exp(minimize_scalar(energy, bounds=around, method="bounded").x))


def _free_energy(x: FloatArray, ratio: float, threshold: float) -> float:
    """Up to a constant, of singular values squared over (columns * variance): the components above
    the threshold are signal.
    """
    noise, signal = x[x <= threshold], x[x > threshold]
    tau = _tau(signal, ratio)
    noise = np.maximum(noise, 1e-300)
    return float(
        np.sum(noise - np.log(noise))
        + np.sum(signal - tau + np.log((tau + 1) / signal) + ratio * np.log(tau / ratio + 1))
    )


def _tau(x: FloatArray, ratio: float) -> FloatArray:
    excess = x - (1 + ratio)
    return np.asarray(0.5 * (excess + np.sqrt(excess**2 - 4 * ratio)))


def _threshold(ratio: float) -> float:
    """Of a squared singular value over (columns * variance), above which it is signal."""

    def phi(z: float) -> float:
        return float(np.log(z + 1) / z - 0.5)

    # the root of an increasing ratio lies near 2.5129 sqrt(ratio)
    tau = float(brentq(lambda tau: phi(tau) + phi(tau / ratio), 0.1 * np.sqrt(ratio), 10.0))
    return (1 + tau) * (1 + ratio / tau)


class VBMFAgent(OneShotAgent):
    """Proposes the estimated ranks as they are, where the budget allows; and in proportion to them,
    as large as it allows. Needs a space whose choices are ranks.

    A rank of 0 is taken as the smallest choice.

    Raises:
        UserError: the choices of the space are no ranks of matrices.
    """

    def proposals(self) -> dict[str, Ratios]:
        space: Any = self.space
        if not hasattr(space, "unfoldings"):
            raise UserError("the agent vbmf chooses ranks: it needs the space lowrank")
        own = {}
        for decision in space.decisions:
            rank = sum(estimated_rank(m.numpy()) for m in space.unfoldings(decision.name))
            own[decision.name] = min(decision.choices, key=lambda c, rank=rank: abs(c - rank))  # type: ignore[misc]
        ratios = np.array(space.ratios(own))
        scaled = {"vbmf_scaled": self.scaled(ratios)}
        within = self.bounds.budget.allows(space.cost(own))
        return {"vbmf": ratios, **scaled} if within else scaled
