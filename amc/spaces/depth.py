"""Which inner widths may go whole, and what goes with them.

Without its inner width a residual branch gives a constant, and the shortcut is left. So it may go
where all else still sees the image: with the channels masked, every other layer that mixes channels
still reads something else for another image, and so do the outputs differ. That holds for the last
inner width of a branch beside a shortcut (or beside other branches, in a concatenation); not in a
plain chain.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter

from amc.network.groups import ChannelGroup
from amc.network.kinds import mixes
from amc.network.layers import evaluating, example_input
from amc.network.trace import Network
from amc.surgery.cut import cuts_of, masking

_OUTPUT = ""  # of the network, among the layers that see something


def that_may_go(network: Network, groups: Iterable[ChannelGroup]) -> frozenset[str]:
    """The names of the groups without which everything else still sees the image.

    Args:
        network: as it is asked (`amc.network.asking`).
        groups: of its channels.
    """
    # also where they do not: a head of zeros must not let everything go
    whole, widths = _seeing(network, None) | {_OUTPUT}, widths_of(network)
    found = set()
    for group in groups:
        dead = _only_for(network, _written_whole(widths, [group]))
        if whole <= _seeing(network, group) | dead | set(group.consumers):
            found.add(group.name)
    return frozenset(found)


def widths_of(network: Network) -> dict[str, int]:
    """The output channels of every layer."""
    return {spec.name: spec.out_channels for spec in network.table}


def closure(
    widths: Mapping[str, int], groups: Mapping[str, ChannelGroup], gone: Collection[str]
) -> frozenset[str]:
    """All groups that go when some do: also those that nobody reads any more, whose consumers have
    lost all their outputs.

    Args:
        widths: see `widths_of`.
        groups: that are decided, by name.
        gone: the names of those that go by themselves.
    """
    found = frozenset(gone)
    while True:
        dead = _written_whole(widths, [groups[name] for name in found])
        more = {n for n, one in groups.items() if one.consumers and dead.issuperset(one.consumers)}
        if more <= found:
            return found
        found |= more


def _written_whole(widths: Mapping[str, int], groups: Iterable[ChannelGroup]) -> set[str]:
    """The layers that mix channels all of whose outputs are in some groups."""
    written: dict[str, int] = defaultdict(int)
    for group in groups:
        for member in group.members:
            if member.side == "out" and member.layer in group.producers:
                written[member.layer] += sum(map(len, member.channels))
    return {name for name, count in written.items() if count == widths[name]}


def _only_for(network: Network, dead: set[str]) -> set[str]:
    """Layers that are dead, and those that only these read."""
    readers: dict[str, set[str]] = defaultdict(set)
    for writer, reader in network.table.edges:
        readers[writer.split("@")[0]].add(reader.split("@")[0])
    found = set(dead)
    while more := {n for n, those in readers.items() if those <= found} - found:
        found |= more
    return found


def _seeing(network: Network, masked: ChannelGroup | None) -> set[str]:
    """The layers that mix channels whose inputs differ between two images, and "" where the
    network's outputs do; with a group masked.
    """
    model = network.model
    inputs: dict[str, list[list[Tensor]]] = defaultdict(lambda: [[], []])
    cuts = {} if masked is None else cuts_of([(masked, range(masked.size))])

    def noting(name: str, image: int) -> object:
        def hook(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            inputs[name][image].append(given[0])

        return hook

    layers = {name: module for name, module in model.named_modules() if mixes(module)}
    with evaluating(model), masking(model, cuts):
        for image in (0, 1):
            handles = [
                module.register_forward_pre_hook(noting(name, image))
                for name, module in layers.items()
            ]
            try:
                output = model(example_input(model, network.input_shape, seed=image))
            finally:
                for handle in handles:
                    handle.remove()
            inputs[_OUTPUT][image] = [t for t in tree_iter(output) if isinstance(t, Tensor)]
    return {name for name, (one, other) in inputs.items() if _differ(one, other)}


def _differ(one: list[Tensor], other: list[Tensor]) -> bool:
    return any(not torch.equal(a, b) for a, b in zip(one, other, strict=True))
