"""What an action space is: which decisions exist, which choices are legal, what they cost on paper,
and the surgery.

- `Decision`          one thing the agent decides
- `Strategy`          decision -> choice
- `SpaceOptions`      what can be asked of every space
- `CompressionSpace`  the abstract space
- `LayerwiseSpace`    a space in which each decision replaces one layer by a module of its own: the
  short way to write a new one
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from amc.cost.cost import Cost, LatencyModel, cost_of
from amc.errors import unknown
from amc.network.copying import copied
from amc.network.layers import Activations, LayerSpec, LayerTable
from amc.network.trace import Network
from amc.options import Options
from amc.progress import Clock, Report, silent
from amc.surgery.cut import replace_module

Strategy = Mapping[str, int]
"""Decision name -> choice. A decision that is missing is untouched."""


@dataclass(frozen=True)
class Decision:
    """One thing the agent decides: a layer, or layers that are coupled."""

    name: str
    layers: tuple[str, ...]  # the layers it shrinks, in execution order; the first stands for it
    choices: tuple[int, ...]  # legal values, ascending; the last one is untouched
    ratios: tuple[float, ...] = field(
        default=()
    )  # the keep ratio each choice stands for, ascending to 1
    kind: str = ""  # what a choice counts, in a space that has several kinds

    def __post_init__(self) -> None:
        if not self.choices or list(self.choices) != sorted(set(self.choices)):
            raise ValueError(f"the choices of decision {self.name!r} must ascend")
        if not self.ratios:
            object.__setattr__(
                self, "ratios", tuple(choice / self.choices[-1] for choice in self.choices)
            )
        if len(self.ratios) != len(self.choices) or self.ratios[-1] != 1:
            raise ValueError(
                f"the keep ratios of decision {self.name!r} must end in 1, one for each choice"
            )


def _as_names(value: Any) -> Any:
    """One name stands for a list of one; YAML reads those in a `Sequential` as whole numbers."""
    if value is None:
        return ()
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(str(one) if type(one) is int else one for one in values)


class SpaceOptions(Options):
    """The options that every space has."""

    keep: Annotated[tuple[str, ...], BeforeValidator(_as_names)] = Field(
        (),
        description="layers that stay whole, by name or shell pattern: [conv1, fc], '*.conv2'; the "
        "name of a module stands for all layers in it",
    )


class CompressionSpace(ABC):
    """An action space bound to one network, which is never modified: `apply` makes a new one.

    Options of one's own extend `SpaceOptions`; ``space.keep`` is an unknown key otherwise.
    """

    Options: ClassVar[type[Options]] = SpaceOptions

    def __init__(
        self,
        network: Network,
        options: Mapping[str, Any] | None = None,
        calibration: Tensor | None = None,
    ) -> None:
        """Bind the space.

        Args:
            network: what is compressed.
            options: the keys of the preset's ``space`` section except ``name``.
            calibration: images (N, C, H, W), normalised, that repair may use; the network may have
                been trained on them.
        """
        self.network = network
        self.options = self.Options(**(options or {}))
        self.calibration = calibration
        self.report: Report = silent
        self.clock = Clock()  # a space that repairs does so inside ``with self.clock("repair")``
        self.latency: LatencyModel | None = None  # where a device is known
        self.left_alone: dict[str, str] = {}  # layer -> why it is not decided
        self.fresh: Tensor | None = None  # more such images, to see what repair is worth
        self.repair_kept = True  # by the last `apply`: false where repair did harm, and was undone

    def __getstate__(self) -> dict[str, Any]:
        """Without what reports: that is of this process only."""
        return {**self.__dict__, "report": silent}

    def recalibrate(self, count: int) -> None:
        """Use no more than so many calibration images from now on."""
        if self.calibration is not None:
            self.calibration = self.calibration[:count]

    @cached_property
    def decisions(self) -> tuple[Decision, ...]:
        """All decisions that change no layer of ``keep``, in execution order of their first layers.

        Raises:
            UserError: a name in ``keep`` is of no layer.
        """
        kept = self._kept
        found = tuple(self.find_decisions())
        if not kept:
            return found
        touched = {d.name: [name for name in self.reshapes(d) if name in kept] for d in found}
        stay = tuple(decision for decision in found if not touched[decision.name])
        decided = {layer for decision in stay for layer in decision.layers}
        for decision in found:
            for layer in decision.layers if touched[decision.name] else ():
                if layer in kept:
                    self.left_alone[layer] = "space.keep leaves it whole"
                elif layer not in decided:
                    other = touched[decision.name][0]
                    why = f"it shares channels with {other!r}, which space.keep leaves whole"
                    self.left_alone.setdefault(layer, why)
        return stay

    @property
    def _kept(self) -> set[str]:
        """The layers that ``keep`` names.

        Raises:
            UserError: a name is of no layer.
        """
        patterns = self.options.keep if isinstance(self.options, SpaceOptions) else ()
        paths = {name: _path(name) for name in {s.name.split("@")[0] for s in self.network.table}}
        known = {place for path in paths.values() for place in path}
        kept: set[str] = set()
        for pattern in patterns:
            same = {name for name in known if fnmatchcase(name, pattern)}
            if not same:
                raise unknown("layer in space.keep", pattern, known)
            kept |= {name for name, path in paths.items() if same & set(path)}
        return kept

    def reshapes(self, decision: Decision) -> Collection[str]:
        """Every layer whose weights change their shape with a decision; where these are more than
        the layers it is about.
        """
        return decision.layers

    @abstractmethod
    def find_decisions(self) -> Sequence[Decision]:
        """Called once, before anything else. May fill ``left_alone``."""

    @abstractmethod
    def resize(self, strategy: Strategy) -> LayerTable:
        """The layer table that the network would have, on paper. Called very often: no weight may
        be touched.
        """

    @abstractmethod
    def apply(self, strategy: Strategy) -> nn.Module:
        """A new, physically smaller network in eval mode, repaired where the space repairs.
        Deterministic.
        """

    @abstractmethod
    def describe(self, strategy: Strategy) -> dict[str, Any]:
        """What `rebuild` needs to make the same structure from the architecture alone (JSON)."""

    @classmethod
    @abstractmethod
    def rebuild(cls, model: nn.Module, description: dict[str, Any]) -> nn.Module:
        """The structure that `describe` described, made from a fresh ``model`` (weights are loaded
        afterwards).
        """

    def layer_errors(self, decision: Decision) -> tuple[float, ...] | None:
        """A cheap estimate of what each choice of a decision costs: the reconstruction error of the
        layers it touches, each on its own, as a part of their outputs' energy. None where the space
        has no such estimate.
        """
        return None

    def decode(self, decision: Decision, ratio: float) -> int:
        """The legal choice whose keep ratio is nearest to ``ratio`` in [0, 1]."""
        return decision.choices[int(np.argmin(np.abs(np.array(decision.ratios) - ratio)))]

    def encode(self, decision: Decision, choice: int) -> float:
        """The keep ratio that a choice stands for."""
        return decision.ratios[decision.choices.index(choice)]

    def ratios(self, strategy: Strategy) -> tuple[float, ...]:
        """The keep ratio of each decision, in order; the strategy names them all."""
        return tuple(self.encode(d, strategy[d.name]) for d in self.decisions)

    def cost(self, strategy: Strategy) -> Cost:
        return cost_of(self.resize(strategy), self.latency)

    def complete(self, strategy: Strategy) -> dict[str, int]:
        """The strategy with every decision named, in order.

        Raises:
            ValueError: a decision does not exist, or a choice is not legal.
        """
        known = {decision.name for decision in self.decisions}
        if strange := sorted(set(strategy) - known):
            raise ValueError(f"there is no decision {strange[0]!r}")
        full = {}
        for decision in self.decisions:
            full[decision.name] = strategy.get(decision.name, decision.choices[-1])
            if full[decision.name] not in decision.choices:
                raise ValueError(
                    f"{full[decision.name]} is not a choice of decision {decision.name!r}"
                )
        return full

    @property
    def smallest(self) -> dict[str, int]:
        return {decision.name: decision.choices[0] for decision in self.decisions}

    def uniform(self, ratio: float) -> dict[str, int]:
        """The same keep ratio for every decision."""
        return {decision.name: self.decode(decision, ratio) for decision in self.decisions}


def _path(name: str) -> tuple[str, ...]:
    """A layer and the modules that contain it: ``a``, ``a.b``, ``a.b.c``."""
    parts = name.split(".")
    return tuple(".".join(parts[: end + 1]) for end in range(len(parts)))


class LayerwiseSpace(CompressionSpace):
    """A space in which each decision replaces one layer by a module made of smaller ones (a
    factorisation, say).
    """

    @abstractmethod
    def resize_layer(self, layer: LayerSpec, choice: int) -> Sequence[LayerSpec]:
        """The layers that take the place of ``layer``, in execution order; their names as they will
        be in the new network.
        """

    @abstractmethod
    def replace_layer(self, module: nn.Module, choice: int) -> nn.Module:
        """The module that takes the place of ``module``, which must not be modified."""

    def resize(self, strategy: Strategy) -> LayerTable:
        table = self.network.table
        touched = self._touched(strategy)
        layers = (layer for layer in table if layer.name in touched)
        return table.replacing(
            {layer.name: self.resize_layer(layer, touched[layer.name]) for layer in layers}
        )

    def apply(self, strategy: Strategy) -> nn.Module:
        return self.rebuild_with(self.network.model, self._touched(strategy))

    def describe(self, strategy: Strategy) -> dict[str, Any]:
        return {"options": self.options.model_dump(), "layers": self._touched(strategy)}

    @classmethod
    def rebuild(cls, model: nn.Module, description: dict[str, Any]) -> nn.Module:
        shell = cls(
            Network(model, (), LayerTable((), Activations(*[np.zeros(0, np.int64)] * 3))),
            description["options"],
        )
        return shell.rebuild_with(model, description["layers"])

    def rebuild_with(self, model: nn.Module, choices: Mapping[str, int]) -> nn.Module:
        """A copy of ``model`` in which the named layers are replaced."""
        new = copied(model)
        for name, choice in choices.items():
            replace_module(new, name, self.replace_layer(new.get_submodule(name), choice))
        return new

    def _touched(self, strategy: Strategy) -> dict[str, int]:
        """layer -> choice, for the layers that are not left whole."""
        full = self.complete(strategy)
        return {d.layers[0]: full[d.name] for d in self.decisions if full[d.name] != d.choices[-1]}
