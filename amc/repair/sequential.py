"""Sequential repair: one forward sweep over the calibration images through the network as pruned so
far.

Every mixer's output (with the BatchNorm that alone reads it) is left open until something reads it.
Then its weights are solved on the inputs it really gets now. Where the reader is a sum (a residual
connection), the target is the ORIGINAL SUM minus the other branch as it is now, so that a branch
also makes good what the shortcut has lost (He, Zhang, Sun, ICCV 2017, section 3.3, found here for
any network by watching the additions). Otherwise the target is the layer's own original output.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from amc.network.kinds.base import kept
from amc.network.kinds.parts import Side
from amc.network.trace import Network
from amc.repair.deferring import Deferring, Open, compute
from amc.repair.factors import Factoring, refit
from amc.repair.regression import RIDGE, regress
from amc.repair.rows import Sampler, can_shift, flat_weight, move_bias, set_flat_weight


class Targets(Deferring):
    """What the unpruned network computes at the sampled positions: layer -> rows (images *
    positions, out), and of sums likewise.
    """

    def __init__(self, network: Network, images: Tensor, sampler: Sampler) -> None:
        folds = dict(network.table.folds)
        super().__init__(network.model, folds, network.solvable, network.memory_format)
        self.sampler = sampler
        self.outputs: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}
        self._rows: dict[str, list[Tensor]] = {}
        self._summed_rows: dict[str, list[Tensor]] = {}
        self._first = 0
        size = network.table.activations.batch_size()
        for self._first in range(0, len(images), size):
            self.run(images[self._first : self._first + size])
        self.outputs = {layer: torch.cat(self._rows.pop(layer)) for layer in list(self._rows)}
        self.sums = {
            layer: torch.cat(self._summed_rows.pop(layer)) for layer in list(self._summed_rows)
        }

    def close(self, item: Open, other: Tensor | None) -> None:
        output: Tensor = type(item.module).forward(item.module, item.source)
        sampled = partial(self.sampler.outputs, item.layer, item.module, first=self._first)
        self._rows.setdefault(item.layer, []).append(sampled(output))
        if item.norm is not None:
            output = type(item.norm).forward(item.norm, output)
        item.output.set_(output)  # type: ignore[call-overload]
        if other is not None:
            self._summed_rows.setdefault(item.layer, []).append(sampled(output) + sampled(other))


class SequentialRepair(Deferring):
    """Repairs a cut network in place, layer by layer, in one forward pass over all calibration
    images.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Targets,
        cuts: Mapping[str, Mapping[Side, list[int]]],
        factorings: Mapping[str, Factoring] | None = None,
        ridge: float = RIDGE,
    ) -> None:
        """Bind a sweep.

        Args:
            model: cut and factorised, its weights not repaired.
            targets: of the original network.
            cuts: which channels of which layer were removed.
            factorings: how which layer was factorised.
            ridge: see `ridge_solve`.
        """
        super().__init__(model, targets.folds, targets.mixers, targets.memory_format)
        self.targets, self.cuts, self.ridge = targets, cuts, ridge
        self.factorings = factorings or {}
        self._changed = False  # until something was cut, inputs are the original ones

    def close(self, item: Open, other: Tensor | None) -> None:
        cut = bool(self.cuts.get(item.layer, {}).get("in"))
        self._changed = self._changed or cut or item.layer in self.factorings
        if self._changed:
            self._solve(item, other)
        item.output.set_(compute(item))  # type: ignore[call-overload]

    def _solve(self, item: Open, other: Tensor | None) -> None:
        last, wanted = item.last, self._target(item, other)
        patches = partial(self.targets.sampler.inputs, item.layer)
        bias = getattr(last, "bias", None)
        if bias is not None:
            wanted = wanted - bias.detach()
        shiftable = can_shift(last, item.norm)
        if isinstance(item.module, nn.Sequential):
            shift = refit(
                item.module,
                self.factorings[item.layer],
                item.source,
                wanted,
                patches,
                shiftable,
                self.ridge,
            )
        else:
            rows = patches(last, item.source)
            start = flat_weight(last)
            images = self.targets.sampler.images_in(item.layer, item.source)
            fit = regress(rows, wanted, start, images, self.ridge, shiftable)
            set_flat_weight(last, fit.weight)
            shift = fit.shift(fit.weight)
        if shiftable:
            move_bias(last, item.norm, shift)

    def _target(self, item: Open, other: Tensor | None) -> Tensor:
        """What the mixer itself should give, rows (images * positions, out)."""
        sampler, layer = self.targets.sampler, item.layer
        own, whole = self.targets.outputs[layer], self.targets.sums.get(layer)
        if gone := self.cuts.get(layer, {}).get("out", []):
            stay = kept(own.shape[1], gone).to(own.device)
            own = own.index_select(1, stay)
            whole = None if whole is None else whole.index_select(1, stay)
        if other is None or whole is None:
            return own
        branch = whole - sampler.outputs(layer, item.last, other)
        if item.norm is None:
            return branch
        norm = item.norm
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
        assert norm.running_var is not None and norm.running_mean is not None
        sigma = (norm.running_var + norm.eps).sqrt()
        gamma = torch.ones_like(sigma) if norm.weight is None else norm.weight.detach()
        beta = torch.zeros_like(sigma) if norm.bias is None else norm.bias.detach()
        alive = gamma.abs() > 1e-3 * gamma.abs().max()
        scale = sigma / torch.where(alive, gamma, torch.ones_like(gamma))
        inverse = branch.mul_(scale).add_(norm.running_mean - beta * scale)
        return torch.where(alive, inverse, own)
