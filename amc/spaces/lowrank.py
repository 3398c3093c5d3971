"""The low-rank space: of which rank the factors are that take a layer's place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from amc.network.copying import copied
from amc.network.kinds import does_as_its_type
from amc.network.layers import IntArray, LayerSpec, LayerTable
from amc.spaces.base import Decision, Strategy
from amc.spaces.repairing import RepairingSpace, RepairOptions
from amc.surgery.cut import replace_module
from amc.surgery.factor import (
    Method,
    Plan,
    Ranks,
    affordable,
    factored,
    full_ranks,
    structure,
    unfoldings,
)

_COUNTED = {"rank": slice(None), "rank_in": slice(0, 1), "rank_out": slice(1, 2)}
"""kind of a decision -> which of a layer's ranks its choices are; of several, the sum."""


class LowRankOptions(RepairOptions):
    """The options of the low-rank space."""

    min_ratio: float = Field(
        0.0, ge=0, le=1, description="the smallest keep ratio of a decision; 0: rank 1"
    )
    repair: Literal["none", "sequential"] = Field(
        "sequential",
        description="factors that give the original outputs best, from the inputs of the network "
        "as compressed so far; none: factors of the weights",
    )
    convolution: Method = Field(
        "tucker",
        description="how k x k convolutions are factorised: tucker, cp, spatial or svd; linear "
        "layers, 1 x 1 and the first convolution are always svd",
    )
    tucker_ranks: Literal["energy", "separate"] = Field(
        "energy",
        description="energy: one decision a layer, both modes keep equal parts of their energy; "
        "separate: two decisions a layer",
    )


