"""Modules that keep channels apart in a way only they know, and that can cut themselves."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn

from amc.network.kinds.base import Kind


@runtime_checkable
class LinkedModule(Protocol):
    """What such a module says of itself (a padded shortcut, say). It holds no parameters."""

    def channel_links(self) -> list[tuple[int, int]]:
        """Pairs (input channel, output channel) that must live or die together."""

    def cut(self, remove_in: list[int], remove_out: list[int]) -> None:
        """Shrink, in place, by the given channels (ascending)."""


class Linked(Kind):
    """A `LinkedModule`."""

    name = "linked"

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, LinkedModule)

    def widths(self, module: nn.Module) -> tuple[int, int]:
        """Known only from a call."""
        return 0, 0

    def mixes(self, module: nn.Module) -> bool:
        return False

    def links(self, module: nn.Module) -> list[tuple[int, int]]:
        assert isinstance(module, LinkedModule)
        return module.channel_links()

    def cut(self, module: nn.Module, gone_in: list[int], gone_out: list[int]) -> None:
        assert isinstance(module, LinkedModule)
        module.cut(gone_in, gone_out)
