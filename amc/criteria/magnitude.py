"""Criteria from the weights alone."""

from __future__ import annotations

import torch
from torch import Tensor

from amc.network.groups import ChannelGroup
from amc.network.trace import Network
from amc.repair.independent import GramMatrices
from amc.repair.rows import weight_of


def l1(group: ChannelGroup, network: Network, grams: GramMatrices | None = None) -> Tensor:
    """AMC's criterion: the L1 norm of the consumers' weights for an input channel, over output
    channels and kernel.

    Each consumer counts by its share of its own total, so that wide layers do not decide alone.
    Returns scores (atoms,): higher stays.
    """
    scores = torch.zeros(group.size, dtype=torch.float64, device="cpu")
    for member in group.members:
        if member.side == "in" and member.layer in group.consumers:
            weight = weight_of(network.model.get_submodule(member.layer)).detach().double()
            norms = weight.abs().transpose(0, 1).flatten(1).sum(1).cpu()
            atoms = torch.stack([norms[list(channels)].sum() for channels in member.channels])
            scores += atoms / norms.sum().clamp_min(1e-30)
    return scores
