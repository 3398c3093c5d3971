"""Make a network physically smaller: remove channels from its layers.

`Cuts` is plain data (JSON), so a network can be rebuilt from its architecture and its cuts alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from amc.network.groups import ChannelGroup, Side
from amc.network.layers import LinkedModule, is_channelwise, is_mixer

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
    smaller = copy.deepcopy(model)
    modules = dict(smaller.named_modules())
    for name, sides in cuts.items():
        if name not in modules:
            raise ValueError(f"there is no layer {name!r} to cut")
        _cut_module(name, modules[name], sides.get("in", []), sides.get("out", []))
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
            module = modules[name]
            if is_mixer(module):
                assert isinstance(module, (nn.Conv2d, nn.Linear))
                before.append((module.weight, module.weight.detach().clone()))
                with torch.no_grad():
                    module.weight[:, sides.get("in", [])] = 0
        yield model
    finally:
        with torch.no_grad():
            for weight, value in before:
                weight.copy_(value)


def kept(width: int, removed: Iterable[int]) -> Tensor:
    """Ascending indices of the channels that stay. Shape (width - removed,)."""
    stay = torch.ones(width, dtype=torch.bool)
    stay[list(removed)] = False
    return stay.nonzero().flatten()


def _cut_module(name: str, module: nn.Module, gone_in: list[int], gone_out: list[int]) -> None:
    if isinstance(module, nn.Conv2d):
        _cut_conv(name, module, gone_in, gone_out)
    elif isinstance(module, nn.Linear):
        rows, columns = kept(module.out_features, gone_out), kept(module.in_features, gone_in)
        _slice(module, rows, columns)
        module.out_features, module.in_features = len(rows), len(columns)
    elif is_channelwise(module):
        _cut_channelwise(module, gone_out)
    elif isinstance(module, LinkedModule):
        module.cut(gone_in, gone_out)
    else:
        raise ValueError(f"{name!r} is a {type(module).__name__}, which cannot be cut")


def _cut_conv(name: str, conv: nn.Conv2d, gone_in: list[int], gone_out: list[int]) -> None:
    rows, columns = kept(conv.out_channels, gone_out), kept(conv.in_channels, gone_in)
    if conv.groups == 1:
        _slice(conv, rows, columns)
    else:
        width_in, width_out = conv.in_channels // conv.groups, conv.out_channels // conv.groups
        lost = {channel // width_in for channel in gone_in}
        if len(lost) * width_in != len(gone_in) or len(lost) * width_out != len(gone_out):
            raise ValueError(f"{name!r} is grouped and loses whole groups only")
        _slice(conv, rows, None)
        conv.groups -= len(lost)
    conv.out_channels, conv.in_channels = len(rows), len(columns)


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` in the place of ``model``'s submodule ``name``."""
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module)


def _slice(module: nn.Conv2d | nn.Linear, rows: Tensor, columns: Tensor | None) -> None:
    weight = module.weight.detach()[rows]
    if columns is not None:
        weight = weight[:, columns]
    module.weight = nn.Parameter(weight.contiguous(), requires_grad=module.weight.requires_grad)
    if module.bias is not None:
        module.bias = nn.Parameter(
            module.bias.detach()[rows].clone(), requires_grad=module.bias.requires_grad
        )


def _cut_channelwise(module: nn.Module, gone: list[int]) -> None:
    width = next((t.shape[0] for t in [*module.parameters(), *module.buffers()] if t.dim() == 1), 0)
    rows = kept(width, gone)
    for name, parameter in list(module.named_parameters(recurse=False)):
        sliced = nn.Parameter(
            parameter.detach()[rows].clone(), requires_grad=parameter.requires_grad
        )
        setattr(module, name, sliced)
    for name, buffer in list(module.named_buffers(recurse=False)):
        if buffer.dim() == 1:
            setattr(module, name, buffer[rows].clone())
    for attribute in ("num_features", "num_parameters"):
        if hasattr(module, attribute):
            setattr(module, attribute, len(rows))
