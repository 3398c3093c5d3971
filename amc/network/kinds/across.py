"""Normalisations whose statistics are over several channels: LayerNorm, RMSNorm, GroupNorm, global
response normalisation.

A channel that is cut says nothing: it is read as the mean of those that stay (as zero, where no
mean is taken off). With ``r`` the part of the channels that stay, their variance over all is ``r``
times that over those that stay, so the same normalisation over fewer channels, its weights divided
by ``sqrt(r)`` and its epsilon by ``r``, is exactly the original with such an input.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from amc.network.kinds.base import Kind, has_own_weight, kept, own_numel, slice_own

_CHANNELS_AT = "amc_channels_at"  # noted on a network of ours, so that its copies know it too


class Across(Kind):
    """``nn.LayerNorm`` and ``nn.RMSNorm`` over the channels, first or last; modules that are built
    like one (``normalized_shape``, ``eps``, ``weight``).
    """

    name = "channelwise"

    def matches(self, module: nn.Module) -> bool:
        shape: Any = getattr(module, "normalized_shape", None)
        if not isinstance(shape, tuple | list) or len(shape) != 1 or not hasattr(module, "eps"):
            return False
        own = has_own_weight(module) and not hasattr(module, "parametrizations")
        return own and tuple(module.weight.shape) == tuple(shape)  # type: ignore[union-attr]

    def dim(self, module: nn.Module) -> int:
        """Asked: at a single place, who is read with whom."""
        if type(module) in (nn.LayerNorm, nn.RMSNorm):
            return -1
        if _CHANNELS_AT not in vars(module):
            setattr(module, _CHANNELS_AT, 1 if _is_channels_first(module) else -1)
        return int(vars(module)[_CHANNELS_AT])

    def widths(self, module: nn.Module) -> tuple[int, int]:
        width = len(_weight(module))
        return width, width

    def facts(self, module: nn.Module) -> dict[str, Any]:
        return {"per_channel_params": own_numel(module) // self.widths(module)[0]}

    def masked(
        self, module: nn.Module, x: Tensor, gone_in: list[int], gone_out: list[int]
    ) -> Tensor:
        dim = self.dim(module)
        gone = torch.tensor(gone_out, dtype=torch.long, device=x.device)
        if not _takes_means(module):
            return x.index_fill(dim, gone, 0.0)
        stay = kept(x.shape[dim], gone_out).to(x.device)
        mean = x.index_select(dim, stay).mean(dim, keepdim=True)
        shape = [len(gone) if d == dim % x.dim() else -1 for d in range(x.dim())]
        return x.index_copy(dim, gone, mean.expand(shape))

    def cut(self, module: nn.Module, gone_in: list[int], gone_out: list[int]) -> None:
        width = self.widths(module)[0]
        rows = kept(width, gone_out)
        slice_own(module, rows, width)
        _rescale(module, len(rows) / width)
        shape: Any = module.normalized_shape
        module.normalized_shape = type(shape)((len(rows),))


class GroupNorm(Kind):
    """``nn.GroupNorm``: loses whole groups where these are many, else equal counts of each."""

    name = "channelwise"

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, nn.GroupNorm) and has_own_weight(module)

    def widths(self, module: nn.Module) -> tuple[int, int]:
        assert isinstance(module, nn.GroupNorm)
        return module.num_channels, module.num_channels

    def facts(self, module: nn.Module) -> dict[str, Any]:
        return {"per_channel_params": own_numel(module) // self.widths(module)[0]}

    def ties(self, module: nn.Module) -> list[tuple[int, int]]:
        assert isinstance(module, nn.GroupNorm)
        groups, each = module.num_groups, module.num_channels // module.num_groups
        if groups >= each:
            return [(g * each, g * each + i) for g in range(groups) for i in range(1, each)]
        return [(i, g * each + i) for g in range(1, groups) for i in range(each)]

    def masked(
        self, module: nn.Module, x: Tensor, gone_in: list[int], gone_out: list[int]
    ) -> Tensor:
        assert isinstance(module, nn.GroupNorm)
        alive = x.new_ones(x.shape[1]).index_fill_(
            0, torch.tensor(gone_out, dtype=torch.long, device=x.device), 0.0
        )
        parts = x.unflatten(1, (module.num_groups, -1))
        weight = alive.view(1, module.num_groups, -1, *[1] * (x.dim() - 2))
        places = math.prod(x.shape[2:])
        over = tuple(range(2, parts.dim()))
        count = (weight.sum(2, keepdim=True) * places).clamp_min(1.0)
        mean = (parts * weight).sum(over, keepdim=True) / count
        return torch.where(weight > 0, parts, mean).flatten(1, 2)

    def cut(self, module: nn.Module, gone_in: list[int], gone_out: list[int]) -> None:
        assert isinstance(module, nn.GroupNorm)
        width, groups = module.num_channels, module.num_groups
        each = width // groups
        lost = Counter(channel // each for channel in gone_out)
        if set(lost.values()) == {each}:
            groups -= len(lost)
        elif len(lost) != groups or len(set(lost.values())) != 1:
            raise ValueError("it loses whole groups, or as many channels of each")
        rows = kept(width, gone_out)
        slice_own(module, rows, width)
        module.num_channels, module.num_groups = len(rows), groups
        _rescale(module, len(rows) / groups / each)


class GlobalResponse(Kind):
    """Global response normalisation (ConvNeXt V2, Woo et al. 2023): ``x + beta + gamma * x * n``,
    ``n`` the norm of a channel over all places, over the mean of these. Told by what it computes.
    """

    name = "channelwise"

    def matches(self, module: nn.Module) -> bool:
        own = list(module.parameters(recurse=False))
        if len(own) != 2 or type(module) in _FAMILIAR or any(module.children()):
            return False
        flat = [[size for size in tensor.shape if size > 1] for tensor in own]
        if len(flat[0]) != 1 or flat[0] != flat[1]:
            return False
        if _CHANNELS_AT not in vars(module):
            setattr(module, _CHANNELS_AT, _response_dim(module))
        return vars(module)[_CHANNELS_AT] is not None

    def dim(self, module: nn.Module) -> int:
        return int(vars(module)[_CHANNELS_AT])

    def widths(self, module: nn.Module) -> tuple[int, int]:
        width = next(module.parameters(recurse=False)).numel()
        return width, width

    def facts(self, module: nn.Module) -> dict[str, Any]:
        return {"per_channel_params": 2}

    def masked(
        self, module: nn.Module, x: Tensor, gone_in: list[int], gone_out: list[int]
    ) -> Tensor:
        """The channels that go get the mean norm."""
        dim = self.dim(module) % x.dim()
        places = tuple(d for d in range(1, x.dim()) if d != dim)
        stay = kept(x.shape[dim], gone_out).to(x.device)
        gone = torch.tensor(gone_out, dtype=torch.long, device=x.device)
        norms = torch.linalg.vector_norm(x.index_select(dim, stay), dim=places, keepdim=True)
        level = norms.mean(dim, keepdim=True) / math.prod(x.shape[d] for d in places) ** 0.5
        shape = [len(gone) if d == dim else size for d, size in enumerate(x.shape)]
        return x.index_copy(dim, gone, level.expand(shape))

    def cut(self, module: nn.Module, gone_in: list[int], gone_out: list[int]) -> None:
        rows = kept(self.widths(module)[0], gone_out)
        for name, parameter in list(module.named_parameters(recurse=False)):
            dim = max(range(parameter.dim()), key=lambda d: parameter.shape[d])
            chosen = parameter.detach().index_select(dim, rows.to(parameter.device))
            setattr(module, name, nn.Parameter(chosen, requires_grad=parameter.requires_grad))


_FAMILIAR = (nn.LayerNorm, nn.GroupNorm, nn.Linear, nn.Conv2d, nn.BatchNorm2d)


def _weight(module: nn.Module) -> Tensor:
    weight: Any = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _rescale(module: nn.Module, stays: float) -> None:
    """Make good that a part ``stays`` of the channels is left of what statistics are over."""
    weight = _weight(module)
    with torch.no_grad():
        weight /= math.sqrt(stays)
    eps: Any = module.eps
    module.eps = (torch.finfo(weight.dtype).eps if eps is None else eps) / stays


def _takes_means(module: nn.Module) -> bool:
    """Whether a normalisation takes off the mean: told by adding to all channels."""
    if type(module) is nn.LayerNorm:
        return True
    if type(module) is nn.RMSNorm:
        return False
    dim = Across().dim(module)
    x = _sample(module, dim)
    one, other = _asked(module, x), _asked(module, x + 1.0)
    return one is not None and other is not None and torch.allclose(one, other, atol=1e-3)


def _sample(module: nn.Module, dim: int) -> Tensor:
    """Input of (2, 3 x 5 places), the channels at ``dim``."""
    weight = next(module.parameters(recurse=False))
    width = weight.numel()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((2, width, 3, 5), generator=generator, device="cpu")
    return x.to(weight.device, weight.dtype).movedim(1, dim)


def _asked(module: nn.Module, x: Tensor) -> Tensor | None:
    """What a module computes; None where it does not run."""
    try:
        with torch.no_grad():
            output = type(module).forward(module, x.contiguous())
    except Exception:  # a user's code may raise anything
        return None
    return output if isinstance(output, Tensor) and output.shape == x.shape else None


def _is_channels_first(module: nn.Module) -> bool:
    """Whether a change at one place of a (2, channels, 3, 5) input changes this place alone."""
    x = _sample(module, 1)
    moved = x.clone()
    moved[0, 0, 1, 2] += 1.0
    one, other = _asked(module, x), _asked(module, moved)
    if one is None or other is None:
        return False
    changed = (one != other).any(1).nonzero().tolist()
    return changed == [[0, 1, 2]]


def _response_dim(module: nn.Module) -> int | None:
    """Where a global response normalisation has its channels; None: it is something else."""
    module = copy.deepcopy(module)  # a fresh one has zeros, which tell nothing
    gamma, beta = (p.detach().flatten() for p in module.parameters(recurse=False))
    generator = torch.Generator().manual_seed(0)
    for values in (gamma, beta):
        values.copy_(torch.randn(len(values), generator=generator, device="cpu"))
    for dim in (-1, 1):
        x = _sample(module, dim)
        found = _asked(module, x)
        if found is None:
            continue
        x, found = x.movedim(dim, 1), found.movedim(dim, 1)
        norms = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True)
        scaled = x * norms / (norms.mean(1, keepdim=True) + 1e-6)
        for one, other in ((gamma, beta), (beta, gamma)):
            wanted = x + other.view(1, -1, 1, 1) + one.view(1, -1, 1, 1) * scaled
            if torch.allclose(found, wanted, rtol=1e-4, atol=1e-5):
                return dim
    return None
