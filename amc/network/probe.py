"""Coupled channels, found by asking the network: perturb some channels of one layer and see which
inputs of which others change.

Every layer that mixes channels gets a fixed random output while it is probed, so what flows between
two such layers is only what keeps channels apart: activations, pooling, sums, concatenation,
shuffles, padding, gates, flatten. Normalisations pass their input through (a dead channel must not
hide; one that is cut says nothing to the others). A grouped convolution keeps its groups apart: the
inputs and outputs of one group live or die together. What surgery does not know, or what does not
keep the images of a batch apart, computes as it does: it mixes what it reads. No symbolic tracing:
any ``nn.Module`` works. The network is asked at a small input, where it takes one.

1. reach: one sample a producer, all its channels perturbed -> which consumer channels it touches at
   all.
2. `amc.network.decoding`: which channel, or block of channels, touches which.
3. `amc.network.groups`: connected components of (producer channel, consumer channel) are the atoms;
   atoms with the same members are one group.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_iter

from amc.errors import UserError, first_line
from amc.network.kinds import kind_of
from amc.network.kinds.linked import LinkedModule
from amc.network.layers import evaluating, example_input
from amc.network.sites import NotApart, Site
from amc.network.trace import Network

BoolArray = NDArray[np.bool_]

_ROUNDS = 8  # at most; it stops when a round with new random values has shown nothing new
_BYTES = 512 * 2**20  # of activations in one pass
_TOLERANCE = 1e-4  # of a channel's largest value: smaller differences are rounding


_Perturbed = dict[str, Tensor]
"""producer -> (samples, channels): which channels are perturbed in which sample."""


class Probe:
    """The state of one probing: what every sample of every pass has touched."""

    def __init__(
        self,
        network: Network,
        seed: int,
        alone: Collection[str] = (),
        mixing: Collection[str] = (),
    ) -> None:
        """Bind a probe.

        Args:
            network: is asked at its input shape.
            seed: of the random outputs.
            alone: layers that do not keep the images of a batch apart.
            mixing: normalisations that are not over the channels of what they are given.
        """
        self.network = network
        self.seed = seed
        self.sites: dict[str, Site] = {}
        self.order: list[str] = []  # producers as they are executed
        self.edges: list[tuple[str, int, str, int]] = []  # producer, channel, site, channel
        self.blocked: dict[str, str] = {}  # producer -> why it is left alone
        self.handler: Callable[[Site, Tensor], Tensor] = lambda site, x: x
        known = {spec.name.split("@")[0] for spec in network.table if spec.kind != "other"}
        strange = {spec.name.split("@")[0] for spec in network.table if spec.kind == "other"}
        for name, module in network.model.named_modules():
            kind = None if name in mixing else kind_of(module)
            if kind is not None and (name in known - strange or isinstance(module, LinkedModule)):
                self.sites[name] = Site(name, module, kind)
        for name in alone:
            self._leave_alone(name, "it does not keep the images of a batch apart")

    @contextmanager
    def installed(self) -> Iterator[None]:
        """The forwards of all sites replaced, and restored afterwards."""

        def replacement(site: Site) -> Callable[[Tensor], Tensor]:
            return lambda x: self.handler(site, x)

        sites = list(self.sites.values())
        try:
            with evaluating(self.network.model):
                for site in sites:
                    site.module.forward = replacement(site)
                yield
        finally:
            for site in sites:
                site.restore()

    def run(self, samples: int) -> Any:
        image = example_input(self.network.model, self.network.input_shape).expand(
            samples, *self.network.input_shape
        )
        try:
            return self.network.model(image)
        except NotApart:
            raise
        except Exception as error:
            raise UserError(
                f"the network {self.network.name!r} cannot be probed: its forward fails on "
                f"{samples} images at once "
                f"({first_line(error)})"
            ) from error

    def record(self) -> None:
        """Ordinary passes with one image and with two, to see the order and the widths, and what
        keeps images apart.
        """
        lengths: dict[str, list[list[int]]] = {name: [[], []] for name in self.sites}
        images = 1

        def handler(site: Site, x: Tensor) -> Tensor:
            output = site.forward(x)
            lengths[site.name][images - 1].append(len(x))
            if images == 1:
                site.in_channels, site.out_channels = x.shape[site.dim], output.shape[site.dim]
                if not site.shapes and not site.channelwise:
                    self.order.append(site.name)
                site.shapes.append(tuple(output.shape))
            return output

        self.handler = handler
        for images in (1, 2):
            self.run(images)
        for name, (one, two) in lengths.items():
            if one and two != [2 * length for length in one]:
                self._leave_alone(name, "it does not keep the images of a batch apart")
        self.sites = {name: site for name, site in self.sites.items() if site.shapes}

    def _leave_alone(self, name: str, why: str) -> None:
        """Let a layer compute as it does."""
        site = self.sites.pop(name)
        site.restore()
        self.blocked[name] = why
        self.order = [other for other in self.order if other != name]

    def _pass(self, perturbed: _Perturbed, samples: int, round_: int) -> dict[str, BoolArray]:
        """Run ``samples`` samples (0 is untouched): for every site, and "" for the output,
        (samples, channels) touched.
        """
        touched: dict[str, BoolArray] = {}
        calls: Counter[str] = Counter()

        def handler(site: Site, x: Tensor) -> Tensor:
            if len(x) % samples or x.shape[site.dim] != site.in_channels:
                raise NotApart(site.name)
            seen = _differs(x, site.dim, samples)
            touched[site.name] = touched[site.name] | seen if site.name in touched else seen
            if site.channelwise:
                return x.clone()  # an in-place activation may follow
            shape = site.shapes[calls[site.name] % len(site.shapes)]
            calls[site.name] += 1
            mask, salt = perturbed.get(site.name), round_ * 64 + calls[site.name]
            return self.random(site, shape, mask, samples, salt).to(x.device, x.dtype)

        self.handler = handler
        output = self.run(samples)
        outputs = [
            _differs(t, 1, samples).any(axis=1)
            for t in tree_iter(output)
            if isinstance(t, Tensor) and t.dim() > 0
        ]
        touched[""] = (
            np.logical_or.reduce(outputs)[:, None] if outputs else np.zeros((samples, 1), bool)
        )
        return touched

    def random(
        self, site: Site, shape: tuple[int, ...], mask: Tensor | None, samples: int, salt: int
    ) -> Tensor:
        """A fixed random output, its ``shape`` that of one sample; where ``mask`` says so, another
        one. In every other round all values are positive: a rectifier must not hide them.
        """
        generator = torch.Generator().manual_seed(
            hash((self.seed, self.order.index(site.name), salt)) % 2**31
        )
        base = torch.randn(shape, generator=generator) + 0.3
        other = torch.randn(shape, generator=generator) * 1.5 + 0.3
        if salt // 64 % 2 == 0:
            base, other = base.abs() + 0.1, other.abs() + 0.1
        if mask is None:
            return base.expand(samples, *shape).flatten(0, 1).clone()
        dims = [1] * len(shape)
        dims[site.dim] = shape[site.dim]
        return torch.where(mask.view(samples, *dims), other, base).flatten(0, 1)

    def _chunks(self, samples: int) -> list[range]:
        size = max(2, int(_BYTES // max(1, self.network.table.activations.peak_bytes())))
        return [range(start, min(start + size, samples)) for start in range(0, samples, size)]

    def touched(self, masks: dict[str, Tensor], samples: int) -> dict[str, BoolArray]:
        """Which samples touch which channels, over as many rounds of random values as show
        something new.
        """
        total: dict[str, BoolArray] = {}
        for round_ in range(_ROUNDS):
            parts: dict[str, list[BoolArray]] = defaultdict(list)
            for chunk in self._chunks(samples):
                rows = {
                    n: torch.cat(
                        [torch.zeros(1, m.shape[1], dtype=torch.bool), m[chunk.start : chunk.stop]]
                    )
                    for n, m in masks.items()
                }
                for name, seen in self._pass(rows, len(chunk) + 1, round_).items():
                    parts[name].append(seen[1:])
            seen_now = {name: np.concatenate(rows) for name, rows in parts.items()}
            if round_ and not any((seen & ~total[name]).any() for name, seen in seen_now.items()):
                break
            total = {name: seen | total[name] if total else seen for name, seen in seen_now.items()}
        return total

    def reach(self) -> dict[str, dict[str, BoolArray]]:
        """For every producer the channels that it touches at all."""
        count = len(self.order)
        masks = {}
        for index, name in enumerate(self.order):
            masks[name] = torch.zeros(count, self.sites[name].out_channels, dtype=torch.bool)
            masks[name][index] = True
        touched = self.touched(masks, count)
        result: dict[str, dict[str, BoolArray]] = {}
        for index, name in enumerate(self.order):
            result[name] = {
                site: rows[index] for site, rows in touched.items() if rows[index].any()
            }
            if "" in result[name]:
                self.blocked[name] = "its channels reach the network's output"
        return result


def _differs(x: Tensor, dim: int, samples: int) -> BoolArray:
    """(samples, channels): whether a sample differs from sample 0 anywhere in that channel."""
    if len(x) % samples:
        raise ValueError(f"{len(x)} is not a multiple of {samples} images")
    x = x.movedim(dim, 1) if x.dim() > 1 else x[:, None]
    x = x.unflatten(0, (samples, -1)).transpose(1, 2).flatten(2)  # a part of an image is of it
    reference = x[:1]
    scale = reference.abs().amax(dim=2).clamp_min(1e-3)
    difference = (x - reference).abs().amax(dim=2)
    result: BoolArray = (difference > _TOLERANCE * scale).cpu().numpy()
    return result
