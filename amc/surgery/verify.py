"""Before a search: is the cut of every group what it claims to be, on this very network?

For each group about half of its atoms are cut: the network must still run, with the same
operations. Its trace tells how many bytes each buffer, and how many MACs and parameters everything
of no layer loses with one atom, so these are known on paper afterwards. All groups together, and
each alone where that fails, must give the outputs of the full-size network in which the cut
channels are ignored (cut = mask). A group for which it does not hold is adapted
(`amc.surgery.adapting`). A network may do otherwise at some widths only: spaces compare several
strategies as a whole once more (`cut_is_mask`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from amc.errors import first_line
from amc.network.copying import copied
from amc.network.groups import ChannelGroup
from amc.network.layers import IntArray, LayerTable, evaluating, example_input
from amc.network.trace import Network
from amc.surgery.adapting import adapted, merged
from amc.surgery.cut import Cuts, cut, cuts_of, masking
from amc.surgery.paper import Paper


@dataclass(frozen=True, eq=False)
class VerifiedGroup:
    """A group whose cut was compared with its mask."""

    group: ChannelGroup
    buffer_bytes: IntArray  # what each activation buffer loses with one atom, shape (buffers,)
    fixed_macs: Mapping[str, int]  # what a layer's, and the rest's (""), lose likewise
    fixed_params: Mapping[str, int]  # likewise


Progress = Callable[[int, int], None]
"""Called with (done, total)."""

_LEAST = 1e-6  # of the largest output, at least, in `_varying`
_CLEAR, _EXACT = 1e-5, 1e-8  # of what varies, in float32 and in float64
_DIFFERS = "cutting it is not the same as masking it"


def verify_groups(
    network: Network,
    groups: tuple[ChannelGroup, ...],
    asked: Network,
    progress: Progress = lambda done, total: None,
) -> tuple[tuple[VerifiedGroup, ...], dict[str, str]]:
    """The groups whose cut equals their mask, and for the other producers the reason.

    Args:
        network: whose costs are told.
        groups: of its channels.
        asked: the same network, as it is asked (`amc.network.asking`).
        progress: of it.
    """
    verifier = _Verifier(network, asked)
    verified, failures = [], dict[str, str]()
    for done, group in enumerate(groups):
        found = verifier.likely(group) if group.size > 1 else "it has a single channel"
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

    def __init__(self, network: Network, asked: Network) -> None:
        self.network = network
        self.asked = asked
        self.paper = Paper.of(network)

    def run(self, group: ChannelGroup) -> VerifiedGroup | str:
        """The group, or why it cannot be cut."""
        atoms = _half(group)
        try:
            after = self.paper.cut(cuts_of([(group, atoms)]))
        except Exception as error:
            return f"it cannot be cut: {first_line(error)}"
        return _measured(group, len(atoms), self.network.table, after)

    def likely(self, group: ChannelGroup) -> VerifiedGroup | str:
        """The group as it is, or as it is first adapted so that the network runs: which need not
        be right.
        """
        found = self.run(group)
        others = adapted(self.network.model, group) if isinstance(found, str) else ()
        better = next((f for f in map(self.run, others) if isinstance(f, VerifiedGroup)), found)
        return better

    def equal(self, items: Sequence[VerifiedGroup]) -> tuple[list[VerifiedGroup], list[str]]:
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
            return cut_is_mask(self.asked, cut(self.asked.model, cuts), cuts)
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
        if one.growth is None:
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
    return max(apart(a, b) for a, b in _outputs(smaller, reference, image))


def differ_by_variation(smaller: nn.Module, reference: nn.Module, images: Tensor) -> float:
    """The same as a part of what varies between images: before training that may be little."""
    pairs = _outputs(smaller, reference, images)
    return max(float((a - b).abs().max() / _varying(b)) for a, b in pairs)


def _outputs(one: nn.Module, other: nn.Module, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The tensors that both give; a pair that is infinitely apart where they cannot be compared."""
    with evaluating(one), evaluating(other):
        got, got_shape = tree_flatten(one(images))
        expected, expected_shape = tree_flatten(other(images))
    pairs = [(a, b) for a, b in zip(got, expected, strict=False) if isinstance(b, Tensor)]
    if got_shape != expected_shape or any(a.shape != b.shape for a, b in pairs):
        return [(torch.tensor([torch.inf]), torch.ones(1))]
    return pairs


def _varying(output: Tensor) -> Tensor:
    """How far outputs are from their mean over the images, at most. Where an image hardly matters a
    part of the largest output: less would be lost in rounding.
    """
    spread = (output - output.mean(0, keepdim=True)).abs().max()
    return torch.maximum(spread, _LEAST * output.abs().max()).clamp_min(1e-30)


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference, as a part of the largest value of ``b``."""
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))


def cut_is_mask(network: Network, smaller: nn.Module, cuts: Cuts) -> bool:
    """Whether a cut network gives the outputs of the whole one in which the cut channels are
    ignored: in float32 if that is clear; what rounding could explain is decided in float64, for the
    same cut of the network in float64, whose values the smaller one must have.
    """
    image = example_input(network.model, network.input_shape, batch=2)
    with masking(network.model, cuts):
        if differ_by_variation(smaller, network.model, image) <= _CLEAR:
            return True
    whole = copied(network.model).double()
    exact = cut(whole, cuts)
    if not _same_values(smaller, exact):
        return False
    with masking(whole, cuts):
        return differ_by_variation(exact, whole, image.double()) <= _EXACT


def _same_values(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks hold the same, but for rounding."""
    values = [module.state_dict() for module in (one, other)]
    if {k: v.shape for k, v in values[0].items()} != {k: v.shape for k, v in values[1].items()}:
        return False
    pairs = ((tensor.double(), values[1][key].double()) for key, tensor in values[0].items())
    return all(torch.allclose(a, b, rtol=1e-5, atol=1e-12) for a, b in pairs)
