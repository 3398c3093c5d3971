"""Which channels of a producer touch which channels of which layers, read off few perturbations.

Producers that touch nothing in common share a pass. Sample ``b`` perturbs the channels whose
(label + 1) has bit ``b`` set, further samples the complements: a touched channel reads the label of
its source off the bits; one that is touched by a set AND its complement has several sources.

First every channel has a label of its own. Where that mixes, channels may be mixed in blocks (the
heads of an attention, the r x r channels that become one by a pixel shuffle): then whole blocks get
one label, in the arrangements that the numbers around the producer suggest, and in contiguous
blocks of every size; the finest that does not mix counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

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
    unclear: dict[str, set[str]] = {}
    for producers in _passes(probe, reach):
        labels = {name: np.arange(probe.sites[name].out_channels) for name in producers}
        for name, found in _read(probe, reach, labels).items():
            mixed = {site for site, (_, valid, reached) in found.items() if (reached & ~valid).any()}
            if mixed:
                unclear[name] = mixed
            for site, (sources, valid, _) in found.items() if not mixed else ():
                edges = ((name, int(sources[c]), site, int(c)) for c in np.flatnonzero(valid))
                probe.edges.extend(edges)
    known: list[tuple[int, int]] = []  # arrangements that were right before
    wrong: set[str] = set()
    for name, mixed in unclear.items():
        if not _decode_blocks(probe, reach, name, known):
            probe.blocked.setdefault(
                name, f"its channels are mixed before they reach {min(mixed)!r}"
            )
            wrong |= {site for site in mixed if probe.sites[site].channelwise}
    if wrong:
        raise Mixing(wrong)


def _passes(probe: Probe, reach: Reach) -> list[list[str]]:
    """Producers in few sets, none of which has two that touch the same channel."""
    sets: list[tuple[list[str], dict[str, BoolArray]]] = []
    for name in probe.order:
        mine = {site: rows for site, rows in reach[name].items() if site}
        if "" in reach[name]:
            continue  # it is left alone
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


def _read(
    probe: Probe, reach: Reach, labels: dict[str, IntArray]
) -> dict[str, dict[str, tuple[IntArray, BoolArray, BoolArray]]]:
    """producer -> site -> the label that touches each channel; whether it is one alone; whether
    any does. All of shape (channels,).
    """
    bits = max(int(own.max()) + 1 for own in labels.values()).bit_length()
    masks = {name: torch.from_numpy(_codes(own, bits)) for name, own in labels.items()}
    touched = probe.touched(masks, 2 * bits)
    found: dict[str, dict[str, tuple[IntArray, BoolArray, BoolArray]]] = {}
    for name, own in labels.items():
        found[name] = {}
        for site, reached in reach[name].items():
            if site:
                rows = touched[site]
                sources, valid = sources_of(rows[:bits] & reached, rows[bits:] & reached)
                valid &= reached & (sources <= own.max())
                found[name][site] = sources, valid, reached
    return found


def _codes(labels: IntArray, bits: int) -> BoolArray:
    """(2 * bits, channels): who is perturbed in which sample."""
    rows = ((labels + 1)[None] >> np.arange(bits)[:, None]) & 1 == 1
    return np.concatenate([rows, ~rows])


def sources_of(ones: BoolArray, zeros: BoolArray) -> tuple[IntArray, BoolArray]:
    """The labels behind touched channels, and whether each is one alone; of (bits, channels)."""
    clear: BoolArray = (ones ^ zeros).all(axis=0)
    sources: IntArray = (ones * (1 << np.arange(len(ones)))[:, None]).sum(axis=0) - 1
    return sources, clear & (sources >= 0)


def _decode_blocks(
    probe: Probe, reach: Reach, name: str, known: list[tuple[int, int]]
) -> bool:
    """Find the finest arrangement of a producer's channels in blocks that does not mix."""
    site = probe.sites[name]
    for tried in (known, _suggested(probe, site), _contiguous(site.out_channels)):
        arrangements = [(many, each) for many, each in tried if site.out_channels % (many * each) == 0]
        for many, each in sorted(set(arrangements), reverse=True):
            labels = np.arange(site.out_channels) // each % many
            found = _read(probe, reach, {name: labels})[name]
            if any((reached & ~valid).any() for _, valid, reached in found.values()):
                continue
            if (many, each) not in known:
                known.append((many, each))
            probe.edges.extend(_edges(name, labels, found))
            return True
    return False


def _suggested(probe: Probe, site: Site) -> Iterator[tuple[int, int]]:
    """(blocks, adjacent channels of one): of as many blocks as a whole number of a module around
    the producer says, adjacent or interleaved, in one to three projections.
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
    name: str,
    labels: NDArray[np.int64],
    found: dict[str, tuple[IntArray, BoolArray, BoolArray]],
) -> Iterator[tuple[str, int, str, int]]:
    """What ties the channels of a label to each other, by way of the channels that they touch."""
    for site, (sources, valid, _) in found.items():
        for label in np.unique(sources[valid]):
            ours = np.flatnonzero(labels == label)
            theirs = np.flatnonzero(valid & (sources == label))
            yield from ((name, int(one), site, int(theirs[0])) for one in ours)
            yield from ((name, int(ours[0]), site, int(other)) for other in theirs[1:])
