"""What else must change where a group of channels cannot be cut as it is: numbers of the modules
around that count its channels, and parts that must stay equally wide.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from torch import nn

from amc.network.groups import ChannelGroup, Member
from amc.network.kinds import kind_of
from amc.network.kinds.parts import side_of_number

_TRIES = 12  # for one group


def adapted(model: nn.Module, group: ChannelGroup) -> Iterator[ChannelGroup]:
    """The group with whole numbers that fall with its channels: numbers of the modules that contain
    its layers, which count its atoms (``num_heads``) or all channels of a layer (``all_head_size``).
    """
    totals = {sum(map(len, member.channels)) for member in group.members}
    found = list(_numbers(model, group))
    exact = [one for one in found if one[2] == group.size]
    wide = [one for one in found if one[2] in totals - {group.size}]
    sets = [exact, exact + wide]
    sets += [[*exact, one] for one in wide] + [[one] for one in exact]
    sets += [[one, *wide] for one in exact] + [[one] for one in wide]
    seen: list[list[tuple[str, str, int]]] = [[]]
    for numbers in sets:
        if numbers not in seen and len(seen) <= _TRIES:
            seen.append(numbers)
            yield replace(group, members=group.members + tuple(_falling(group.size, numbers)))


def _numbers(model: nn.Module, group: ChannelGroup) -> Iterator[tuple[str, str, int]]:
    """(module, attribute, value) around the layers of a group."""
    layers = [member.layer for member in group.members]
    parents = [layer.rpartition(".")[0] if layer else "" for layer in layers]
    for name in dict.fromkeys([*parents, *layers]):
        module = model.get_submodule(name)
        if kind_of(module) is None:
            own = vars(module).items()
            yield from ((name, key, value) for key, value in own if type(value) is int)


def _falling(size: int, numbers: Sequence[tuple[str, str, int]]) -> Iterator[Member]:
    for module, attribute, value in numbers:
        each = value // size
        channels = tuple(tuple(range(a * each, (a + 1) * each)) for a in range(size))
        yield Member(module, side_of_number(attribute), channels)


def merged(
    groups: Sequence[ChannelGroup], failed: Collection[str]
) -> Iterator[tuple[ChannelGroup, set[str]]]:
    """Groups of one size that are parts of the output of one layer, as one group which loses as
    much of each: a network that splits it equally goes on doing so. And the names of the parts.

    Args:
        groups: all of a network.
        failed: the names of those that cannot be cut alone.
    """
    parts: dict[tuple[str, int], list[ChannelGroup]] = defaultdict(list)
    for group in groups:
        for producer in group.producers:
            parts[producer, group.size].append(group)
    done: set[str] = set()
    for (producer, _), same in sorted(parts.items(), key=lambda item: -len(item[1])):
        names = {group.name for group in same}
        if len(same) > 1 and names & set(failed) and not names & done:
            done |= names
            yield _zipped(sorted(same, key=lambda group: _first(group, producer))), names


def _first(group: ChannelGroup, layer: str) -> int:
    """The first channel that a layer writes of a group."""
    own = (m for m in group.members if (m.layer, m.side) == (layer, "out"))
    return min(channel for member in own for atom in member.channels for channel in atom)


def _zipped(groups: Sequence[ChannelGroup]) -> ChannelGroup:
    """One group, whose atom ``a`` is the atoms ``a`` of all."""
    channels: dict[tuple[str, str], list[list[int]]] = {}
    for group in groups:
        for member in group.members:
            own = channels.setdefault((member.layer, member.side), [[] for _ in range(group.size)])
            for atom, more in zip(own, member.channels, strict=True):
                atom.extend(more)
    members = tuple(
        Member(layer, side, tuple(tuple(sorted(atom)) for atom in own))
        for (layer, side), own in channels.items()
    )
    producers = dict.fromkeys(name for group in groups for name in group.producers)
    consumers = dict.fromkeys(name for group in groups for name in group.consumers)
    return ChannelGroup(groups[0].name, tuple(producers), tuple(consumers), members)
