"""Parameters and buffers that hold a value for each channel, found by asking: which of their entries
change which channels?

Such a tensor belongs to no layer that surgery knows: a layer scale, a class token, a table of
positions, a bias a head, a BatchNorm written by hand. A gradient answers for all entries of all
tensors at once: of the sum of those channels whose atom (+ 1) has bit ``b`` set, and of those where
it is not. An entry along a dimension of a tensor goes with an atom when it touches channels of this
atom alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from amc.errors import UserError
from amc.network.decoding import sources_of
from amc.network.kinds.parts import Side, side_of_tensor
from amc.network.layers import IntArray
from amc.network.probe import BoolArray, Probe
from amc.network.sites import Site

_ROUNDS = 2  # with other random outputs; in one of them all are positive
_LEAST = 1e-5  # of a tensor's largest gradient: smaller ones are rounding

Atom = dict[tuple[str, Side], list[int]]
"""(module, side) -> its entries that live or die together."""


def attach(probe: Probe, atoms: Sequence[Atom]) -> None:
    """Add to atoms the entries of tensors that go with them.

    Args:
        probe: installed.
        atoms: of layers; those that may be cut.
    """
    tensors = dict(_tensors(probe))
    codes = _codes(probe, atoms)
    if not tensors or not codes:
        return
    bits = len(atoms).bit_length()
    touched = _touched(probe, list(tensors.values()), codes, bits)
    for (owner, name), dims in zip(tensors, touched, strict=True):
        for dim, seen in enumerate(dims):
            sources, alone = sources_of(seen[:bits], seen[bits : 2 * bits])
            reached: BoolArray = seen.any(axis=0)
            clear = alone & ~seen[-1] & (sources < len(atoms))
            if len(reached) == 1 or (reached & ~clear).any():
                continue
            for entry in np.flatnonzero(reached):
                side = side_of_tensor(name, dim)
                atoms[sources[entry]].setdefault((owner, side), []).append(int(entry))


def _tensors(probe: Probe) -> Iterator[tuple[tuple[str, str], Tensor]]:
    """All that is of no layer which surgery knows."""
    for owner, module in probe.network.model.named_modules():
        if owner in probe.sites:
            continue
        own = [*module._parameters.items(), *module._buffers.items()]
        for name, tensor in own:
            if tensor is not None and tensor.is_floating_point() and tensor.numel() > 1:
                yield (owner, name), tensor


def _codes(probe: Probe, atoms: Sequence[Atom]) -> dict[str, IntArray]:
    """site -> of each channel that it reads the number of its atom + 1; 0: none."""
    codes = {
        name: np.zeros(site.out_channels if site.channelwise else site.in_channels, np.int64)
        for name, site in probe.sites.items()
    }
    for number, atom in enumerate(atoms):
        for (name, side), channels in atom.items():
            if name in codes and side == ("out" if probe.sites[name].channelwise else "in"):
                codes[name][channels] = number + 1
    return codes


def _touched(
    probe: Probe, tensors: list[Tensor], codes: Mapping[str, IntArray], bits: int
) -> list[list[BoolArray]]:
    """For each tensor and dimension (2 * bits + 1, size): whether an entry changes a channel whose
    atom has a bit, has it not, or that has no atom.
    """
    found = [[np.zeros((2 * bits + 1, size), bool) for size in t.shape] for t in tensors]
    wanted = [tensor.requires_grad for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.requires_grad_(True)
        for round_ in range(_ROUNDS):
            sums, atoms = _sums(probe, codes, round_)
            if not sums.requires_grad:
                return found
            flags = [(atoms >> bit) & 1 == 1 for bit in range(bits)]
            flags += [~one & (atoms > 0) for one in flags] + [atoms == 0]
            for row, flag in enumerate(flags):
                weights = torch.from_numpy(flag).to(sums)
                gradients = torch.autograd.grad(
                    sums, tensors, weights, retain_graph=True, allow_unused=True
                )
                for dims, gradient in zip(found, gradients, strict=True):
                    if gradient is not None:
                        _note(dims, row, gradient.abs())
    except (UserError, RuntimeError):  # what cannot be differentiated is not decided
        return found
    finally:
        for tensor, before in zip(tensors, wanted, strict=True):
            tensor.requires_grad_(before)
    return found


def _note(dims: list[BoolArray], row: int, size: Tensor) -> None:
    """Note along every dimension of a tensor which entries have a gradient."""
    for dim, seen in enumerate(dims):
        others = [d for d in range(size.dim()) if d != dim]
        largest = size.amax(others) if others else size
        large = largest > _LEAST * size.max().clamp_min(1e-30)
        seen[row] |= large.cpu().numpy()


def _sums(probe: Probe, codes: Mapping[str, IntArray], round_: int) -> tuple[Tensor, IntArray]:
    """A random sum over each channel that any layer reads, and the numbers of their atoms."""
    sums: list[Tensor] = []
    atoms: list[IntArray] = []
    calls: dict[str, int] = {}

    def handler(site: Site, x: Tensor) -> Tensor:
        calls[site.name] = call = calls.get(site.name, -1) + 1
        generator = torch.Generator().manual_seed(round_)
        weights = torch.randn(x.shape, generator=generator, device="cpu").to(x)
        sums.append((x * weights).movedim(site.dim, 0).flatten(1).sum(1))
        atoms.append(codes[site.name])
        if site.channelwise:
            return x.clone()
        return probe.random(site, site.shapes[call], None, 1, round_ * 64 + call).to(x)

    probe.handler = handler
    with torch.enable_grad():
        probe.run(1)
        return torch.cat(sums), np.concatenate(atoms)
