"""Factors from data: the parts of a factorised layer that give its original OUTPUT best on
calibration images, with the inputs that it gets in the compressed network.

- svd, tucker: the last two parts by reduced-rank regression: least squares without a limit on the
  rank, then the principal directions of what it predicts (Zhang et al., TPAMI 2016, section 3.1; a
  generalised SVD).
- tucker: the first part by the same principle, from the covariance of the input channels: the
  projection of the inputs with which the layer loses least output.
- cp, spatial: the inner parts are those of the weights; the last one is solved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amc.repair.regression import principal, regress
from amc.repair.rows import flat_weight, set_flat_weight
from amc.surgery.cut import replace_module
from amc.surgery.factor import Method, Plan, Ranks, factorise, structure

_PIXELS = 20_000  # input pixels for the covariance of channels


@dataclass(frozen=True, eq=False)
class Factoring:
    """How one layer is factorised."""

    method: Method
    ranks: Ranks
    dense: nn.Module  # the layer before it was

    def from_weights(self) -> nn.Sequential:
        """The parts that are nearest to the layer's weights."""
        return factorise(self.dense, self.method, self.ranks)

    def before_refit(self) -> nn.Sequential:
        """The parts with the weights that `refit` starts from."""
        if self.method in ("cp", "spatial"):
            return self.from_weights()
        return structure(self.dense, self.method, self.ranks)


def factorise_layers(model: nn.Module, plan: Plan, refitted: bool) -> dict[str, Factoring]:
    """Factorise layers of ``model`` in place, by their weights unless they are ``refitted``."""
    factorings = {}
    for name, (method, ranks) in plan.items():
        factoring = Factoring(method, ranks, model.get_submodule(name))
        parts = factoring.before_refit() if refitted else factoring.from_weights()
        replace_module(model, name, parts)
        factorings[name] = factoring
    return factorings


def refit(
    parts: nn.Sequential,
    factoring: Factoring,
    x: Tensor,
    wanted: Tensor,
    patches: Callable[[nn.Module, Tensor], Tensor],
    shiftable: bool,
    ridge: float,
) -> Tensor:
    """Set the weights of a factorised layer, in place.

    Args:
        parts: the layer, as `Factoring.before_refit` made it.
        factoring: what it is made from.
        x: its inputs on all calibration images.
        wanted: what it should give at the sampled positions, without its bias: rows (n, out).
        patches: of a part and its inputs, what it reads at those positions: rows (n, k).
        shiftable: whether the result can be added to its output.
        ridge: see `amc.repair.regression.ridge_solve`.

    Returns:
        What its output is still short of on average, (out,).
    """
    if factoring.method in ("cp", "spatial"):
        x, solved = parts[:-1](x), [parts[-1]]
        start = flat_weight(parts[-1])
    else:
        solved, start = list(parts), flat_weight(factoring.dense)
        inner = factoring.ranks[0]
        if factoring.method == "tucker" and inner < x.shape[1]:
            first, *solved = solved
            moments = _channel_moments(x, shiftable)
            encoder, decoder = input_projection(moments, start, inner)
            set_flat_weight(first, encoder)
            x, start = first(x), _on_channels(start, decoder)
    fit = regress(patches(solved[0], x), wanted, start, len(x), ridge, shiftable)
    weight = fit.weight
    if len(solved) == 1:
        set_flat_weight(solved[0], weight)
        return fit.shift(weight)
    inward, outward = principal(weight, fit.moments(), factoring.ranks[-1])
    set_flat_weight(solved[0], inward)
    set_flat_weight(solved[1], outward)
    return fit.shift(outward @ inward)


def input_projection(moments: Tensor, weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The projection of input channels with which ``weight`` loses least output.

    Args:
        moments: second moments of the channels (c, c).
        weight: (out, positions * c).
        rank: channels of the projection.

    Returns:
        An encoder (rank, c) with orthogonal rows, and a decoder (c, rank).
    """
    values, vectors = torch.linalg.eigh(moments)
    root = values.maximum(1e-10 * values[-1].clamp_min(1e-30)).sqrt()
    by_channel = weight.reshape(-1, len(moments)) @ (vectors * root)  # in whitened coordinates
    _, directions = torch.linalg.eigh(by_channel.T @ by_channel)
    kept = directions[:, -rank:]
    encoder, mixing = torch.linalg.qr((vectors / root) @ kept)
    decoder = (vectors * root) @ kept @ mixing.T
    # half of the scale of what is read is left to the encoder, so that both can be trained
    share = ((weight.reshape(-1, len(moments)) @ decoder).norm() / rank**0.5).sqrt()
    share = torch.where(share > 0, share, 1.0)
    return share * encoder.T, decoder / share


def _on_channels(weight: Tensor, decoder: Tensor) -> Tensor:
    """A flat weight (out, positions * c), when its inputs are given by ``decoder`` (c, rank)."""
    return (weight.reshape(len(weight), -1, len(decoder)) @ decoder).flatten(1)


def _channel_moments(x: Tensor, centre: bool) -> Tensor:
    """Second moments of channels (c, c), float64; about their means where the output can be
    shifted.
    """
    pixels = x.movedim(1, -1).reshape(-1, x.shape[1])
    pixels = pixels[:: max(1, len(pixels) // _PIXELS)].double()
    if centre:
        pixels = pixels - pixels.mean(0)
    return pixels.T @ pixels / len(pixels)
