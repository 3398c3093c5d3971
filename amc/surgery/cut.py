"""Make a network physically smaller: remove channels from its layers.

`Cuts` is plain data (JSON), so a network can be rebuilt from its architecture and its cuts alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from amc.network.copying import copied
from amc.network.groups import ChannelGroup
from amc.network.kinds import Kind, kind_of
from amc.network.kinds.parts import Side, cut_part

Cuts = dict[str, dict[Side, list[int]]]
"""module -> {"in": removed input channels, "out": removed output channels}, ascending; and what
else of it goes with them (`amc.network.kinds.parts`).
"""


def cuts_of(removed: Iterable[tuple[ChannelGroup, Iterable[int]]]) -> Cuts:
    """What each layer loses when the given atoms of the given groups are removed."""
    gone: dict[tuple[str, Side], set[int]] = {}
    for group, chosen in removed:
        atoms = list(chosen)
        for member in group.members:
            channels = gone.setdefault((member.layer, member.side), set())
            channels.update(channel for atom in atoms for channel in member.channels[atom])
    cuts: Cuts = {}
    for (layer, side), channels in sorted(gone.items()):
        if channels:
            cuts.setdefault(layer, {})[side] = sorted(channels)
    return cuts


def cut(model: nn.Module, cuts: Mapping[str, Mapping[Side, list[int]]]) -> nn.Module:
    """A smaller copy of ``model``, which is not modified.

    Raises:
        ValueError: a layer cannot lose these channels.
    """
    smaller = copied(model)
    modules = dict(smaller.named_modules())
    for name, sides in cuts.items():
        if name not in modules:
            raise ValueError(f"there is no layer {name!r} to cut")
        try:
            _cut_module(modules[name], sides)
        except ValueError as error:
            raise ValueError(f"{name!r}: {error}") from error
    return smaller


def _cut_module(module: nn.Module, sides: Mapping[Side, list[int]]) -> None:
    for side, gone in sides.items():
        if side not in ("in", "out"):
            cut_part(module, side, gone)
    if "in" in sides or "out" in sides:
        kind = kind_of(module)
        if kind is None:
            raise ValueError(f"a {type(module).__name__} cannot be cut")
        kind.cut(module, sides.get("in", []), sides.get("out", []))


@contextmanager
def masking(model: nn.Module, cuts: Mapping[str, Mapping[Side, list[int]]]) -> Iterator[nn.Module]:
    """``model`` with the cut channels ignored, inside only: whatever reads them is given an input
    in which they say nothing (`Kind.masked`): zeros, and to a normalisation the mean of the others.
    """

    def ignoring(kind: Kind, gone_in: list[int], gone_out: list[int]) -> Callable[..., Any]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return kind.masked(module, inputs[0], gone_in, gone_out), *inputs[1:]

        return hook

    modules, handles = dict(model.named_modules()), []
    try:
        for name, sides in cuts.items():
            kind = kind_of(modules[name])
            if kind is not None:
                hook = ignoring(kind, sides.get("in", []), sides.get("out", []))
                handles.append(modules[name].register_forward_pre_hook(hook))
        yield model
    finally:
        for handle in handles:
            handle.remove()


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` in the place of ``model``'s submodule ``name``, under every name it has."""
    old = model.get_submodule(name)
    for parent in list(model.modules()):
        for attribute, child in list(parent._modules.items()):
            if child is old:
                parent._modules[attribute] = module
