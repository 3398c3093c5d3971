"""What is cut of a module besides its channels: parameters and buffers of its own that hold a value
for each channel (layer scales, class tokens, tables of positions), and numbers that count channels.

A *side* of a module says which: "in" and "out" are its channels, ``gamma:0`` is the first dimension
of its tensor ``gamma``, ``.num_heads`` is its whole number ``num_heads``.
"""

from __future__ import annotations

from torch import Tensor, nn

from amc.network.kinds.base import kept

Side = str


def side_of_tensor(name: str, dim: int) -> Side:
    """A dimension of a parameter or buffer of a module."""
    return f"{name}:{dim}"


def side_of_number(name: str) -> Side:
    """A whole number of a module."""
    return f".{name}"


def cut_part(module: nn.Module, side: Side, gone: list[int]) -> None:
    """Remove what a side other than "in" and "out" names, in place.

    Raises:
        ValueError: the module has no such thing.
    """
    if side.startswith("."):
        before = getattr(module, side[1:], None)
        if type(before) is not int or before < len(gone):
            raise ValueError(f"it has no whole number {side[1:]!r} that could fall")
        setattr(module, side[1:], before - len(gone))
        return
    name, _, place = side.rpartition(":")
    tensor, dim = getattr(module, name, None), int(place)
    if not isinstance(tensor, Tensor) or tensor.dim() <= dim:
        raise ValueError(f"it has no tensor {name!r} with a dimension {dim}")
    rows = kept(tensor.shape[dim], gone).to(tensor.device)
    chosen = tensor.detach().index_select(dim, rows)
    if isinstance(tensor, nn.Parameter):
        chosen = nn.Parameter(chosen, requires_grad=tensor.requires_grad)
    setattr(module, name, chosen)
