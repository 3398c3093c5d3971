"""Which layer reads what which other layer wrote, found while the network runs once.

Every tensor knows its writers: the layers behind it with nothing but operations between that do not
mix channels as a layer of kind conv or linear does. Whatever an operation reads, its result holds:
so activations, pooling, BatchNorms, concatenation and functional calls pass writers on, a residual
sum and a gate have those of both sides, and a layer's output has that layer alone. Views and
in-place results share a storage, and with it their writers.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from amc.network.layers import storage_key, tensors_in

_ONLY_SHAPES = ("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like")


class Flow:
    """The writers of every storage, and the edges so far."""

    def __init__(self) -> None:
        self._names: list[str] = []  # of the layers, in execution order
        self._writers: dict[int, frozenset[int]] = {}  # storage -> indices of layers
        self._edges: list[tuple[int, int]] = []

    def operation(self, func: Any, given: Any, result: Any) -> None:
        """Note an operation: what it gives has the writers of all that it reads."""
        name = func.overloadpacket.__name__
        only_shape = name in _ONLY_SHAPES or name.startswith("new_")
        writers = frozenset[int]() if only_shape else self._behind(given)
        for tensor in tensors_in(result):
            self._writers[storage_key(tensor)] = writers

    def layer(self, name: str, source: Tensor, output: Tensor) -> None:
        """Note a call of a layer that mixes channels, when it is over."""
        own = len(self._names)
        self._names.append(name)
        self._edges += [(writer, own) for writer in sorted(self._behind(source))]
        self._writers[storage_key(output)] = frozenset((own,))

    def _behind(self, values: Any) -> frozenset[int]:
        keys = {storage_key(tensor) for tensor in tensors_in(values)}
        return frozenset[int]().union(*(self._writers.get(key, ()) for key in keys))

    @property
    def edges(self) -> tuple[tuple[str, str], ...]:
        """(writer, reader), in the order of the readers, then of the writers."""
        return tuple((self._names[writer], self._names[reader]) for writer, reader in self._edges)
