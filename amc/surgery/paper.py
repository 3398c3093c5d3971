"""A network that is cut and traced again and again, without computing where that saves time.

Without memory torch takes other operations than on a processor for attention and BatchNorm; here
they are what they are there. Where that does not give the table that the network has, it is traced
as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from amc.errors import UserError
from amc.network.copying import copied
from amc.network.kinds.parts import Side
from amc.network.layers import LayerTable
from amc.network.trace import Network, trace
from amc.surgery.cut import cutting

_WORTH = 10**9  # MACs: less is computed in the time that it takes to trace


@dataclass(frozen=True, eq=False)
class Paper:
    """A network to cut."""

    model: nn.Module
    input_shape: tuple[int, ...]
    computes: bool

    @classmethod
    def of(cls, network: Network) -> Paper:
        """A copy without memory, or one with."""
        own = copied(network.model).cpu()
        as_it_is = cls(own, network.input_shape, computes=True)
        if network.table.macs < _WORTH:
            return as_it_is
        paper = cls(copied(own).to("meta"), network.input_shape, computes=False)
        try:
            same = _same(paper.cut({}), network.table)
        except (UserError, ValueError):
            return as_it_is
        return paper if same else as_it_is

    def cut(self, cuts: Mapping[str, Mapping[Side, list[int]]]) -> LayerTable:
        """The table of the network without these channels.

        Raises:
            ValueError: a layer cannot lose them.
            UserError: the network does not run without them.
        """
        with cutting(self.model, cuts), nullcontext() if self.computes else _AsOnProcessors():
            return trace(self.model, self.input_shape)


def _same(one: LayerTable, other: LayerTable) -> bool:
    """Whether two tables are of the same operations."""
    facts = [
        [(layer.name, layer.macs, layer.params, layer.followed_by) for layer in table]
        for table in (one, other)
    ]
    sizes = [table.activations.bytes.tolist() for table in (one, other)]
    return facts[0] == facts[1] and sizes[0] == sizes[1] and one.rest.macs == other.rest.macs


class _AsOnProcessors(TorchFunctionMode):
    """Lets new tensors have no memory, and gives what has other operations then those of a
    processor.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **given)
        if func is F.batch_norm or func is torch.batch_norm:
            return torch.empty_like(args[0] if args else given["input"])
        if func in _FACTORIES and given.get("device") is None:
            given = {**given, "device": "meta"}
        return func(*args, **given)


_FACTORIES = frozenset(
    (torch.arange, torch.empty, torch.eye, torch.full, torch.linspace, torch.ones, torch.rand,
     torch.randn, torch.tensor, torch.zeros)
)  # fmt: skip


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    given = query, key, value, dropout_p, is_causal
    output: Tensor = attend(*given, attn_mask=attn_mask, scale=scale)[0]
    return output
