"""Attention that can lose heads: modules that compute what those of users do, but consist of linear
layers that are called, and take the number of heads and their width from attributes of their own,
``heads`` and ``head_dim``, not from the width of their input.

The inner width is ``heads * head_dim``, head after head; a projection to queries, keys and values
at once has these one after the other, (3, heads, head_dim). `amc.network.rewriting` puts these
modules into a network.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS = ("num_heads", "heads", "n_heads", "n_head", "nhead", "num_attention_heads", "h")
"""How people call their number of heads."""
_OUTPUT = ("proj", "res", "out")  # in the name of a dropout that is not of the weights


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
            _in_heads(self, self.q_proj(query)),
            _in_heads(self, self.k_proj(key)),
            _in_heads(self, self.v_proj(value)),
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


class SelfAttention(nn.Module):
    """Self-attention over (images, length, channels) as people write it, with their own linear
    layers under their own names.
    """

    def __init__(self, source: nn.Module, parts: Parts, need_weights: bool = False) -> None:
        """Take over the layers of ``source``.

        Args:
            source: it is not modified.
            parts: what is what in it.
            need_weights: whether the weights are returned too.
        """
        super().__init__()
        self.heads, self.head_dim = parts.heads, parts.head_dim
        self.parts, self.need_weights = parts, need_weights
        for name in (*parts.inward, parts.outward, parts.weights_dropout, parts.dropout):
            if name:
                self.add_module(name, source.get_submodule(name))
        self.train(source.training)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """(images, length, channels) to the same shape, and the weights where they are asked."""
        parts = self.parts
        projected = [getattr(self, name)(x) for name in parts.inward]
        split = projected[0].chunk(3, -1) if len(projected) == 1 else projected
        query, key, value = (_in_heads(self, one) for one in split)
        lose = self.training and parts.weights_dropout
        dropout = getattr(self, parts.weights_dropout).p if lose else 0.0
        done, weights = attend(
            *(query, key, value, None, dropout, parts.scale), need_weights=self.need_weights
        )
        output = getattr(self, parts.outward)(done.transpose(1, 2).flatten(2))
        if parts.dropout:
            output = getattr(self, parts.dropout)(output)
        return output if weights is None else (output, weights)


@dataclass(frozen=True)
class Parts:
    """What is what in a self-attention that people have written: names of its children, and its
    numbers.
    """

    inward: tuple[str, ...]  # one linear layer, or those to queries, keys and values
    outward: str
    heads: int
    head_dim: int
    scale: float | None  # None: head_dim ** -0.5
    weights_dropout: str = ""
    dropout: str = ""

    @classmethod
    def of(cls, module: nn.Module) -> Parts | None:
        """None where it is built otherwise."""
        children = dict(module.named_children())
        linear = {name: one for name, one in children.items() if type(one) is nn.Linear}
        dropouts = [name for name, one in children.items() if type(one) is nn.Dropout]
        silent = sum(type(one) in (nn.Identity, nn.Softmax) for one in children.values())
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if own or len(linear) + len(dropouts) + silent < len(children) or len(dropouts) > 2:
            return None
        found = _projections({name: tuple(one.weight.shape) for name, one in linear.items()})
        heads = next((n for n in map(vars(module).get, HEADS) if type(n) is int), 0)
        if found is None or heads < 1:
            return None
        inner = linear[found[1]].in_features
        scale = vars(module).get("scale")
        words = {name: name.replace("dropout", "drop") for name in dropouts}
        late = [name for name in dropouts if any(word in words[name] for word in _OUTPUT)]
        early = [name for name in dropouts if name not in late]
        if inner % heads or len(early) > 1 or len(late) > 1:
            return None
        return cls(
            *(*found, heads, inner // heads, scale if isinstance(scale, float) else None),
            weights_dropout=early[0] if early else "",
            dropout=late[0] if late else "",
        )


def _projections(shapes: dict[str, tuple[int, ...]]) -> tuple[tuple[str, ...], str] | None:
    """Of linear layers (name -> shape of the weight) those inwards and that outwards."""
    if len(shapes) == 2:
        for inward, outward in permutations(shapes):
            if shapes[inward][0] == 3 * shapes[outward][1]:
                return (inward,), outward
    if len(shapes) == 4:
        names = list(shapes)
        found = []
        for letter in "qkv":  # query has no k and no v, key and k_proj no v
            found += [name for name in names if letter in name.lower()][:1]
            names = [name for name in names if name not in found]
        if len(names) == 1 and {shapes[name][0] for name in found} == {shapes[names[0]][1]}:
            return tuple(found), names[0]
    return None


def _in_heads(module: MultiheadAttention | SelfAttention, x: Tensor) -> Tensor:
    """(images, length, inner) as (images, heads, length, head_dim)."""
    return x.reshape(*x.shape[:2], module.heads, module.head_dim).transpose(1, 2)


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
