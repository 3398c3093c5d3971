"""Criteria: which channels stay.

A criterion is a pure function (group, network, grams) -> scores (atoms,): the atoms with the
highest stay.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from amc.network.groups import ChannelGroup
from amc.network.trace import Network
from amc.repair.independent import GramMatrices

Criterion = Callable[[ChannelGroup, Network, GramMatrices | None], Tensor]
