"""The channel space: how many channels of each group of coupled channels stay."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from amc.criteria import Criterion
from amc.criteria.reconstruction import removal_losses
from amc.errors import UserError, first_line
from amc.network.groups import ChannelGroup, find_groups
from amc.network.layers import LayerSpec, LayerTable
from amc.network.trace import trace
from amc.registry import lookup
from amc.repair.factors import Factoring
from amc.repair.independent import GramMatrices, repair_independent
from amc.spaces.base import Decision, Strategy
from amc.spaces.repairing import RepairingSpace, RepairOptions
from amc.spaces.settling import miscount
from amc.surgery.cut import Cuts, cut, cuts_of
from amc.surgery.verify import VerifiedGroup, cut_is_mask, verify_groups


class ChannelOptions(RepairOptions):
    """The options of the channel space."""

    coupled: bool = Field(
        True,
        description="also decide channels that several layers write (residual sums), as one "
        "decision a group",
    )
    criterion: str = Field("l1", description="which channels stay: `amc ls` names the criteria")


class ChannelSpace(RepairingSpace):
    """Structured pruning. A choice is the number of channels (of its first layer) that a decision
    keeps.

    Groups are found by probing and each is verified by cut = mask on this network; what fails is in
    ``left_alone``. Channels are ranked once, on the unpruned network, so a smaller choice keeps a
    subset of a larger one's.
    """

    Options = ChannelOptions
    options: ChannelOptions

    def find_decisions(self) -> list[Decision]:
        self._criterion: Criterion = lookup("criterion", self.options.criterion)
        if self.calibration is None and self.options.criterion == "reconstruction":
            raise UserError("the reconstruction criterion needs calibration images")
        groups, self.left_alone = find_groups(self.network)
        if not self.options.coupled:
            for group in [group for group in groups if len(group.producers) > 1]:
                self.left_alone.update(
                    dict.fromkeys(group.producers, "its channels are coupled and coupled is false")
                )
            groups = tuple(group for group in groups if len(group.producers) == 1)
        verified, failures = verify_groups(
            self.network, groups, partial(self.report, "verifying coupled channels")
        )
        self.left_alone.update(failures)
        for layer in {layer for item in verified for layer in item.fixed_macs}:
            self.left_alone.pop(layer, None)  # it shrinks with what it contains
        self._verified = {item.group.name: item for item in verified}
        decisions = [self._decision(item.group) for item in verified]
        decisions = [decision for decision in decisions if len(decision.choices) > 1]
        self._order = {d.name: self._ranked(self._verified[d.name].group) for d in decisions}
        return self._settled(decisions)

    def _why_wrong(self, strategy: dict[str, int], counted: bool) -> str | None:
        cuts = self.cuts(strategy)
        smaller = cut(self.network.model, cuts)
        if not cut_is_mask(self.network, smaller, cuts):
            return "cutting it is not the same as masking it, at some widths"
        if not counted:
            return None
        return miscount(self, strategy, trace(smaller, self.network.input_shape))

    def reshapes(self, decision: Decision) -> set[str]:
        """The layers that write the channels, those that read them, and those between."""
        return {member.layer for member in self._verified[decision.name].group.members}

    def _decision(self, group: ChannelGroup) -> Decision:
        whole = group.size * group.width
        unit = math.lcm(self.options.round_to, group.width)
        least = max(unit, math.ceil(self.options.min_ratio * whole / unit) * unit)
        return Decision(group.name, group.producers, (*range(least, whole, unit), whole))

    def _group(self, name: str) -> VerifiedGroup:
        _ = self.decisions
        return self._verified[name]

    def resize(self, strategy: Strategy) -> LayerTable:
        table = self.network.table
        lost = table.activations.bytes.copy()
        shrink: dict[str, list[int]] = {}
        macs, params = Counter[str](), Counter[str]()  # of layers of no kind, and of the rest
        for decision in self.decisions:
            item = self._group(decision.name)
            atoms = (
                decision.choices[-1] - strategy.get(decision.name, decision.choices[-1])
            ) // item.group.width
            if atoms:
                lost -= atoms * item.buffer_bytes
                for fixed, shares in ((macs, item.fixed_macs), (params, item.fixed_params)):
                    for layer, share in shares.items():
                        fixed[layer] += atoms * share
                for layer, (inputs, outputs) in self._members[decision.name].items():
                    entry = shrink.setdefault(layer, [0, 0])
                    entry[0] += atoms * inputs
                    entry[1] += atoms * outputs
        layers = tuple(
            _shrunk(spec, *shrink[name]) if (name := spec.name.split("@")[0]) in shrink else spec
            for spec in table
        )
        rest = table.rest
        if macs or params:
            layers = tuple(_less(s, macs[s.name], params[s.name]) for s in layers)
            rest = replace(rest, macs=rest.macs - macs[""], params=rest.params - params[""])
        activations = replace(table.activations, bytes=lost)
        return replace(table, layers=layers, activations=activations, rest=rest)

    @cached_property
    def _members(self) -> dict[str, dict[str, tuple[int, int]]]:
        """decision -> layer -> (input, output) channels in one atom."""
        result: dict[str, dict[str, tuple[int, int]]] = {}
        for decision in self.decisions:
            widths: dict[str, list[int]] = {}
            for member in self._group(decision.name).group.members:
                if member.side in ("in", "out"):
                    entry = widths.setdefault(member.layer, [0, 0])
                    entry[member.side == "out"] += len(member.channels[0])
            result[decision.name] = {layer: (ins, outs) for layer, (ins, outs) in widths.items()}
        return result

    def cuts(self, strategy: Strategy) -> Cuts:
        """Which channels of which layer a strategy removes."""
        full = self.complete(strategy)
        removed = []
        for decision in self.decisions:
            group = self._group(decision.name).group
            count = (decision.choices[-1] - full[decision.name]) // group.width
            removed.append((group, self._order[decision.name][:count]))
        return cuts_of(removed)

    def _ranked(self, group: ChannelGroup) -> list[int]:
        """The atoms of a group, the first to go first.

        Raises:
            UserError: it fails, or its answer is no score an atom.
        """
        name = f"the criterion {self.options.criterion!r}"
        try:
            scores = self._criterion(group, self.network, self._grams)
        except UserError:
            raise
        except Exception as error:  # a user's code may raise anything
            raise UserError(
                f"{name} fails for the channels of {group.name!r} ({type(error).__name__}: "
                f"{first_line(error)}): it is called as criterion(group, network, grams)"
            ) from error
        found = f"a {type(scores).__name__}"
        if isinstance(scores, Tensor):
            found = f"{str(scores.dtype).removeprefix('torch.')} {tuple(scores.shape)}"
            right = scores.is_floating_point() and scores.shape == (group.size,)
            if right and not scores.isnan().any():
                order: list[int] = torch.sort(scores.detach(), stable=True).indices.tolist()
                return order
            found += " with NaN" if right else ""
        raise UserError(
            f"{name} gives {found} for the channels of {group.name!r}: a float tensor "
            f"({group.size},) without NaN is expected, in which higher stays"
        )

    def apply(self, strategy: Strategy) -> nn.Module:
        cuts = self.cuts(strategy)
        smaller = cut(self.network.model, cuts)
        return self._repaired(smaller, cuts, {}).eval() if cuts else smaller.eval()

    def _repair(
        self, model: nn.Module, cuts: Cuts, factorings: Mapping[str, Factoring] | None = None
    ) -> None:
        if self.options.repair == "independent":
            assert self._grams is not None
            repair_independent(model, self.network, cuts, self._grams, self.options.ridge)
        super()._repair(model, cuts, factorings)

    @cached_property
    def _grams(self) -> GramMatrices | None:
        if self.calibration is None:
            return None
        return GramMatrices(self.network, self.calibration, self._sampler)

    def layer_errors(self, decision: Decision) -> tuple[float, ...] | None:
        """Of the layers that read the channels (`amc.criteria.reconstruction.removal_losses`)."""
        if self._grams is None:
            return None
        group, order = self._group(decision.name).group, self._order[decision.name]
        counts = [(decision.choices[-1] - choice) // group.width for choice in decision.choices]
        removals = [order[:count] for count in counts]
        return tuple(removal_losses(group, self.network, self._grams, removals))

    def describe(self, strategy: Strategy) -> dict[str, Any]:
        return {"cuts": self.cuts(strategy)}

    @classmethod
    def rebuild(cls, model: nn.Module, description: dict[str, Any]) -> nn.Module:
        return cut(model, description["cuts"])


def _less(spec: LayerSpec, macs: int, params: int) -> LayerSpec:
    """A layer that loses so much of what is of no kind."""
    if not macs and not params:
        return spec
    return replace(
        spec, fixed_macs=spec.fixed_macs - macs, fixed_params=spec.fixed_params - params
    )


@lru_cache(maxsize=100_000)  # a walk asks for the same few again and again
def _shrunk(spec: LayerSpec, inputs: int, outputs: int) -> LayerSpec:
    """A layer after it has lost so many channels; a grouped convolution loses whole groups."""
    if spec.kind == "channelwise":
        return replace(
            spec, in_channels=spec.in_channels - outputs, out_channels=spec.out_channels - outputs
        )
    groups = spec.groups
    if groups > 1:
        groups -= inputs // (spec.in_channels // groups)
    return replace(
        spec,
        in_channels=spec.in_channels - inputs,
        out_channels=spec.out_channels - outputs,
        groups=groups,
    )
