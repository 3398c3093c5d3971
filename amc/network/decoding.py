"""Which channels of a producer touch which channels of which layers, read off few perturbations.

Every channel has a label. Sample ``b`` perturbs the channels whose (label + 1) has bit ``b`` set,
further samples the complements: a touched channel reads the label of its source off the bits; one
that is touched by a set AND its complement has sources of several labels. All producers share a
pass: where two touch the same channel, it is clear only if both do so with the same label, as in a
residual sum. Those for which it is not are asked again, apart from each other.

First every channel has a label of its own. Where that mixes, channels may be mixed in blocks (the
heads of an attention, the r x r channels that become one by a pixel shuffle): then whole blocks get
one label, in the arrangements that the numbers around the producer suggest, and in contiguous
blocks of every size; the finest that does not mix counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from amc.network.layers import IntArray
from amc.network.probe import BoolArray, Probe
from amc.network.sites import Site

Reach = dict[str, dict[str, BoolArray]]
"""producer -> site -> the channels that it touches at all."""

_FUSED = (1, 2, 3)  # projections that one layer computes: keys and values; queries, too


class Mixing(Exception):
    """Normalisations mix what is not the channels of one layer."""

    def __init__(self, sites: set[str]) -> None:
        super().__init__(", ".join(sorted(sites)))
        self.sites = sites


def decode(probe: Probe, reach: Reach) -> None:
    """Write all edges down, and why a producer has none.

    Raises:
        Mixing: with these normalisations as they are, there may be more.
    """
    asked = [name for name in probe.order if "" not in reach[name]]
    apart = _singles(probe, reach, asked)
    mixed = [name for some in _passes(reach, apart) for name in _singles(probe, reach, some)]
    left = _blocks(probe, reach, mixed)
    left = [name for some in _passes(reach, left) for name in _blocks(probe, reach, some)]
    wrong: set[str] = set()
    for name in left:
        sites = [site for site in reach[name] if reach[name][site].any()]
        probe.blocked.setdefault(name, f"its channels are mixed before they reach {sites[0]!r}")
        wrong |= {site for site in sites if probe.sites[site].channelwise}
    if wrong:
        raise Mixing(wrong)


def _singles(probe: Probe, reach: Reach, names: list[str]) -> list[str]:
    """Decode producers whose channels do not mix; the others come back."""
    return _decoded(probe, reach, {n: np.arange(probe.sites[n].out_channels) for n in names})


def _blocks(probe: Probe, reach: Reach, names: list[str]) -> list[str]:
    """Decode producers whose channels mix in blocks; the others come back."""
    known: list[tuple[int, int]] = []  # arrangements that were right before
    tried: dict[str, list[tuple[int, int]]] = {name: [] for name in names}
    while True:
        labels = {}
        for name, before in tried.items():
            site = probe.sites[name]
            for many, each in _arrangements(probe, site, known):
                if (many, each) not in before:
                    before.append((many, each))
                    labels[name] = np.arange(site.out_channels) // each % many
                    break
        if not labels:
            return list(tried)
        left = _decoded(probe, reach, labels)
        for name in labels:
            if name not in left:
                known += [tried[name][-1]] if tried[name][-1] not in known else []
                del tried[name]


def _decoded(probe: Probe, reach: Reach, labels: dict[str, IntArray]) -> list[str]:
    """Write down the edges of those producers that are clear with such labels, asked together; the
    others come back.
    """
    if not labels:
        return []
    bits = max(int(own.max()) + 1 for own in labels.values()).bit_length()
    masks = {name: torch.from_numpy(_codes(own, bits)) for name, own in labels.items()}
    found = {
        site: sources_of(rows[:bits], rows[bits:])
        for site, rows in probe.touched(masks, 2 * bits).items()
    }
    left = []
    for name, own in labels.items():
        reached = {site: rows for site, rows in reach[name].items() if site}
        largest = own.max()
        clear = all((found[s][1] & (found[s][0] <= largest))[r].all() for s, r in reached.items())
        if not clear:
            left.append(name)
            continue
        for site, rows in reached.items():
            probe.edges.extend(_edges(name, own, site, np.where(rows, found[site][0], -1)))
    return left


def _passes(reach: Reach, names: list[str]) -> list[list[str]]:
    """Producers in few sets, none of which has two that touch the same channel."""
    sets: list[tuple[list[str], dict[str, BoolArray]]] = []
    for name in names:
        mine = reach[name]
        free = (
            s for s in sets if not any((s[1][k] & v).any() for k, v in mine.items() if k in s[1])
        )
        chosen = next(free, None)
        if chosen is None:
            chosen = ([], {})
            sets.append(chosen)
        members, taken = chosen
        members.append(name)
        for site, rows in mine.items():
            taken[site] = taken[site] | rows if site in taken else rows
    return [members for members, _ in sets]


def _codes(labels: IntArray, bits: int) -> BoolArray:
    """(2 * bits, channels): who is perturbed in which sample."""
    rows = ((labels + 1)[None] >> np.arange(bits)[:, None]) & 1 == 1
    return np.concatenate([rows, ~rows])


def sources_of(ones: BoolArray, zeros: BoolArray) -> tuple[IntArray, BoolArray]:
    """The labels behind touched channels, and whether each is one alone; of (bits, channels)."""
    clear: BoolArray = (ones ^ zeros).all(axis=0)
    sources: IntArray = (ones * (1 << np.arange(len(ones)))[:, None]).sum(axis=0) - 1
    return sources, clear & (sources >= 0)


def _arrangements(
    probe: Probe, site: Site, known: list[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """(blocks, adjacent channels of one): those of before first, of the others the finest."""
    width = site.out_channels
    for several in (known, _suggested(probe, site), _contiguous(width)):
        yield from sorted({one for one in several if width % (one[0] * one[1]) == 0}, reverse=True)


def _suggested(probe: Probe, site: Site) -> Iterator[tuple[int, int]]:
    """As many blocks as a whole number of a module around the producer says, adjacent or
    interleaved, in one to three projections.
    """
    path = site.name.split(".")
    around = [probe.network.model.get_submodule(".".join(path[:end])) for end in range(len(path))]
    for number in _numbers(around[-2:]):
        if 1 < number < site.out_channels and site.out_channels % number == 0:
            for parts in _FUSED:
                if site.out_channels % (parts * number) == 0:
                    yield number, site.out_channels // (parts * number)
            yield number, 1


def _numbers(modules: Iterable[torch.nn.Module]) -> set[int]:
    return {value for module in modules for value in vars(module).values() if type(value) is int}


def _contiguous(width: int) -> Iterator[tuple[int, int]]:
    """All blocks of adjacent channels."""
    for each in range(2, width // 2 + 1):
        if width % each == 0:
            yield width // each, each


def _edges(
    name: str, labels: IntArray, site: str, sources: IntArray
) -> Iterator[tuple[str, int, str, int]]:
    """What ties the channels of a label to each other, by way of the channels that they touch."""
    ours, theirs = np.argsort(labels, kind="stable"), np.argsort(sources, kind="stable")
    for label in np.unique(sources[sources >= 0]):
        mine = ours[slice(*np.searchsorted(labels[ours], [label, label + 1]))]
        read = theirs[slice(*np.searchsorted(sources[theirs], [label, label + 1]))]
        yield from ((name, int(one), site, int(read[0])) for one in mine)
        yield from ((name, int(mine[0]), site, int(other)) for other in read[1:])