class LowRankSpace(RepairingSpace):
    """Low-rank factors. A choice is a rank; for Tucker in one decision, the sum of its two.

    Keep ratios run linearly from rank 1 to break-even, above which factors cost more than the
    layer; 1 keeps the layer whole. Ranks whose intermediate maps would need more memory than the
    untouched network are no choices either.
    """

    Options = LowRankOptions
    options: LowRankOptions

    def find_decisions(self) -> list[Decision]:
        self._ranks: dict[str, dict[int, Ranks]] = {}  # decision -> choice -> ranks
        self._methods: dict[str, Method] = {}
        self.left_alone |= self.network.table.alone
        decisions: list[Decision] = []
        mixers = [spec for spec in self.network.table if spec.kind in ("conv", "linear")]
        for layer in (layer for layer in mixers if not layer.shared):
            reason = self._why_not(layer)
            if reason is None:
                is_matrix = layer.kernel == (1, 1) or layer is mixers[0]
                self._methods[layer.name] = "svd" if is_matrix else self.options.convolution
                found = list(self._decisions_of(layer))
                decisions += found
                reason = None if found else "no factors of it would be smaller"
            if reason is not None:
                self.left_alone[layer.name] = reason
        return self._settled(decisions)

    def _why_not(self, layer: LayerSpec) -> str | None:
        """Why a layer cannot be factorised."""
        module: Any = self.network.model.get_submodule(layer.name)
        pads = getattr(module, "_reversed_padding_repeated_twice", ())
        uneven = getattr(module, "padding_mode", "zeros") != "zeros" or pads[::2] != pads[1::2]
        reasons = {
            "it is grouped: only ungrouped ones are factorised": layer.groups > 1,
            "it is called more than once": f"{layer.name}@2" in self.network.table.by_name,
            "an image passes it in several parts at once": layer.repeats > 1,
            "it is a transposed convolution: these are not factorised": layer.transposed,
            "only convolutions over height and width are factorised": len(layer.kernel) != 2,
            "it has a forward or a hook of its own": not does_as_its_type(module),
            "its padding is an operation of its own": uneven,
        }
        return next((reason for reason, holds in reasons.items() if holds), None)

    def _decisions_of(self, layer: LayerSpec) -> Iterator[Decision]:
        """Where there is something to decide: one decision, or for separate Tucker ranks two."""
        whole = full_ranks(self._methods[layer.name], layer)
        for kind, ladder in self._ladders(layer, whole).items():
            counted = _COUNTED[kind]
            choices = {sum(ranks[counted]): ranks for ranks in ladder}
            top = max(choices, default=0) + self.options.round_to
            chosen = [c for c in choices if c / top >= self.options.min_ratio]
            if chosen:
                name = f"{layer.name}:{kind}"
                self._ranks[name] = choices
                ratios = (*(choice / top for choice in chosen), 1.0)
                yield Decision(name, (layer.name,), (*chosen, sum(whole[counted])), ratios, kind)

    def _ladders(self, layer: LayerSpec, whole: Ranks) -> dict[str, list[Ranks]]:
        """Kind of decision -> the ranks that its choices stand for, ascending."""
        method, step = self._methods[layer.name], self.options.round_to
        steps = [range(step, rank, step) for rank in whole]
        if method != "tucker":
            return {"rank": self._worth_taking(layer, ((rank,) for rank in steps[0]))}
        if self.options.tucker_ranks == "energy":
            pairs = energy_ladder(self.unfoldings(layer.name), step)
            return {"rank": self._worth_taking(layer, pairs)}
        outer = self._worth_taking(layer, ((whole[0], rank) for rank in steps[1]))
        widest = max((ranks[1] for ranks in outer), default=whole[1])
        inner = self._worth_taking(layer, ((rank, whole[1]) for rank in steps[0]), widest)
        return {"rank_in": inner, "rank_out": outer}

    def _worth_taking(
        self, layer: LayerSpec, wanted: Iterable[Ranks], beside: int | None = None
    ) -> list[Ranks]:
        """Of ascending ranks those that save MACs and parameters and whose maps fit into the memory
        of the untouched network; with an outer rank of ``beside`` too, where that is decided apart.
        """
        method = self._methods[layer.name]
        found: list[Ranks] = []
        for ranks in wanted:
            cut = affordable(layer, method, ranks, self.options.round_to)
            if cut is None or (found and cut == found[-1]):
                continue
            largest = cut if beside is None else (cut[0], beside)
            if not self._fits_memory(layer, factored(layer, method, largest)):
                break
            found.append(cut)
        return found

    def _fits_memory(self, layer: LayerSpec, parts: tuple[LayerSpec, ...]) -> bool:
        """Whether no operation of the parts needs more memory than one that stays as it is; or
        than the layer itself, where its maps grow with a single decision.
        """
        live, most = self._live
        if self.options.tucker_ranks == "energy":
            most = max(most, int(live[layer.step]))
        after = self.network.table.activations.splitting({layer.step: parts}).live_bytes()
        return int(after[layer.step : layer.step + len(parts)].max()) <= most

    @cached_property
    def _live(self) -> tuple[IntArray, int]:
        """Bytes alive at each operation, and the most at one that is not a layer to factorise."""
        live = self.network.table.activations.live_bytes()
        steps = [spec.step for spec in self.network.table if spec.kind in ("conv", "linear")]
        return live, int(np.delete(live, steps).max())

    def plan(self, strategy: Strategy, table: LayerTable | None = None) -> Plan:
        """How each layer is factorised.

        Args:
            strategy: of this space; a decision that is missing is untouched.
            table: of the network if its channels were cut meanwhile; ranks shrink with the widths.
        """
        table = table or self.network.table
        wanted: dict[str, Ranks] = {}
        for decision in self.decisions:
            choice = strategy.get(decision.name, decision.choices[-1])
            if choice != decision.choices[-1]:
                name, ranks = decision.layers[0], self._ranks[decision.name][choice]
                both = zip(ranks, wanted.get(name, ranks), strict=True)
                wanted[name] = tuple(min(pair) for pair in both)
        before, plan = self.network.table.by_name, {}
        for layer in (layer for layer in table if layer.name in wanted):
            method, ranks = self._methods[layer.name], wanted[layer.name]
            if layer is not before[layer.name]:
                ranks = shrunk(method, ranks, before[layer.name], layer, self.options.round_to)
            cut = affordable(layer, method, ranks, self.options.round_to)
            if cut is not None:
                plan[layer.name] = method, cut
        return plan

    def resize(self, strategy: Strategy) -> LayerTable:
        return factored_table(self.network.table, self.plan(strategy))

    def apply(self, strategy: Strategy) -> nn.Module:
        self.complete(strategy)
        model, plan = copied(self.network.model), self.plan(strategy)
        return self._repaired(model, {}, plan).eval() if plan else model.eval()

    def describe(self, strategy: Strategy) -> dict[str, Any]:
        return {"factors": self.plan(self.complete(strategy))}

    @classmethod
    def rebuild(cls, model: nn.Module, description: dict[str, Any]) -> nn.Module:
        new = copied(model)
        for name, (method, ranks) in description["factors"].items():
            replace_module(new, name, structure(new.get_submodule(name), method, tuple(ranks)))
        return new

    def layer_errors(self, decision: Decision) -> tuple[float, ...] | None:
        """The energy of the weights that the ranks lose; None for CP."""
        if self._methods[decision.layers[0]] == "cp":
            return None
        kept = [kept_energy(matrix) for matrix in self.unfoldings(decision.name)]
        counted, ranks = _COUNTED[decision.kind], self._ranks[decision.name]
        lost = (
            sum(1 - own[rank - 1] for rank, own in zip(ranks[c][counted], kept, strict=True))
            for c in decision.choices[:-1]
        )
        return (*lost, 0.0)

    def unfoldings(self, name: str) -> tuple[Tensor, ...]:
        """The matrices whose ranks a layer's are, float64: for Tucker the kernel unfolded along its
        input and along its output channels.

        Args:
            name: of a layer, or of a decision.

        Raises:
            UserError: it is factorised by CP, whose rank is of no matrix.
        """
        layer, _, kind = name.partition(":")
        module: Any = self.network.model.get_submodule(layer)
        matrices = unfoldings(module.weight.detach().double(), self._methods[layer])
        return matrices[_COUNTED[kind or "rank"]]


