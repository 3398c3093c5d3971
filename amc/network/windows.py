"""Attention in windows that can lose heads (`amc.network.attention`): Swin's, MaxViT's."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amc.network.attention import attend, of_pairs

_MASKED = -100.0  # what Swin adds between positions that were no neighbours


class WindowAttention(nn.Module):
    """torchvision's ``ShiftedWindowAttention`` (Swin), on (images, height, width, channels). Its
    linear layers are applied to whole maps, so an image passes them once; windows are made between
    them.
    """

    relative_position_index: Tensor

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.window_size, self.shift_size = list(source.window_size), list(source.shift_size)
        self.heads = source.num_heads
        self.head_dim = source.proj.in_features // source.num_heads
        self.attention_dropout, self.dropout = source.attention_dropout, source.dropout
        self.qkv, self.proj = source.qkv, source.proj
        self.register_buffer("relative_position_index", source.relative_position_index)
        self._take_position_bias(source)
        self.train(source.training)

    def _take_position_bias(self, source: Any) -> None:
        self.relative_position_bias_table = source.relative_position_bias_table

    def position_bias(self) -> Tensor:
        """Of every head, for every pair of positions in a window: (1, heads, length, length)."""
        return of_pairs(self.relative_position_bias_table, self.relative_position_index)

    def forward(self, x: Tensor) -> Tensor:
        """(images, height, width, channels) to the same shape."""
        height, width = x.shape[1:3]
        rows, columns = self.window_size
        x = F.pad(x, (0, 0, 0, -width % columns, 0, -height % rows))
        size = x.shape[1:3]
        shift = [
            0 if window >= whole else by
            for by, window, whole in zip(self.shift_size, self.window_size, size, strict=True)
        ]
        if any(shift):
            x = x.roll((-shift[0], -shift[1]), (1, 2))
        x = self.proj(self._attended(self.qkv(x), shift))
        x = F.dropout(x, self.dropout, self.training)
        if any(shift):
            x = x.roll((shift[0], shift[1]), (1, 2))
        return x[:, :height, :width].contiguous()

    def _attended(self, maps: Tensor, shift: list[int]) -> Tensor:
        """Attention in every window: (images, height, width, 3 * inner) to (..., inner)."""
        rows, columns = self.window_size
        down, across = maps.shape[1] // rows, maps.shape[2] // columns
        parts = maps.unflatten(3, (3, self.heads, self.head_dim))
        parts = parts.unflatten(2, (across, columns)).unflatten(1, (down, rows))
        parts = parts.permute(5, 0, 1, 3, 6, 2, 4, 7)  # which, image, window (2), head, position
        mask = self.position_bias()
        if any(shift):  # windows differ: they are counted among the heads, so images share a mask
            mask = (mask + self._between(maps, shift).unsqueeze(1)).flatten(0, 1).unsqueeze(0)
            parts = parts.flatten(2, 4).flatten(3, 4)
        else:
            parts = parts.flatten(1, 3).flatten(3, 4)
        query, key, value = parts.unbind()
        dropout = self.attention_dropout if self.training else 0.0
        done = self._attend(query, key, value, mask, dropout)
        done = done.reshape(-1, down, across, self.heads, rows, columns, self.head_dim)
        done = done.permute(0, 1, 4, 2, 5, 3, 6)
        return done.reshape(-1, down * rows, across * columns, self.heads * self.head_dim)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float
    ) -> Tensor:
        return attend(query, key, value, mask, dropout)[0]

    def _between(self, maps: Tensor, shift: list[int]) -> Tensor:
        """What keeps apart the positions of a window that were no neighbours before the shift:
        (windows, length, length).
        """
        numbers = []
        for size, window, by in zip(maps.shape[1:3], self.window_size, shift, strict=True):
            at = torch.arange(size, device=maps.device)
            region = (at >= size - window).int() + (at >= size - by).int()
            numbers.append((region if by else 0 * region).unflatten(0, (-1, window)))
        down, across = numbers
        region = 3 * down[:, None, :, None] + across[None, :, None, :]
        region = region.flatten(0, 1).flatten(1)
        apart = region.unsqueeze(1) != region.unsqueeze(2)
        return maps.new_zeros(apart.shape).masked_fill(apart, _MASKED)


class WindowAttentionV2(WindowAttention):
    """torchvision's ``ShiftedWindowAttentionV2``: cosine attention, and a position bias that a
    small network gives. What its ``qkv`` holds as bias of the keys is not used there: it is zero
    here at first, and may be learned.
    """

    relative_coords_table: Tensor

    def _take_position_bias(self, source: Any) -> None:
        self.logit_scale, self.cpb_mlp = source.logit_scale, source.cpb_mlp
        self.register_buffer("relative_coords_table", source.relative_coords_table)
        if self.qkv.bias is not None:
            with torch.no_grad():
                self.qkv.bias.chunk(3)[1].zero_()

    def position_bias(self) -> Tensor:
        table = self.cpb_mlp(self.relative_coords_table).flatten(0, 2)
        return 16 * of_pairs(table, self.relative_position_index).sigmoid()

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float
    ) -> Tensor:
        scale = self.logit_scale.clamp(max=math.log(100.0)).exp()
        scale = scale.repeat(query.shape[1] // self.heads, 1, 1)  # of every window's heads
        query = F.normalize(query, dim=-1) * scale
        return attend(query, F.normalize(key, dim=-1), value, mask, dropout, 1.0)[0]


class PartitionAttention(nn.Module):
    """torchvision's ``RelativePositionalMultiHeadAttention`` (MaxViT), on (images, windows, length,
    channels).
    """

    relative_position_index: Tensor

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.heads, self.head_dim = source.n_heads, source.head_dim
        self.scale = source.scale_factor
        self.to_qkv, self.merge = source.to_qkv, source.merge
        self.relative_position_bias_table = source.relative_position_bias_table
        self.register_buffer("relative_position_index", source.relative_position_index)
        self.train(source.training)

    def forward(self, x: Tensor) -> Tensor:
        """(images, windows, length, channels) to the same shape."""
        parts = self.to_qkv(x).flatten(0, 1).unflatten(-1, (3, self.heads, self.head_dim))
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind()
        mask = of_pairs(self.relative_position_bias_table, self.relative_position_index)
        done = attend(query, key, value, mask, scale=self.scale)[0]
        output: Tensor = self.merge(done.transpose(1, 2).flatten(2).unflatten(0, x.shape[:2]))
        return output
