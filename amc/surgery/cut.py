"""Make a network physically smaller: remove channels from its layers.

`Cuts` is plain data (JSON), so a network can be rebuilt from its architecture and its cuts alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from amc.network.copying import copied
from amc.network.groups import ChannelGroup, Side
from amc.network.kinds import kind_of

Cuts = dict[str, dict[Side, list[int]]]
"""layer -> {"in": removed input channels, "out": removed output channels}, ascending."""


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
        module, kind = modules[name], kind_of(modules[name])
        if kind is None:
            raise ValueError(f"{name!r} is a {type(module).__name__}, which cannot be cut")
        try:
            kind.cut(module, sides.get("in", []), sides.get("out", []))
        except ValueError as error:
            raise ValueError(f"{name!r}: {error}") from error
    return smaller


@contextmanager
def masking(model: nn.Module, cuts: Mapping[str, Mapping[Side, list[int]]]) -> Iterator[nn.Module]:
    """``model`` with the cut channels ignored, inside only.

    The weights of every layer that mixes channels are zero for them; they are as before at the end.
    """
    before: list[tuple[Tensor, Tensor]] = []
    modules = dict(model.named_modules())
    try:
        for name, sides in cuts.items():
            module, kind = modules[name], kind_of(modules[name])
            if kind is not None and kind.mixes(module):
                weight = kind.weight(module)
                before.append((weight, weight.detach().clone()))
                gone = torch.tensor(sides.get("in", []), dtype=torch.long, device=weight.device)
                with torch.no_grad():
                    weight.index_fill_(1, gone, 0.0)
        yield model
    finally:
        with torch.no_grad():
            for weight, value in before:
                weight.copy_(value)


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` in the place of ``model``'s submodule ``name``, under every name it has."""
    old = model.get_submodule(name)
    for parent in list(model.modules()):
        for attribute, child in list(parent._modules.items()):
            if child is old:
                parent._modules[attribute] = module
