"""Self-attention as people write it, and how it is recognised (`amc.network.attention`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from amc.network.attention import attend, in_heads, of_pairs
from amc.network.copying import copied
from amc.network.kinds.linear import Linear

HEADS = ("num_heads", "heads", "n_heads", "n_head", "nhead", "num_attention_heads", "h")
"""How people call their number of heads."""
_TAKEN = frozenset(("heads", "head_dim", "parts", "need_weights"))  # names that ours has itself
_OUTPUT = ("proj", "res", "out")  # in the name of a dropout that is not of the weights


class SelfAttention(nn.Module):
    """Self-attention over (images, length, channels) as people write it, with their own linear
    layers under their own names; in windows with a position bias, as the authors of Swin have it.
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
        if parts.table:
            self.register_parameter(parts.table, source.get_parameter(parts.table))
            self.register_buffer(parts.index, source.get_buffer(parts.index), parts.keeps_index)
        self.train(source.training)

    def forward(
        self, x: Tensor, mask: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        """(images, length, channels) to the same shape, and the weights where they are asked.

        Args:
            x: images, or windows of images.
            mask: of each window of an image (windows, length, length), added to the products.
        """
        parts = self.parts
        projected = [getattr(self, name)(x) for name in parts.inward]
        split = projected[0].chunk(3, -1) if len(projected) == 1 else projected
        query, key, value = (in_heads(self, one) for one in split)
        lose = self.training and parts.weights_dropout
        dropout = getattr(self, parts.weights_dropout).p if lose else 0.0
        bias = self._bias(mask)
        if bias is not None:
            query, key, value = (
                one.reshape(-1, bias.shape[1], *one.shape[2:]) for one in (query, key, value)
            )
        done, weights = attend(
            *(query, key, value, bias, dropout, parts.scale), need_weights=self.need_weights
        )
        done = done.reshape(-1, self.heads, *done.shape[2:])
        output = getattr(self, parts.outward)(done.transpose(1, 2).flatten(2))
        if parts.dropout:
            output = getattr(self, parts.dropout)(output)
        return (output, weights) if self.need_weights else output

    def _bias(self, mask: Tensor | None) -> Tensor | None:
        """What is added to the products: (1, heads, length, length). With a mask the windows of an
        image are counted among its heads, so images share it.
        """
        parts = self.parts
        bias = None
        if parts.table:
            bias = of_pairs(getattr(self, parts.table), getattr(self, parts.index))
        if mask is None:
            return bias
        each = mask.unsqueeze(1).expand(-1, self.heads, -1, -1)
        return (each if bias is None else each + bias).flatten(0, 1).unsqueeze(0)


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
    table: str = ""  # of position biases (rows, heads)
    index: str = ""  # the table's row for every pair of positions
    keeps_index: bool = True  # in the state dict

    @classmethod
    def of(cls, module: nn.Module) -> Parts | None:
        """None where it is built otherwise."""
        children = dict(module.named_children())
        linear = {name: one for name, one in children.items() if type(one) is nn.Linear}
        dropouts = [name for name, one in children.items() if type(one) is nn.Dropout]
        silent = sum(type(one) in (nn.Identity, nn.Softmax) for one in children.values())
        if len(linear) + len(dropouts) + silent < len(children) or len(dropouts) > 2:
            return None
        if _TAKEN.intersection([*children, *module._parameters, *module._buffers]):
            return None
        found = _projections({name: tuple(one.weight.shape) for name, one in linear.items()})
        heads = next((n for n in map(vars(module).get, HEADS) if type(n) is int), 0)
        table = {name: one for name, one in module._parameters.items() if one is not None}
        index = {name: one for name, one in module._buffers.items() if one is not None}
        if found is None or heads < 1 or (len(table), len(index)) not in ((0, 0), (1, 1)):
            return None
        if any(one.dim() != 2 or one.shape[1] != heads for one in table.values()):
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
            table=next(iter(table), ""),
            index=next(iter(index), ""),
            keeps_index=not module._non_persistent_buffers_set,
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


def does_the_same(module: nn.Module, other: nn.Module, call: tuple[Any, ...]) -> bool:
    """Whether another module gives the outputs of one that people have written, whatever the
    weights: in eval mode and, with every dropout taking nothing or all, in training; and can lose
    a head, which that cannot.
    """
    (x, *more), named, _ = call
    if not isinstance(x, Tensor) or x.dim() != 3:
        return False
    random = torch.Generator().manual_seed(0)
    x = torch.randn(x.shape, generator=random)
    run = partial(_called, x, more, named)
    theirs, ours = copied(module).eval(), copied(other).eval()
    assert isinstance(ours, SelfAttention)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():  # they may be zero before training
            spread = parameter.shape[-1] ** -0.5
            parameter.copy_(spread * torch.randn(parameter.shape, generator=random))
            ours.get_parameter(name).copy_(parameter)
        if not agree(run(theirs), run(ours)) or _loses_a_head(theirs, ours, run):
            return False
        theirs.train(), ours.train()
        for lossy in ("", ours.parts.weights_dropout, ours.parts.dropout):
            for model in (theirs, ours):
                for name, one in model.named_children():
                    if isinstance(one, nn.Dropout):
                        one.p = float(name == lossy)
            if not agree(run(theirs), run(ours)):
                return False
    return True


def _called(x: Tensor, more: Sequence[Any], named: Mapping[str, Any], module: nn.Module) -> Any:
    """What a module gives; None where it takes no such arguments."""
    try:
        return module(x, *more, **named)
    except Exception:  # whatever its forward raises
        return None


def _loses_a_head(module: nn.Module, other: SelfAttention, run: Callable[[nn.Module], Any]) -> bool:
    """Whether a module computes with one head less as the other one does."""
    return other.heads == 1 or agree(
        *(run(_one_head_less(one, other.parts)) for one in (module, other))
    )


def _one_head_less(module: nn.Module, parts: Parts) -> nn.Module:
    """A copy without the last head, whose attributes say so."""
    smaller, inner = copied(module), parts.heads * parts.head_dim
    cut = Linear().cut
    gone = list(range(inner - parts.head_dim, inner))
    blocks = 3 if len(parts.inward) == 1 else 1
    packed = [block * inner + at for block in range(blocks) for at in gone]
    for name in parts.inward:
        cut(smaller.get_submodule(name), [], packed)
    cut(smaller.get_submodule(parts.outward), gone, [])
    if parts.table:
        table = smaller.get_parameter(parts.table).detach()[:, :-1]
        setattr(smaller, parts.table, nn.Parameter(table))
    for name, value in list(vars(smaller).items()):
        if type(value) is int and name in HEADS and value == parts.heads:
            setattr(smaller, name, value - 1)
        elif type(value) is int and value == inner:
            setattr(smaller, name, inner - parts.head_dim)
    return smaller


def agree(a: Any, b: Any, tolerance: float = 1e-5) -> bool:
    """Whether outputs are the same but for rounding."""
    (ours, shape), (theirs, other) = tree_flatten(a), tree_flatten(b)
    if shape != other or not all(isinstance(one, Tensor) for one in (*ours, *theirs)):
        return False
    return all(
        one.shape == two.shape
        and float((one - two).abs().max()) <= tolerance * max(float(two.abs().max()), 1e-30)
        for one, two in zip(ours, theirs, strict=True)
    )
