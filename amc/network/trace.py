"""One forward pass over a network: its layer table, and the activations alive meanwhile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from amc.errors import UserError, first_line
from amc.network.copying import copied, dtype_of, private_copy, unwrapped
from amc.network.kinds import acquaint, kind_of
from amc.network.layers import LayerTable, evaluating, example_input, storage_key
from amc.network.recording import Recorder
from amc.network.rewriting import rewrite_alike


@dataclass
class Trusted:
    """How far a network may be prepared for speed: as far as it was seen to give its own outputs
    (`amc.evaluate.prepare`).
    """

    steps: int | None = None  # None: it was not looked at yet
    note: str = ""  # what did not work, for people


@dataclass(frozen=True, eq=False)
class Network:
    """A user's network as this project holds it: a private copy in float32 and eval mode, the shape
    of its input, its table.
    """

    model: nn.Module
    input_shape: tuple[int, ...]  # of one image, without the batch
    table: LayerTable
    name: str = "network"
    dtype: torch.dtype = torch.float32  # that it was given in, and is given back in
    trusted: Trusted = field(default_factory=Trusted)
    # modules that compute as the user's do, and can lose heads: name -> `amc.network.rewriting`
    rewritten: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, input_shape: tuple[int, ...], name: str = "network") -> Network:
        """Copy, rewrite, trace and hold a network.

        Raises:
            UserError: it cannot be copied, or does not run on such an input.
        """
        own = private_copy(model, name)
        rewritten = rewrite_alike(own, input_shape)
        table = trace(own, input_shape, name, unwrapped(model))
        return cls(own, tuple(input_shape), table, name, dtype_of(model), rewritten=rewritten)

    @property
    def place(self) -> torch.device:
        """The device of torch's on which it is."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    @cached_property
    def memory_format(self) -> torch.memory_format:
        """How activations lie in memory: channels last, where the network runs so."""
        image = example_input(self.model, self.input_shape, batch=2)
        if image.dim() != 4:
            return torch.contiguous_format
        try:
            with evaluating(self.model):
                self.model(image.contiguous(memory_format=torch.channels_last))
        except Exception:  # a `view` that asks for contiguous memory
            return torch.contiguous_format
        return torch.channels_last

    @cached_property
    def solvable(self) -> frozenset[str]:
        """The layers whose weights can be solved for from their inputs: they mix all their
        channels, compute by their weights, and are called once; where an image passes them in
        several parts at once, the parts are one after the other.
        """
        modules = dict(self.model.named_modules())
        names = Counter(spec.name.split("@")[0] for spec in self.table)
        found = set()
        for spec in self.table:
            if spec.kind not in ("conv", "linear") or names[spec.name] != 1 or spec.groups > 1:
                continue
            kind = kind_of(modules[spec.name])
            if kind is not None and kind.by_its_weights(modules[spec.name], spec.input_size):
                found.add(spec.name)
        return frozenset(found - self._mingled({name for name in found if name in self.parts}))

    @cached_property
    def parts(self) -> dict[str, int]:
        """The layers that an image passes in several parts at once, and how many these are."""
        return {spec.name: spec.repeats for spec in self.table if spec.repeats > 1}

    def _mingled(self, layers: Collection[str]) -> set[str]:
        """Of some such layers those that do not get the parts of two images one after the other."""
        if not layers:
            return set()
        images = example_input(self.model, self.input_shape, batch=2)
        both, one, two = (self._inputs(layers, x) for x in (images, images[:1], images[1:]))
        return {name for name in layers if not _same(both[name], torch.cat((one[name], two[name])))}

    def _inputs(self, layers: Collection[str], images: Tensor) -> dict[str, Tensor]:
        """What some layers get."""
        seen: dict[str, Tensor] = {}

        def noting(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                seen[name] = inputs[0].clone()

            return note

        modules = dict(self.model.named_modules())
        handles = [modules[name].register_forward_pre_hook(noting(name)) for name in layers]
        try:
            with evaluating(self.model):
                self.model(images)
        finally:
            for handle in handles:
                handle.remove()
        return seen


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal but for rounding."""
    if one.shape != other.shape:
        return False
    return bool((one - other).abs().max() <= 1e-4 * other.abs().max())


def trace(
    model: nn.Module,
    input_shape: tuple[int, ...],
    name: str = "network",
    source: nn.Module | None = None,
) -> LayerTable:
    """Run ``model`` once on one image of ``input_shape`` and write down its layers.

    The hooks are removed and the training mode restored, whatever happens. A model that is on an
    accelerator is copied to the processor: elsewhere torch may take other operations, with other
    buffers, for the same layers (attention), and what a network costs does not depend on that.

    Args:
        model: to be run.
        input_shape: of one image.
        name: for messages.
        source: what ``model`` is a copy of, and must not compute with.

    Raises:
        UserError: the forward pass fails on that input, or computes with ``source``.
    """
    if any(parameter.device.type not in ("cpu", "meta") for parameter in model.parameters()):
        model = copied(model).cpu()
    acquaint(model)
    recorder = Recorder(model)
    image = example_input(model, input_shape)
    foreign = set() if source is None else {storage_key(t) for t in source.parameters()}
    recorder.foreign = foreign - recorder.weights
    try:
        with _hooked(model, recorder), evaluating(model), recorder:
            recorder.add(image)
            recorder.finish(model(image))
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the network {name!r} does not run on an input of shape {tuple(input_shape)}: "
            f"{first_line(error)}"
        ) from error
    if recorder.is_foreign:
        raise UserError(
            f"a copy of the network {name!r} still computes with the original's weights: a "
            "forward, hook or attribute of an instance refers to it; define it in the class"
        )
    return recorder.table()


@contextmanager
def _hooked(model: nn.Module, recorder: Recorder) -> Iterator[None]:
    """Let a recorder see the inputs and outputs of all that is a row of the table."""
    handles = []
    for name, module in model.named_modules():
        if module is not model and recorder.is_row(module):
            before, after = recorder.hooks(name)
            handles.append(module.register_forward_pre_hook(before))
            handles.append(module.register_forward_hook(after, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
