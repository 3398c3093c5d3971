"""Criteria from what the other channels can make good."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from amc.criteria.magnitude import l1
from amc.network.groups import ChannelGroup
from amc.network.trace import Network
from amc.repair.independent import GramMatrices
from amc.repair.regression import RIDGE, centred
from amc.repair.rows import columns_of, flat_weight, weight_of


def reconstruction(
    group: ChannelGroup, network: Network, grams: GramMatrices | None = None
) -> Tensor:
    """Backward elimination: remove again and again the atom whose loss the remaining ones repair
    best.

    With ``H = X^T X`` of a consumer and W its weights, removing the inputs q costs ``tr(W_q^T
    ((H^-1)_qq)^-1 W_q)`` after the best repair of the rest (optimal brain surgeon, Hassibi & Stork
    1993, for blocks). The costs of all consumers are added, each as a part of its output's energy.
    Returns scores (atoms,): the order of removal, higher stays. Of a group whose consumers cannot
    be solved for, the L1 norms.
    """
    assert grams is not None, "the reconstruction criterion needs calibration images"
    parts = _consumers(group, network, grams)
    if not parts:
        return l1(group, network)
    scores = parts[0].weight.new_zeros(group.size)
    left = list(range(group.size))
    for position in range(group.size):
        losses = _losses(parts, [[atom] for atom in left])
        atom = left.pop(int(losses.argmin()))
        scores[atom] = position
        for part in parts:
            part.remove(atom)
    return scores


def removal_losses(
    group: ChannelGroup, network: Network, grams: GramMatrices, removals: Sequence[Sequence[int]]
) -> list[float]:
    """What it costs to remove sets of atoms together: summed over the consumers, the part of the
    output's energy that the best repair of each, on its own, cannot make good.
    """
    parts = _consumers(group, network, grams)
    if not parts:
        return [0.0] * len(removals)
    losses: list[float] = _losses(parts, removals).tolist()
    return losses


def _losses(parts: Sequence[_Consumer], removals: Sequence[Sequence[int]]) -> Tensor:
    """Of removing sets of atoms together, summed over the consumers: (sets,)."""
    return torch.stack([torch.stack([part.loss(q) for part in parts]).sum() for q in removals])


def _consumers(group: ChannelGroup, network: Network, grams: GramMatrices) -> list[_Consumer]:
    return [
        _Consumer(network, grams, m.layer, m.channels)
        for m in group.members
        if m.side == "in" and m.layer in group.consumers and m.layer in grams
    ]


class _Consumer:
    """One consumer's inverse Gram matrix and weights, while its inputs are removed one atom after
    another.
    """

    def __init__(
        self,
        network: Network,
        grams: GramMatrices,
        layer: str,
        channels: tuple[tuple[int, ...], ...],
    ) -> None:
        module = network.model.get_submodule(layer)
        self.weight = flat_weight(module).T.clone()  # (k, out)
        width = weight_of(module).shape[1]
        positions = len(self.weight) // width
        gram = grams[layer]
        every = torch.tensor([one for atom in channels for one in atom], device=gram.device)
        atoms = every.split([len(atom) for atom in channels])
        self.columns = [columns_of(atom, width, positions) for atom in atoms]
        mean = gram[-1, :-1]
        gram = centred(gram[:-1, :-1], mean)
        self.energy = ((gram @ self.weight) * self.weight).sum().clamp_min(1e-30)
        gram.diagonal().add_(RIDGE * gram.diagonal().mean())  # `centred` has made a new one
        self.inverse = torch.linalg.inv(gram)

    def loss(self, atoms: Sequence[int]) -> Tensor:
        """Of removing several atoms together."""
        if not atoms:
            return self.weight.new_zeros(())
        q = torch.cat([self.columns[atom] for atom in atoms])
        weight = self.weight[q]
        loss: Tensor = (weight * torch.linalg.solve(self.inverse[q][:, q], weight)).sum()
        return loss / self.energy

    def remove(self, atom: int) -> None:
        q = self.columns[atom]
        gain = torch.linalg.solve(self.inverse[q][:, q], self.inverse[q])  # (|q|, k)
        self.weight -= gain.T @ self.weight[q]
        self.inverse -= self.inverse[:, q] @ gain
        self.weight[q] = 0
        self.inverse[q] = 0
        self.inverse[:, q] = 0
