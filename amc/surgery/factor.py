"""Make one layer into several of low rank: which parts it becomes, on paper and in metal.

With c input and n output channels, a kernel of k x l, and ranks r:

- svd      k x l to r channels; 1 x 1 to n (Denton et al., NeurIPS 2014; Kim's first convolution)
- tucker   1 x 1 to r_in; k x l to r_out; 1 x 1 to n (Kim et al., ICLR 2016, section 3.1)
- cp       1 x 1 to r; k x 1 depthwise; 1 x l depthwise; 1 x 1 to n (Lebedev et al., ICLR 2015)
- spatial  k x 1 to r channels; 1 x l to n (Jaderberg et al., BMVC 2014)

The parts are plain ``nn.Conv2d`` and ``nn.Linear`` in an ``nn.Sequential``; only the last has a
bias. `factorise` takes the factors from the weights alone, `amc.repair.factors` from data.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from amc.errors import UserError
from amc.network.layers import LayerSpec
from amc.randomness import own_randomness

Method = Literal["svd", "tucker", "cp", "spatial"]
METHODS: tuple[Method, ...] = get_args(Method)
Ranks = tuple[int, ...]
"""One rank, or for Tucker two: of the input and of the output channels."""
Plan = dict[str, tuple[Method, Ranks]]
"""layer -> how it is factorised; a layer that is missing stays whole."""


@dataclass(frozen=True)
class Part:
    """One layer of a factorised one."""

    in_channels: int
    out_channels: int
    axes: tuple[bool, bool] = (False, False)  # of the kernel (height, width), which it has
    depthwise: bool = False

    def along(self, values: tuple[int, ...], others: tuple[int, ...]) -> tuple[int, int]:
        """``values`` on the axes that it has, ``others`` on the rest."""
        height, width = self.axes
        return values[0] if height else others[0], values[1] if width else others[1]


def parts_of(method: Method, inputs: int, outputs: int, ranks: Ranks) -> tuple[Part, ...]:
    """The parts of a layer, in order. A Tucker rank that is the whole width needs no 1 x 1."""
    if method == "tucker":
        inner, outer = ranks
        first = [Part(inputs, inner)] if inner < inputs else []
        last = [Part(outer, outputs)] if outer < outputs else []
        return (*first, Part(inner, outer, (True, True)), *last)
    (rank,) = ranks
    if method == "svd":
        return Part(inputs, rank, (True, True)), Part(rank, outputs)
    if method == "spatial":
        return Part(inputs, rank, (True, False)), Part(rank, outputs, (False, True))
    down, across = (Part(rank, rank, axes, True) for axes in ((True, False), (False, True)))
    return Part(inputs, rank), down, across, Part(rank, outputs)


def full_ranks(method: Method, layer: LayerSpec) -> Ranks:
    """The ranks with which nothing is lost."""
    c, n, (k, m) = layer.in_channels, layer.out_channels, layer.kernel
    if method == "tucker":
        return c, n
    if method == "svd":
        return (min(c * k * m, n),)
    return (min(c * k, n * m),) if method == "spatial" else (c * n * k * m // max(c, n, k, m),)


@lru_cache(maxsize=20_000)  # a walk asks for the same few again and again
def factored(layer: LayerSpec, method: Method, ranks: Ranks) -> tuple[LayerSpec, ...]:
    """The layers that take the place of ``layer``, on paper."""
    parts = parts_of(method, layer.in_channels, layer.out_channels, ranks)
    specs: list[LayerSpec] = []
    size = layer.input_size
    for part in parts:
        spec = replace(
            layer,
            name=f"{layer.name}.{len(specs)}",
            in_channels=part.in_channels,
            out_channels=part.out_channels,
            kernel=part.along(layer.kernel, (1, 1)),
            stride=part.along(layer.stride, (1, 1)),
            groups=part.in_channels if part.depthwise else 1,
            input_size=size,
            output_size=part.along(layer.output_size, size),
        )
        if part is not parts[-1]:
            spec = replace(spec, per_channel_params=0, followed_by="")
        specs.append(spec)
        size = spec.output_size
    return tuple(specs)


@lru_cache(maxsize=20_000)
def affordable(layer: LayerSpec, method: Method, ranks: Ranks, step: int = 1) -> Ranks | None:
    """The ranks, cut to where each factor still saves both MACs and parameters; None where none
    does: there the layer stays whole.

    It never falls as a rank or a width of the layer rises, so neither does the cost. A rank that is
    whole stays so; one that is cut is a multiple of ``step``.
    """
    whole = full_ranks(method, layer)
    if ranks == whole:
        return None
    if method != "tucker":
        limit = _break_even(
            whole[0], step, lambda rank: _saves(factored(layer, method, (rank,)), (layer,))
        )
        return (min(ranks[0], limit),) if limit else None

    def cut(mode: int, rank: int, other: int) -> int:
        """One rank, cut to where its 1 x 1 saves beside the other rank; whole where none does."""

        def parts(rank: int) -> tuple[LayerSpec, ...]:
            return factored(layer, method, (rank, other) if mode == 0 else (other, rank))

        full = whole[mode]
        if rank == full:
            return full
        return min(rank, _break_even(full, step, lambda r: _saves(parts(r), parts(full)))) or full

    inner, outer = cut(0, ranks[0], whole[1]), cut(1, ranks[1], whole[0])
    inner, outer = cut(0, inner, outer), cut(1, outer, inner)
    return None if (inner, outer) == whole else (inner, outer)


def _break_even(whole: int, step: int, saves: Callable[[int], bool]) -> int:
    """The largest multiple of ``step`` below ``whole`` that saves; 0 where none does."""
    multiples = range(step, whole, step)
    return step * bisect_left(multiples, True, key=lambda rank: not saves(rank))


def _saves(new: tuple[LayerSpec, ...], old: tuple[LayerSpec, ...]) -> bool:
    return all(
        sum(getattr(layer, metric) for layer in new) < sum(getattr(layer, metric) for layer in old)
        for metric in ("macs", "params")
    )


def unfoldings(weight: Tensor, method: Method) -> tuple[Tensor, ...]:
    """The matrices whose ranks the ranks of a factorised weight are, in their order.

    Args:
        weight: (out, in) or (out, in, height, width).
        method: how it is factorised.

    Raises:
        UserError: a CP rank is of no matrix.
    """
    if method == "svd":
        return (weight.flatten(1),)
    if method == "tucker":
        return weight.transpose(0, 1).flatten(1), weight.flatten(1)
    if method == "spatial":
        n, c, k, m = weight.shape
        return (weight.permute(0, 3, 1, 2).reshape(n * m, c * k),)
    raise UserError("a CP rank is not the rank of a matrix: it cannot be estimated from one")


def last_part(modules: Mapping[str, nn.Module], layer: str) -> str:
    """The name of the module that computes a layer's output: the layer, or its last part where it
    is factorised.
    """
    module = modules.get(layer)
    return f"{layer}.{len(module) - 1}" if isinstance(module, nn.Sequential) else layer


@own_randomness()  # what the layers draw, on the CPU, is replaced
def structure(module: nn.Module, method: Method, ranks: Ranks) -> nn.Sequential:
    """The parts of a layer as modules, their weights not yet set."""
    if isinstance(module, nn.Linear):
        parts = parts_of(method, module.in_features, module.out_features, ranks)
        layers: list[nn.Module] = [
            nn.Linear(part.in_channels, part.out_channels, bias=False, device="cpu")
            for part in parts
        ]
    else:
        assert isinstance(module, nn.Conv2d)
        parts = parts_of(method, module.in_channels, module.out_channels, ranks)
        layers = [_convolution(module, part) for part in parts]
    if module.bias is not None:
        layers[-1].bias = nn.Parameter(module.bias.detach().clone())
    return nn.Sequential(*layers).to(module.weight.device, module.weight.dtype)


def _convolution(conv: nn.Conv2d, part: Part) -> nn.Conv2d:
    """A part, with the kernel, stride, dilation and padding of the axes that it has."""
    padding: Any = conv.padding
    return nn.Conv2d(
        part.in_channels,
        part.out_channels,
        part.along(conv.kernel_size, (1, 1)),
        part.along(conv.stride, (1, 1)),
        padding if isinstance(padding, str) else part.along(padding, (0, 0)),
        part.along(conv.dilation, (1, 1)),
        part.in_channels if part.depthwise else 1,
        bias=False,
        padding_mode=conv.padding_mode,
        device="cpu",
    )


def factorise(module: nn.Module, method: Method, ranks: Ranks) -> nn.Sequential:
    """The parts of a layer that are nearest to its weights; they share its scale, so that they can
    be trained. ``module`` is not modified.

    Args:
        module: an ungrouped ``nn.Conv2d``, or an ``nn.Linear``.
        method: see this module.
        ranks: one, or for Tucker two.
    """
    parts = structure(module, method, ranks)
    assert isinstance(module, (nn.Conv2d, nn.Linear))
    weight = module.weight.detach().double()
    kernel = weight if weight.dim() == 4 else weight[:, :, None, None]
    for part, value in zip(parts, _FACTORS[method](kernel, ranks), strict=True):
        assert isinstance(part, (nn.Conv2d, nn.Linear))
        with torch.no_grad():
            part.weight.copy_(value.reshape(part.weight.shape))
    return parts


def _svd(kernel: Tensor, ranks: Ranks) -> list[Tensor]:
    left, right = _low_rank(unfoldings(kernel, "svd")[0], ranks[0])
    return [right.reshape(-1, *kernel.shape[1:]), left[:, :, None, None]]


def _spatial(kernel: Tensor, ranks: Ranks) -> list[Tensor]:
    n, c, k, m = kernel.shape
    left, right = _low_rank(unfoldings(kernel, "spatial")[0], ranks[0])
    return [right.reshape(-1, c, k, 1), left.reshape(n, m, -1).transpose(1, 2)[:, :, None]]


def _low_rank(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The nearest product (rows, rank) times (rank, columns); its scale is shared evenly."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * v[:rank]


def _tucker(kernel: Tensor, ranks: Ranks) -> list[Tensor]:
    from tensorly.decomposition import partial_tucker

    n, c, *_ = kernel.shape
    inner, outer = ranks
    modes = [mode for mode, whole in ((0, outer == n), (1, inner == c)) if not whole]
    wanted = [(outer, inner)[mode] for mode in modes]
    (core, factors), _ = partial_tucker(kernel.cpu().numpy(), rank=wanted, modes=modes, init="svd")
    core = torch.from_numpy(core)
    share = float(core.norm() / max(wanted, default=1) ** 0.5) ** (1 / (1 + len(modes))) or 1.0
    by_mode = {mode: share * torch.from_numpy(f) for mode, f in zip(modes, factors, strict=True)}
    first = [by_mode[1].T[:, :, None, None]] if 1 in by_mode else []
    last = [by_mode[0][:, :, None, None]] if 0 in by_mode else []
    return [*first, core / share ** len(modes), *last]


def _cp(kernel: Tensor, ranks: Ranks) -> list[Tensor]:
    from tensorly.decomposition import parafac

    weights, factors = parafac(
        kernel.cpu().numpy(), ranks[0], n_iter_max=25, init="random", tol=1e-6, random_state=0
    )
    values = [torch.from_numpy(factor) for factor in factors]
    norms = torch.stack([value.norm(dim=0) for value in values]).clamp_min(1e-12)
    share = (norms.prod(0) * torch.from_numpy(weights)) ** (1 / len(values))
    last, first, down, across = (v * share / n for v, n in zip(values, norms, strict=True))
    return [
        first.T[:, :, None, None],
        down.T[:, None, :, None],
        across.T[:, None, None, :],
        last[:, :, None, None],
    ]


_FACTORS: dict[Method, Callable[[Tensor, Ranks], list[Tensor]]] = {
    "svd": _svd,
    "tucker": _tucker,
    "cp": _cp,
    "spatial": _spatial,
}
