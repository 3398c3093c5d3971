"""Before a search: is the cut of every group what it claims to be, on this very network?

For each group about half of its atoms are cut. The smaller network must give the outputs of the full-size one in which the cut
channels are ignored (cut = mask), and its trace must have the same operations. The trace also tells how many bytes each buffer
loses with one atom, so memory is known on paper afterwards.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from amc.network.groups import ChannelGroup
from amc.network.layers import IntArray, Network, evaluating, example_input, trace
from amc.surgery.cut import cut, cuts_of, masked


@dataclass(frozen=True, eq=False)
class VerifiedGroup:
    """A group whose cut was compared with its mask."""

    group: ChannelGroup
    buffer_bytes: IntArray  # what each activation buffer loses with one atom, shape (buffers,)


Progress = Callable[[int, int], None]
"""Called with (done, total)."""


def verify_groups(
    network: Network, groups: tuple[ChannelGroup, ...], progress: Progress = lambda done, total: None
) -> tuple[tuple[VerifiedGroup, ...], dict[str, str]]:
    """The groups whose cut equals their mask, and for the others (by their producers) the reason."""
    exact = _in_double(network)
    verified, failures = [], {}
    for done, group in enumerate(groups):
        reason = "it has a single channel" if group.size < 2 else None
        if reason is None:
            lost, reason = _verify(network, exact, group)
        if reason is None:
            verified.append(VerifiedGroup(group, lost))
        else:
            failures.update(dict.fromkeys(group.producers, reason))
        progress(done + 1, len(groups))
    remaining = {name for item in verified for name in item.group.producers}
    return tuple(verified), {name: why for name, why in failures.items() if name not in remaining}


def same_outputs(smaller: nn.Module, reference: nn.Module, image: Tensor) -> bool:
    """Whether two networks compute the same, up to the rounding of the image's dtype."""
    with evaluating(smaller), evaluating(reference):
        got, got_shape = tree_flatten(smaller(image))
        expected, expected_shape = tree_flatten(reference(image))
    if got_shape != expected_shape:
        return False
    tolerance = 1e-8 if image.dtype == torch.float64 else 1e-3
    pairs = [(a, b) for a, b in zip(got, expected, strict=True) if isinstance(b, Tensor)]
    return all(a.shape == b.shape and bool((a - b).abs().max() <= tolerance * b.abs().max()) for a, b in pairs)


def _in_double(network: Network) -> nn.Module:
    """The network in float64, where rounding cannot be mistaken for a wrong channel; as it is where that does not run."""
    try:
        double = copy.deepcopy(network.model).double()
        with evaluating(double):
            double(example_input(double, network.input_shape))
    except Exception:
        return network.model
    return double


def _verify(network: Network, exact: nn.Module, group: ChannelGroup) -> tuple[IntArray, str | None]:
    atoms = sorted(random.Random(0).sample(range(group.size), max(1, group.size // 2)))
    cuts = cuts_of([(group, atoms)])
    empty = np.zeros(0, dtype=np.int64)
    image = example_input(exact, network.input_shape, batch=2)
    try:
        smaller = cut(exact, cuts)
        if not same_outputs(smaller, masked(exact, cuts), image):
            return empty, "cutting it is not the same as masking it"
        after = trace(smaller, network.input_shape)
    except Exception as error:
        return empty, f"it cannot be cut: {str(error).strip().splitlines()[0] if str(error) else type(error).__name__}"
    before = network.table.activations
    if len(after.activations.bytes) != len(before.bytes) or len(after) != len(network.table):
        return empty, "the network runs other operations when it is cut"
    lost = before.bytes - after.activations.bytes
    if (lost % len(atoms)).any():
        return empty, "its memory does not shrink evenly"
    return lost // len(atoms), None
