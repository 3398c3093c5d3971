"""Self-attention as people write it, and how it is recognised (`amc.network.attention`)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

from torch import Tensor, nn

from amc.network.attention import attend, in_heads, of_pairs

HEADS = ("num_heads", "heads", "n_heads", "n_head", "nhead", "num_attention_heads", "h")
"""How people call their number of heads."""
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
