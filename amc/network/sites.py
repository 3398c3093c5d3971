"""The layers that are replaced or watched while a network is probed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from amc.network.kinds.base import Kind


@dataclass
class Site:
    """A layer that is replaced while probing (or, ``channelwise``, only watched)."""

    name: str
    module: nn.Module
    kind: Kind
    in_channels: int = 0
    out_channels: int = 0
    shapes: list[tuple[int, ...]] = field(default_factory=list)  # of each call's output, one image

    def __post_init__(self) -> None:
        self.forward: Callable[[Tensor], Tensor] = self.module.forward
        self._of_instance = "forward" in vars(self.module)

    def restore(self) -> None:
        """Let the module compute as it does."""
        if self._of_instance:
            self.module.forward = self.forward
        else:
            vars(self.module).pop("forward", None)

    @property
    def channelwise(self) -> bool:
        return self.kind.name == "channelwise"

    @property
    def dim(self) -> int:
        return self.kind.dim(self.module)

    @property
    def mixes(self) -> bool:
        return self.kind.mixes(self.module)

    def links(self) -> list[tuple[int, int]]:
        """Pairs (input channel, output channel) inside the layer that live or die together."""
        return self.kind.links(self.module)

    def ties(self) -> list[tuple[int, int]]:
        """Pairs of output channels of the layer that live or die together."""
        return self.kind.ties(self.module)


class NotApart(Exception):
    """A layer does not keep the images of a batch apart."""

    def __init__(self, site: str) -> None:
        super().__init__(site)
        self.site = site
