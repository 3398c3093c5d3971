"""Before a search: is the cut of every group what it claims to be, on this very network?

For each group about half of its atoms are cut: the network must still run, with the same operations.
Its trace tells how many bytes each buffer, and how many MACs and parameters everything of no layer
loses with one atom, so these are known on paper afterwards; it is made without computing where the
network can be traced so. All groups together, and each alone where that fails, must give the
outputs of the full-size network in which the cut channels are ignored (cut = mask). A group for
which it does not hold is adapted (`amc.surgery.adapting`). A network may do otherwise at some widths
only: spaces compare several strategies as a whole once more (`cut_is_mask`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from amc.errors import UserError, first_line
from amc.network.copying import copied
from amc.network.groups import ChannelGroup
from amc.network.layers import IntArray, LayerTable, evaluating, example_input
from amc.network.shrinking import at_smallest_input
from amc.network.trace import Network, trace
from amc.surgery.adapting import adapted, merged
from amc.surgery.cut import Cuts, cut, cuts_of, masking


@dataclass(frozen=True, eq=False)
class VerifiedGroup:
    """A group whose cut was compared with its mask."""

    group: ChannelGroup
    buffer_bytes: IntArray  # what each activation buffer loses with one atom, shape (buffers,)
    fixed_macs: Mapping[str, int]  # what a layer's, and the rest's (""), lose likewise
    fixed_params: Mapping[str, int]  # likewise


Progress = Callable[[int, int], None]
"""Called with (done, total)."""

_DIFFERS = "cutting it is not the same as masking it"


def verify_groups(
    network: Network,
    groups: tuple[ChannelGroup, ...],
    progress: Progress = lambda done, total: None,
) -> tuple[tuple[VerifiedGroup, ...], dict[str, str]]:
    """The groups whose cut equals their mask, and for the other producers the reason."""
    verifier = _Verifier(network)
    verified, failures = [], dict[str, str]()
    for done, group in enumerate(groups):
        found = verifier.run(group) if group.size > 1 else "it has a single channel"
        if isinstance(found, VerifiedGroup):
            verified.append(found)
        else:
            failures[group.name] = found
        progress(done + 1, len(groups))
    verified, wrong = verifier.equal(verified)
    failures |= dict.fromkeys(wrong, _DIFFERS)
    for group in groups:
        better = verifier.adapted(group) if group.name in failures and group.size > 1 else None
        if better is not None:
            verified.append(better)
            del failures[group.name]
    several = [group for group in groups if group.size > 1]
    for group, parts in merged(several, failures):
        better = verifier.adapted(group, whole=True)
        if better is not None:
            verified = [item for item in verified if item.group.name not in parts]
            verified.append(better)
    order = {group.name: place for place, group in enumerate(groups)}
    verified.sort(key=lambda item: order[item.group.name])
    remaining = {name for item in verified for name in item.group.producers}
    reasons = {name: failures[g.name] for g in groups if g.name in failures for name in g.producers}
    return tuple(verified), {name: why for name, why in reasons.items() if name not in remaining}


class _Verifier:
    """Cuts groups of one network."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.small = at_smallest_input(network)
        self.model, self.before = _on_paper(network)

    def run(self, group: ChannelGroup) -> VerifiedGroup | str:
        """The group, or why it cannot be cut."""
        atoms = _half(group)
        try:
            after = _traced(cut(self.model, cuts_of([(group, atoms)])), self.network)
        except Exception as error:
            return f"it cannot be cut: {first_line(error)}"
        return _measured(group, len(atoms), self.before, after)

    def equal(
        self, items: Sequence[VerifiedGroup]
    ) -> tuple[list[VerifiedGroup], list[str]]:
        """Those whose cut is their mask, and the names of the others."""
        if not items or self._is_mask(items):
            return list(items), []
        right = [item for item in items if self._is_mask([item])]
        if len(right) == len(items):
            return right, []  # spaces find out which of them do not go together
        names = {item.group.name for item in right}
        return right, [item.group.name for item in items if item.group.name not in names]

    def _is_mask(self, items: Sequence[VerifiedGroup]) -> bool:
        cuts = cuts_of([(item.group, _half(item.group)) for item in items])
        try:
            return cut_is_mask(self.small, cut(self.network.model, cuts), cuts)
        except Exception:
            return False

    def adapted(self, group: ChannelGroup, whole: bool = False) -> VerifiedGroup | None:
        """The first adaptation of a group that holds; also as it is, where it is ``whole``."""
        for other in [*[group] * whole, *adapted(self.network.model, group)]:
            found = self.run(other)
            if isinstance(found, VerifiedGroup) and self._is_mask([found]):
                return found
        return None


def _half(group: ChannelGroup) -> list[int]:
    return sorted(random.Random(0).sample(range(group.size), max(1, group.size // 2)))


def _on_paper(network: Network) -> tuple[nn.Module, LayerTable]:
    """The network without memory, where that has the same operations; else as it is."""
    paper = copied(network.model).to("meta")
    try:
        table = _traced(paper, network)
    except UserError:
        return network.model, network.table
    same = len(table) == len(network.table) and all(
        (one.name, one.macs, one.params) == (other.name, other.macs, other.params)
        for one, other in zip(table, network.table, strict=True)
    )
    bytes_ = table.activations.bytes, network.table.activations.bytes
    if same and len(bytes_[0]) == len(bytes_[1]) and (bytes_[0] == bytes_[1]).all():
        return paper, network.table
    return network.model, network.table


def _traced(model: nn.Module, network: Network) -> LayerTable:
    where = next((p.device for p in model.parameters()), torch.device("cpu"))
    if where.type != "meta":
        return trace(model, network.input_shape, network.name)
    with torch.device("meta"), _AttentionOfProcessors():
        return trace(model, network.input_shape, network.name)


class _AttentionOfProcessors(TorchFunctionMode):
    """Lets attention be the one operation that it is on a processor, where nothing is computed."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            return _fused(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    given = query, key, value, dropout_p, is_causal
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output: Tensor = attend(*given, attn_mask=attn_mask, scale=scale)[0]
    return output


def _measured(
    group: ChannelGroup, atoms: int, before: LayerTable, after: LayerTable
) -> VerifiedGroup | str:
    """What everything loses with one atom, from the traces of a network before and after so many
    were cut.
    """
    whole, left = before.activations.bytes, after.activations.bytes
    if len(left) != len(whole) or len(after) != len(before):
        return "the network runs other operations when it is cut"
    lost = whole - left
    macs = {"": before.rest.macs - after.rest.macs}
    params = {"": before.rest.params - after.rest.params}
    for one, other in zip(before, after, strict=True):
        macs[one.name] = one.fixed_macs - other.fixed_macs
        params[one.name] = one.fixed_params - other.fixed_params
    if any(value % atoms for value in (*macs.values(), *params.values(), *lost.tolist())):
        return "its costs do not shrink evenly"
    shares = (
        {name: value // atoms for name, value in one.items() if value} for one in (macs, params)
    )
    return VerifiedGroup(group, lost // atoms, *shares)


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
