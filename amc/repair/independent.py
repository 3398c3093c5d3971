"""Repair by least squares: after a cut, every layer that reads fewer channels gets the weights that
best give its original output.

``min_W || Y - X W ||^2`` with X the kept inputs and Y the original outputs at sampled positions of
calibration images (He, Zhang, Sun, ICCV 2017; AMC section 3.3). Two forms of X:

- independent: from the unpruned network. ``X^T X`` is computed once a layer and sliced for every
  candidate; Y = X W needs no storing.
- sequential: from the network as pruned so far, in one forward sweep (`amc.repair.sequential`).

The ridge pulls towards the weights as they were cut, never towards zero.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from amc.network.kinds.base import kept
from amc.network.kinds.parts import Side
from amc.network.layers import evaluating
from amc.network.trace import Network
from amc.repair.regression import RIDGE, centred, ridge_solve, second_moments
from amc.repair.rows import (
    Sampler,
    can_shift,
    columns_of,
    flat_weight,
    move_bias,
    set_flat_weight,
    weight_of,
)


class GramMatrices:
    """``X^T X`` of the inputs of every layer that can be solved for, in the unpruned network, with
    a column of ones for the bias; computed at first use.
    """

    def __init__(self, network: Network, images: Tensor, sampler: Sampler) -> None:
        self.network, self.images, self.sampler = network, images, sampler
        self._matrices: dict[str, Tensor] = {}

    def __contains__(self, layer: str) -> bool:
        return layer in self.network.solvable

    def __getitem__(self, layer: str) -> Tensor:
        """Symmetric (k, k), float64, k = kernel positions * in + 1; the mean over the rows."""
        if not self._matrices:
            self._compute()
        return self._matrices[layer]

    def _compute(self) -> None:
        first = images = 0

        def add(name: str) -> object:
            def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                rows = self.sampler.inputs(name, module, inputs[0], first).double()
                rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
                gram = second_moments(rows) / len(rows)
                weight = images / len(self.images)
                self._matrices[name] = self._matrices.get(name, 0) + weight * gram

            return hook

        modules = dict(self.network.model.named_modules())
        handles = [
            modules[name].register_forward_pre_hook(add(name)) for name in self.network.solvable
        ]
        try:
            with evaluating(self.network.model):
                size = self.network.table.activations.batch_size()
                for first in range(0, len(self.images), size):
                    batch = self.images[first : first + size]
                    images = len(batch)
                    self.network.model(batch)
        finally:
            for handle in handles:
                handle.remove()


def repair_independent(
    model: nn.Module,
    original: Network,
    cuts: Mapping[str, Mapping[Side, list[int]]],
    grams: GramMatrices,
    ridge: float = RIDGE,
) -> None:
    """Repair every cut layer of ``model`` in place, each as if no other was cut."""
    folds = dict(original.table.folds)
    modules, whole = dict(model.named_modules()), dict(original.model.named_modules())
    for layer, sides in cuts.items():
        module = modules[layer]
        if not sides.get("in") or layer not in grams:
            continue
        norm = modules.get(folds.get(layer, ""))
        source = whole[layer]
        gram, (outputs, width) = grams[layer], weight_of(source).shape[:2]
        rows = kept(outputs, sides.get("out", [])).to(gram.device)
        full = flat_weight(source)[rows]
        positions = full.shape[1] // width
        stay = kept(width, sides["in"]).to(gram.device)
        gone = torch.tensor(sides["in"], device=gram.device)
        stay_columns = columns_of(stay, width, positions)
        gone_columns = columns_of(gone, width, positions)
        mean = gram[-1, :-1] if can_shift(module, norm) else gram.new_zeros(len(gram) - 1)
        gram = centred(gram[:-1, :-1], mean)
        lost = full[:, gone_columns]
        change = ridge_solve(
            gram[stay_columns][:, stay_columns], gram[stay_columns][:, gone_columns] @ lost.T, ridge
        ).T
        set_flat_weight(module, full[:, stay_columns] + change)
        if can_shift(module, norm):
            move_bias(module, norm, lost @ mean[gone_columns] - change @ mean[stay_columns])


def reestimate_batchnorm(model: nn.Module, images: Tensor, size: int) -> None:
    """Replace the running statistics of every BatchNorm by the mean over ``images``, in place,
    ``size`` images at a time.
    """
    norms = [
        m
        for m in model.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
    ]
    before = [norm.momentum for norm in norms]
    with evaluating(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        for batch in images.split(size):
            model(batch)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
