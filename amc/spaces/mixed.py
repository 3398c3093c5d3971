"""The mixed space: channels are removed, and what remains is factorised."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

from pydantic import Field
from torch import nn

from amc.network.layers import LayerTable
from amc.spaces.base import Decision, Strategy
from amc.spaces.channel import ChannelOptions, ChannelSpace
from amc.spaces.lowrank import LowRankOptions, LowRankSpace, factored_table
from amc.spaces.repairing import RepairingSpace, RepairOptions
from amc.surgery.cut import Cuts, cut
from amc.surgery.factor import Plan


class MixedOptions(LowRankOptions, ChannelOptions):
    """The options of the channel space and of the low-rank space."""

    min_ratio: float = Field(0.2, gt=0, le=1, description="the smallest keep ratio of a decision")
    repair: Literal["none", "sequential"] = Field(
        "sequential", description="one sweep of least squares through channels and factors"
    )


class MixedSpace(RepairingSpace):
    """Two steps a layer: how many of its output channels stay, then the rank of what remains.

    A rank ratio means the same part of break-even whatever channels were removed. A layer of which
    not even rank 1 would save anything then stays whole.
    """

    Options = MixedOptions
    options: MixedOptions

    @cached_property
    def channels(self) -> ChannelSpace:
        """Decides widths; its own repair is not used."""
        return ChannelSpace(self.network, self._options_of(ChannelOptions), self.calibration)

    @cached_property
    def factors(self) -> LowRankSpace:
        """Decides ranks; its own repair is not used."""
        return LowRankSpace(self.network, self._options_of(LowRankOptions), self.calibration)

    def _options_of(self, options: type[RepairOptions]) -> dict[str, Any]:
        return {name: getattr(self.options, name) for name in options.model_fields}

    def find_decisions(self) -> list[Decision]:
        self.channels.report = self.report
        widths = [replace(decision, kind="channels") for decision in self.channels.decisions]
        ranks = self.factors.decisions
        order = {spec.name: index for index, spec in enumerate(self.network.table)}
        for what, part in (("channels", self.channels), ("rank", self.factors)):
            for layer, why in part.left_alone.items():
                before = self.left_alone.get(layer)
                if before == f"channels: {why}":  # one reason for both, as of a layer in keep
                    self.left_alone[layer] = why
                    continue
                self.left_alone[layer] = f"{before}; {what}: {why}" if before else f"{what}: {why}"
        # a stable sort: of one layer, its channels first
        both = sorted((*widths, *ranks), key=lambda d: order[d.layers[0]])
        return self._settled(both)

    def reshapes(self, decision: Decision) -> Collection[str]:
        part = self.channels if decision.kind == "channels" else self.factors
        return part.reshapes(decision)

    def resize(self, strategy: Strategy) -> LayerTable:
        table = self.channels.resize(strategy)
        return factored_table(table, self.factors.plan(strategy, table))

    def apply(self, strategy: Strategy) -> nn.Module:
        cuts, plan = self._surgery(strategy)
        model = cut(self.network.model, cuts)
        return self._repaired(model, cuts, plan).eval() if cuts or plan else model.eval()

    def layer_errors(self, decision: Decision) -> tuple[float, ...] | None:
        part = self.channels if decision.kind == "channels" else self.factors
        return part.layer_errors(decision)

    def describe(self, strategy: Strategy) -> dict[str, Any]:
        cuts, plan = self._surgery(strategy)
        return {"cuts": cuts, "factors": plan}

    @classmethod
    def rebuild(cls, model: nn.Module, description: dict[str, Any]) -> nn.Module:
        return LowRankSpace.rebuild(cut(model, description["cuts"]), description)

    def _surgery(self, strategy: Strategy) -> tuple[Cuts, Plan]:
        full = self.complete(strategy)
        widths = {d.name: full[d.name] for d in self.channels.decisions if d.name in full}
        return self.channels.cuts(widths), self.factors.plan(full, self.channels.resize(widths))
