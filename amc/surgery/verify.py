"""Before a search: is the cut of every group what it claims to be, on this very network?

For each group about half of its atoms are cut. The smaller network must give the outputs of the
full-size one in which the cut channels are ignored (cut = mask), and its trace must have the same
operations. The trace also tells how many bytes each buffer, and how many MACs each operation of no
layer loses with one atom, so both are known on paper afterwards. A network may do otherwise at some
widths only: spaces compare several strategies as a whole once more (`cut_is_mask`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from amc.errors import first_line
from amc.network.copying import copied
from amc.network.groups import ChannelGroup
from amc.network.layers import IntArray, evaluating, example_input
from amc.network.trace import Network, trace
from amc.surgery.cut import Cuts, cut, cuts_of, masking


@dataclass(frozen=True, eq=False)
class VerifiedGroup:
    """A group whose cut was compared with its mask."""

    group: ChannelGroup
    buffer_bytes: IntArray  # what each activation buffer loses with one atom, shape (buffers,)
    fixed_macs: Mapping[str, int]  # what a layer's, and the rest's (""), lose likewise


Progress = Callable[[int, int], None]
"""Called with (done, total)."""


def verify_groups(
    network: Network,
    groups: tuple[ChannelGroup, ...],
    progress: Progress = lambda done, total: None,
) -> tuple[tuple[VerifiedGroup, ...], dict[str, str]]:
    """The groups whose cut equals their mask, and for the other producers the reason."""
    verified, failures = [], {}
    for done, group in enumerate(groups):
        reason = "it has a single channel" if group.size < 2 else None
        found = reason or _verify(network, group)
        if isinstance(found, VerifiedGroup):
            verified.append(found)
        else:
            failures.update(dict.fromkeys(group.producers, found))
        progress(done + 1, len(groups))
    remaining = {name for item in verified for name in item.group.producers}
    return tuple(verified), {name: why for name, why in failures.items() if name not in remaining}


def outputs_differ(smaller: nn.Module, reference: nn.Module, image: Tensor) -> float:
    """The largest difference between the outputs of two networks, as a part of the largest output;
    inf where they cannot be compared.
    """
    with evaluating(smaller), evaluating(reference):
        got, got_shape = tree_flatten(smaller(image))
        expected, expected_shape = tree_flatten(reference(image))
    pairs = [(a, b) for a, b in zip(got, expected, strict=False) if isinstance(b, Tensor)]
    if got_shape != expected_shape or any(a.shape != b.shape for a, b in pairs):
        return float("inf")
    return max(apart(a, b) for a, b in pairs)


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference, as a part of the largest value of ``b``."""
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))


def cut_is_mask(network: Network, smaller: nn.Module, cuts: Cuts) -> bool:
    """Whether a cut network gives the outputs of the whole one in which the cut channels are
    ignored: in float32 if that is clear; what rounding could explain is decided in float64.
    """
    for exact, tolerance in ((False, 1e-5), (True, 1e-8)):
        model = copied(network.model).double() if exact else network.model
        image = example_input(model, network.input_shape, batch=2)
        with masking(model, cuts):
            difference = outputs_differ(smaller.double() if exact else smaller, model, image)
        if difference <= tolerance:
            return True
    return False


def _verify(network: Network, group: ChannelGroup) -> VerifiedGroup | str:
    """The group, or why it cannot be cut."""
    atoms = sorted(random.Random(0).sample(range(group.size), max(1, group.size // 2)))
    cuts = cuts_of([(group, atoms)])
    try:
        smaller = cut(network.model, cuts)
        after = trace(smaller, network.input_shape)
        if not cut_is_mask(network, smaller, cuts):
            return "cutting it is not the same as masking it"
    except Exception as error:
        return f"it cannot be cut: {first_line(error)}"
    table = network.table
    before = table.activations
    if len(after.activations.bytes) != len(before.bytes) or len(after) != len(table):
        return "the network runs other operations when it is cut"
    lost = before.bytes - after.activations.bytes
    macs = {"": table.rest.macs - after.rest.macs}
    for one, other in zip(table, after, strict=True):
        macs[one.name] = one.fixed_macs - other.fixed_macs
    if (lost % len(atoms)).any() or any(value % len(atoms) for value in macs.values()):
        return "its costs do not shrink evenly"
    shares = {name: value // len(atoms) for name, value in macs.items() if value}
    return VerifiedGroup(group, lost // len(atoms), shares)
