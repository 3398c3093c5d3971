"""Before a search: is the cut of every group what it claims to be, on this very network?

For each group about half of its atoms are cut. The smaller network must give the outputs of the
full-size one in which the cut channels are ignored (cut = mask), and its trace must have the same
operations. The trace also tells how many bytes each buffer loses with one atom, so memory is known
on paper afterwards.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from amc.errors import first_line
from amc.network.groups import ChannelGroup
from amc.network.layers import IntArray, evaluating, example_input
from amc.network.trace import Network, trace
from amc.surgery.cut import Cuts, cut, cuts_of, masking


@dataclass(frozen=True, eq=False)
class VerifiedGroup:
    """A group whose cut was compared with its mask."""

    group: ChannelGroup
    buffer_bytes: IntArray  # what each activation buffer loses with one atom, shape (buffers,)


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
        if reason is None:
            lost, reason = _verify(network, group)
        if reason is None:
            verified.append(VerifiedGroup(group, lost))
        else:
            failures.update(dict.fromkeys(group.producers, reason))
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
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in pairs)


def _cut_is_mask(network: Network, smaller: nn.Module, cuts: Cuts) -> bool:
    """In float32 if that is clear; what rounding could explain is decided in float64."""
    for exact, tolerance in ((False, 1e-5), (True, 1e-8)):
        model = copy.deepcopy(network.model).double() if exact else network.model
        image = example_input(model, network.input_shape, batch=2)
        with masking(model, cuts):
            difference = outputs_differ(smaller.double() if exact else smaller, model, image)
        if difference <= tolerance:
            return True
    return False


def _verify(network: Network, group: ChannelGroup) -> tuple[IntArray, str | None]:
    atoms = sorted(random.Random(0).sample(range(group.size), max(1, group.size // 2)))
    cuts = cuts_of([(group, atoms)])
    empty = np.zeros(0, dtype=np.int64)
    try:
        smaller = cut(network.model, cuts)
        after = trace(smaller, network.input_shape)
        if not _cut_is_mask(network, smaller, cuts):
            return empty, "cutting it is not the same as masking it"
    except Exception as error:
        return (
            empty,
            f"it cannot be cut: {first_line(error)}",
        )
    before = network.table.activations
    if len(after.activations.bytes) != len(before.bytes) or len(after) != len(network.table):
        return empty, "the network runs other operations when it is cut"
    lost = before.bytes - after.activations.bytes
    if (lost % len(atoms)).any():
        return empty, "its memory does not shrink evenly"
    return lost // len(atoms), None
