"""Multiply-accumulates of one operation, by PyTorch's own counter.

``torch.utils.flop_counter`` has no formulas for the fused operators that a CPU runs for attention
and LSTMs, and counts nothing there. They are registered here, the way that PyTorch provides for it,
so `FlopCounterMode` in this process counts whole networks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, register_flop_formula

from amc.network.layers import storage_key, tensors_in

aten = torch.ops.aten
Shape = tuple[int, ...]


def _attention(query: Shape, key: Shape, value: Shape, *args: Any, **kwargs: Any) -> int:
    """Two products of (batch, heads, length, width)."""
    *outer, length, width = query
    return 2 * prod(outer) * length * key[-2] * (width + value[-1])


def _multi_head(
    query: Shape,
    key: Shape,
    value: Shape,
    width: int,
    heads: int,
    inward: Shape,
    inward_bias: Shape,
    outward: Shape,
    *args: Any,
    **kwargs: Any,
) -> int:
    """Projections inwards and outwards, and attention between them; (batch, length, width)."""
    images, length, _ = query
    projections: int = prod(inward) + prod(outward)
    return int(2 * images * length * (projections + 2 * key[1] * width))


def _encoder_layer(src: Shape, width: int, heads: int, *args: Any, **kwargs: Any) -> int:
    """Multi-head attention, and two linear layers at every position."""
    inward, outward, first, second = args[0], args[2], args[11], args[13]
    attention = _multi_head(src, src, src, width, heads, inward, (), outward)
    return int(attention + 2 * src[0] * src[1] * (prod(first) + prod(second)))


def _recurrent(x: Shape, inward: Shape, hidden: Shape, *args: Any, **kwargs: Any) -> int:
    """Both matrices of all gates at every step; (steps, batch, width)."""
    return 2 * x[0] * x[1] * (prod(inward) + prod(hidden))


_FORMULAS: dict[str, Callable[..., int]] = {
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_fused_attention_overrideable": _attention,
    "_native_multi_head_attention": _multi_head,
    "_transformer_encoder_layer_fwd": _encoder_layer,
    "mkldnn_rnn_layer": _recurrent,
}

for _name, _formula in _FORMULAS.items():
    _packet = getattr(aten, _name, None)
    if _packet is not None and _packet not in flop_registry:  # a later PyTorch may have its own
        register_flop_formula(_packet)(_formula)


def has_formula(func: Any) -> bool:
    """Whether the work of an operation is counted."""
    return func.overloadpacket in flop_registry


@cache
def is_composite(func: Any) -> bool:
    """Whether an operation is not counted, but made of others that may be."""
    composite = torch._C.DispatchKey.CompositeImplicitAutograd
    return not has_formula(func) and bool(func.has_kernel_for_dispatch_key(composite))


def macs_of(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    """Of one call of an operation; 1 MAC = 2 FLOPs, nothing for additions alone."""
    formula = flop_registry.get(func.overloadpacket)
    return 0 if formula is None else int(formula(*args, **(kwargs or {}), out_val=result)) // 2


_FREE = frozenset(
    """embedding native_layer_norm native_group_norm native_batch_norm _native_batch_norm_legit
    _native_batch_norm_legit_no_training cudnn_batch_norm batch_norm_elemt _prelu_kernel
    _fused_rms_norm cat stack index index_select gather clone copy_ _to_copy _unsafe_view roll flip
    constant_pad_nd repeat repeat_interleave sum mean amax amin var var_mean std norm
    linalg_vector_norm _weight_norm_interface _softmax upsample_bilinear2d upsample_bicubic2d
    upsample_nearest2d unbind split split_with_sizes unsafe_split slice_scatter select_scatter fill_
    masked_fill where as_strided contiguous reshape _reshape_alias tril triu topk sort max min
    argmax zeros_like ones_like empty_like full_like new_zeros _local_scalar_dense""".split()  # noqa: SIM905
)
"""Operations on weights that multiply and accumulate nothing."""
_BLIND = ("_fft_", "_cdist_forward", "linalg_", "_trilinear", "grid_sampler")
"""Operations on activations that do much work which nothing counts."""


def is_uncounted(func: Any, args: Any, weights: set[int]) -> bool:
    """Whether an operation does work that nothing counts: one of a kind that PyTorch does not
    know, or one that reads a matrix of weights (by their storages) and has no formula.
    """
    name = func.overloadpacket.__name__
    if has_formula(func) or name.removesuffix("_") in _FREE or name in _FREE:
        return False
    if func.namespace not in ("aten", "prim", "prims"):
        return True
    if torch.Tag.pointwise in func.tags or func.is_view:
        return False
    if name.startswith(_BLIND):
        return True
    return any(storage_key(tensor) in weights for tensor in tensors_in(args) if tensor.dim() > 1)
