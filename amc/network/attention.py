"""Attention that can lose heads: modules that compute what those of users do, but consist of linear
layers that are called, and take the number of heads and their width from attributes of their own,
``heads`` and ``head_dim``, not from the width of their input.

The inner width is ``heads * head_dim``, head after head; a projection to queries, keys and values
at once has these one after the other, (3, heads, head_dim). `amc.network.rewriting` puts these
modules into a network.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
    is_causal: bool = False,
    need_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Scaled dot-product attention over (..., heads, length, head_dim).

    Args:
        query: what asks.
        key: what is asked.
        value: what is told.
        mask: added to the products; it broadcasts to (..., heads, length, length of the keys).
        dropout: of the weights.
        scale: of the products; None: head_dim ** -0.5.
        is_causal: whether nothing is asked of what comes later (without weights only).
        need_weights: whether the weights are returned.

    Returns:
        what each query is told, and the weights.
    """
    if not need_weights:
        done = F.scaled_dot_product_attention(
            query, key, value, mask, dropout, is_causal, scale=scale
        )
        return done, None
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    products = (query * scale) @ key.transpose(-2, -1)
    weights = (products if mask is None else products + mask).softmax(-1)
    weights = F.dropout(weights, dropout, training=dropout > 0)
    return weights @ value, weights


def in_heads(module: Any, x: Tensor) -> Tensor:
    """(images, length, inner) as (images, heads, length, head_dim), by the module's numbers."""
    return x.reshape(*x.shape[:2], module.heads, module.head_dim).transpose(1, 2)


def of_pairs(table: Tensor, index: Tensor) -> Tensor:
    """A table's rows (rows, heads) for every pair of positions: (1, heads, length, length)."""
    length = math.isqrt(index.numel())
    return table[index.flatten()].reshape(length, length, -1).permute(2, 0, 1).unsqueeze(0)


class MultiheadAttention(nn.Module):
    """``nn.MultiheadAttention`` with three projections inwards; called as that is, and its state
    dict is taken too.
    """

    in_proj_weight = None
    in_proj_bias = None  # so nn.TransformerEncoderLayer runs its layers, not one operator for all

    @torch.enable_grad()
    def __init__(self, source: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim, self.kdim, self.vdim = source.embed_dim, source.kdim, source.vdim
        self.heads: int = source.num_heads
        self.head_dim: int = source.head_dim
        self.batch_first, self.dropout = source.batch_first, source.dropout
        weights: Any = (source.q_proj_weight, source.k_proj_weight, source.v_proj_weight)
        if source.in_proj_weight is not None:
            weights = source.in_proj_weight.chunk(3)
        packed = source.in_proj_bias
        biases = (None, None, None) if packed is None else packed.chunk(3)
        self.q_proj, self.k_proj, self.v_proj = map(_linear, weights, biases)
        self.out_proj = _linear(source.out_proj.weight, source.out_proj.bias)
        self.train(source.training)

    @property
    def num_heads(self) -> int:
        """As ``nn.MultiheadAttention`` calls it."""
        return self.heads

    def original(self) -> nn.MultiheadAttention:
        """The module of torch's that a whole one computes as."""
        inward = (self.q_proj, self.k_proj, self.v_proj)
        like = self.out_proj.weight
        source = nn.MultiheadAttention(
            *(self.embed_dim, self.heads, self.dropout, self.out_proj.bias is not None),
            kdim=self.kdim,
            vdim=self.vdim,
            batch_first=self.batch_first,
            device="meta",
            dtype=like.dtype,
        ).to_empty(device=like.device)
        state = {f"out_proj.{key}": value for key, value in self.out_proj.state_dict().items()}
        weights = [layer.weight.detach() for layer in inward]
        if source.in_proj_weight is not None:
            state["in_proj_weight"] = torch.cat(weights)
        else:
            state |= zip(("q_proj_weight", "k_proj_weight", "v_proj_weight"), weights, strict=True)
        if source.in_proj_bias is not None:
            state["in_proj_bias"] = torch.cat([layer.bias.detach() for layer in inward])
        source.load_state_dict(state)
        return source.train(self.training)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """Take the keys of ``nn.MultiheadAttention`` too."""
        names = ("q_proj", "k_proj", "v_proj")
        for part in ("weight", "bias"):
            packed = state_dict.pop(f"{prefix}in_proj_{part}", None)
            parts = () if packed is None else packed.chunk(3)
            for name, value in zip(names, parts, strict=False):
                state_dict[f"{prefix}{name}.{part}"] = value
        for name in names:
            if (key := f"{prefix}{name}_weight") in state_dict:
                state_dict[f"{prefix}{name}.weight"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As ``nn.MultiheadAttention`` does."""
        is_batched = query.dim() == 3
        given = query, key, value
        if not is_batched:
            query, key, value = (tensor.unsqueeze(0) for tensor in given)
        elif not self.batch_first:
            query, key, value = (tensor.transpose(0, 1) for tensor in given)
        if is_causal and attn_mask is None:
            raise ValueError("is_causal is a hint about attn_mask: give that too")
        is_causal = is_causal and key_padding_mask is None and not need_weights
        mask = None if is_causal else self._mask(query, attn_mask, key_padding_mask)
        dropout = self.dropout if self.training else 0.0
        done, weights = attend(
            in_heads(self, self.q_proj(query)),
            in_heads(self, self.k_proj(key)),
            in_heads(self, self.v_proj(value)),
            *(mask, dropout, None, is_causal, need_weights),
        )
        output = self.out_proj(done.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not is_batched:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        return output if self.batch_first else output.transpose(0, 1), weights

    def _mask(self, query: Tensor, mask: Tensor | None, padding: Tensor | None) -> Tensor | None:
        """What is added to the products, for (images, heads, length, length of the keys)."""
        mask, padding = (_additive(one, query.dtype) for one in (mask, padding))
        if mask is not None and mask.dim() == 3:
            mask = mask.unflatten(0, (-1, self.heads))
        if padding is None:
            return mask
        padding = padding.reshape(query.shape[0], 1, 1, padding.shape[-1])
        return padding if mask is None else mask + padding


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer with weights of its own."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None:
            own = value.detach().clone(memory_format=torch.contiguous_format)
            setattr(layer, name, nn.Parameter(own, requires_grad=value.requires_grad))
    return layer


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask as it is added; of a boolean one, True is what is not looked at."""
    if mask is None or mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))
