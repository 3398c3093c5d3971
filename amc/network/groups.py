"""Coupled channels: which channels of which layers can only be removed together.

`amc.network.probe` asks the network which producer channel reaches which consumer channel. Here the
connected components of these pairs become atoms, the entries of tensors that go with them are added
(`amc.network.attached`), and atoms with the same members become one group.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from amc.network.attached import Atom, attach
from amc.network.decoding import Mixing, decode
from amc.network.kinds.parts import Side
from amc.network.probe import Probe
from amc.network.shrinking import at_smallest_input
from amc.network.sites import NotApart
from amc.network.trace import Network


@dataclass(frozen=True)
class Member:
    """One side of one layer or module in a group: ``channels[a]`` are its channels (or entries of
    its tensor, `amc.network.kinds.parts`) in atom ``a``.
    """

    layer: str
    side: Side
    channels: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only be removed together, as a list of atoms: the unit that one decision is
    about.
    """

    name: str  # its first producer in execution order
    producers: tuple[str, ...]  # the layers that mix channels and write these, in execution order
    consumers: tuple[str, ...]  # the layers that mix channels and read these
    members: tuple[Member, ...]  # every layer that must be cut, both sides

    @property
    def size(self) -> int:
        """The number of atoms."""
        return len(self.members[0].channels)

    @property
    def width(self) -> int:
        """Channels of the first producer in one atom (more than one in a grouped convolution)."""
        return max(
            1,
            len(
                next(
                    m for m in self.members if m.layer == self.producers[0] and m.side == "out"
                ).channels[0]
            ),
        )


def find_groups(network: Network, seed: int = 0) -> tuple[tuple[ChannelGroup, ...], dict[str, str]]:
    """All groups of coupled channels, and for every producer that is in none the reason why.

    Raises:
        UserError: the network does not run on a batch of several images.
    """
    network = at_smallest_input(network)
    alone, mixing = list[str](), set[str]()
    while True:  # once more for every layer that is not what it seemed
        probe = Probe(network, seed, alone, mixing)
        try:
            with probe.installed():
                probe.record()
                decode(probe, probe.reach())
                atoms = _atoms(probe)
                attach(probe, [atom for atom in atoms if _is_decided(probe, atom)])
        except NotApart as error:
            alone.append(error.site)
            continue
        except Mixing as error:
            mixing |= error.sites
            continue
        return _groups(probe, atoms)


def _atoms(probe: Probe) -> list[Atom]:
    """The connected components of the edges."""
    offsets: dict[tuple[str, Side], int] = {}
    total = 0
    for site in probe.sites.values():
        sides: tuple[tuple[Side, int], ...] = (("in", site.in_channels), ("out", site.out_channels))
        for side, count in sides[1:] if site.channelwise else sides:
            offsets[site.name, side] = total
            total += count
    pairs = [
        (offsets[p, "out"] + c, offsets[s, "out" if probe.sites[s].channelwise else "in"] + d)
        for p, c, s, d in probe.edges
    ]
    for name in probe.order:
        pairs += [
            (offsets[name, "in"] + i, offsets[name, "out"] + o)
            for i, o in probe.sites[name].links()
        ]
    for site in probe.sites.values():
        start = offsets[site.name, "out"]
        pairs += [(start + one, start + other) for one, other in site.ties()]
    left, right = zip(*pairs, strict=True) if pairs else ((), ())
    graph = coo_matrix((np.ones(len(pairs)), (left, right)), shape=(total, total))
    _, labels = connected_components(graph, directed=False)
    atoms: dict[int, Atom] = defaultdict(lambda: defaultdict(list))
    for (name, side), start in offsets.items():
        site = probe.sites[name]
        for channel in range(site.out_channels if side == "out" else site.in_channels):
            atoms[labels[start + channel]][name, side].append(channel)
    return list(atoms.values())


def _is_decided(probe: Probe, atom: Atom) -> bool:
    """Whether a layer that mixes writes the channels of an atom, another one reads them, and none
    of its writers is left alone.
    """
    mixing = [side for n, side in atom if n in probe.sites and probe.sites[n].mixes]
    blocked = any(side == "out" and n in probe.blocked for n, side in atom)
    return not blocked and "out" in mixing and "in" in mixing


def _groups(
    probe: Probe, atoms: list[Atom]
) -> tuple[tuple[ChannelGroup, ...], dict[str, str]]:
    rank = {name: index for index, name in enumerate(probe.order)}
    reasons = dict(probe.blocked)
    by_signature: dict[tuple[Any, ...], list[Atom]] = defaultdict(list)
    for atom in atoms:
        writers = [n for n, side in atom if side == "out" and not probe.sites[n].channelwise]
        blocked = next((probe.blocked[n] for n in writers if n in probe.blocked), None)
        if blocked is not None:
            for name in writers:
                reasons.setdefault(name, blocked)
            continue
        if _is_decided(probe, atom):
            signature = tuple(sorted((n, side, len(c)) for (n, side), c in atom.items()))
            by_signature[signature].append(atom)
    counts: dict[str, Iterator[int]] = defaultdict(lambda: itertools.count(1))
    groups = []
    for signature, same in by_signature.items():
        sides = {(n, side) for n, side, _ in signature if side in ("in", "out")}
        mixing = {(n, side) for n, side in sides if probe.sites[n].mixes}
        producers = sorted((n for n, side in mixing if side == "out"), key=rank.__getitem__)
        consumers = sorted((n for n, side in mixing if side == "in"), key=rank.__getitem__)
        number = next(counts[producers[0]])
        members = tuple(
            Member(n, side, tuple(tuple(atom[n, side]) for atom in same))
            for n, side, _ in signature
        )
        name = producers[0] if number == 1 else f"{producers[0]}#{number}"
        groups.append(ChannelGroup(name, tuple(producers), tuple(consumers), members))
    groups.sort(key=lambda group: (rank[group.producers[0]], group.name))
    found = {name for group in groups for name in group.producers}
    missing = [n for n in probe.order if probe.sites[n].mixes and n not in found]
    alone = {n: reasons.get(n, "no layer reads its channels") for n in missing}
    gone = {n: why for n, why in probe.blocked.items() if n not in probe.sites}
    return tuple(groups), {**probe.network.table.alone, **gone, **alone}