def factored_table(table: LayerTable, plan: Plan) -> LayerTable:
    """The layer table when layers are factorised."""
    layers = (layer for layer in table if layer.name in plan)
    return table.replacing({layer.name: factored(layer, *plan[layer.name]) for layer in layers})


def shrunk(method: Method, ranks: Ranks, before: LayerSpec, after: LayerSpec, step: int) -> Ranks:
    """Ranks in proportion to the widths that are left of a layer, multiples of ``step``; a whole
    rank stays whole.
    """
    inputs = Fraction(after.in_channels, before.in_channels)
    outputs = Fraction(after.out_channels, before.out_channels)
    shares = (inputs, outputs) if method == "tucker" else (min(inputs, outputs),)
    whole = full_ranks(method, before), full_ranks(method, after)
    return tuple(
        new if rank == old else max(1, min(new - 1, max(step, int(rank * share) // step * step)))
        for rank, share, old, new in zip(ranks, shares, *whole, strict=True)
    )


def energy_ladder(matrices: Sequence[Tensor], step: int) -> Iterator[Ranks]:
    """Pairs of ranks, ascending, with which both matrices keep about equal parts of their energy
    (squared singular values): the one that keeps less grows next.
    """
    kept = [kept_energy(matrix) for matrix in matrices]
    ranks = [min(step, len(energy)) for energy in kept]
    while any(rank < len(energy) for rank, energy in zip(ranks, kept, strict=True)):
        yield ranks[0], ranks[1]
        growing = [i for i in (0, 1) if ranks[i] < len(kept[i])]
        least = min(growing, key=lambda i: kept[i][ranks[i] - 1])
        ranks[least] = min(ranks[least] + step, len(kept[least]))


def kept_energy(matrix: Tensor) -> list[float]:
    """The part of a matrix's energy (squared singular values) that ranks 1, 2, ... keep."""
    energy = torch.linalg.eigvalsh(matrix @ matrix.T).flip(0).clamp_min(0).cumsum(0)
    kept: list[float] = (energy / energy[-1].clamp_min(1e-30)).tolist()
    return kept
