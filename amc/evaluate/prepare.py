"""Make a network as fast as this machine allows, without changing what it computes.

BatchNorms are folded into the layers they follow, activations and sums are computed inside the
convolutions before them, memory is channels-last, and bf16 is used where the processor has units
for it and the accuracy of the untouched network agrees with fp32. All of that only as far as a
network so prepared gives, on real images, what its own module gives when it is called (`trust`).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from amc.errors import UserError
from amc.evaluate.fusion import fused
from amc.network.copying import copied
from amc.network.kinds import does_as_its_type, is_batchnorm, kind_of
from amc.network.layers import evaluating, example_input
from amc.network.trace import Network
from amc.surgery.cut import replace_module
from amc.surgery.factor import last_part
from amc.surgery.verify import apart, outputs_differ

Precision = Literal["auto", "fp32", "bf16"]
FP32 = torch.float32


def has_bf16_units() -> bool:
    """Whether this processor has matrix units for bf16 (AMX).

    AVX-512's bf16 alone does not count: small convolutions were slower with it than in fp32.
    """
    return bool(torch.cpu._is_amx_tile_supported())


def fuses_bf16() -> bool:
    """Whether oneDNN computes bf16 convolutions on this processor; without AVX-512 it refuses."""
    known = torch.backends.mkldnn.is_available()
    return known and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


STEPS = (
    "it runs as it is",
    "memory is channels-last",
    "BatchNorms are folded",
    "operations are fused",
)
"""How far a network is prepared: each step with those before it."""
TOLERANCE = 1e-4  # of the largest output
SEEN = 32  # images on which a prepared network is compared with its own module, called


class Prepared(nn.Module):
    """A network for inference only. Its inputs and outputs are float32."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, layout: torch.memory_format) -> None:
        super().__init__()
        self.model, self.dtype, self.layout = model, dtype, layout

    def forward(self, x: Tensor) -> Tensor:
        layout = self.layout if x.dim() == 4 else torch.contiguous_format
        outputs: Tensor = self.model(x.to(dtype=self.dtype, memory_format=layout))
        return outputs.float()

    def widened(self) -> Prepared:
        """The same in float32, which does not overflow; this one is no longer used."""
        return Prepared(self.model.to(FP32), FP32, self.layout).eval()


def prepared(model: nn.Module, network: Network, dtype: torch.dtype = FP32) -> Prepared:
    """A copy for inference only, prepared as far as the untouched network may be, on its compute.

    Args:
        model: ``network``'s own module, or what a strategy has made of it.
        network: the untouched network. Where it was not looked at yet, it is now, on random images.
        dtype: to compute in.
    """
    if network.trusted.steps is None:
        trust(network, example_input(network.model, network.input_shape, batch=4))
    assert network.trusted.steps is not None
    return _prepared(model, network, network.trusted.steps, dtype)


def trust(network: Network, images: Tensor) -> None:
    """Find out how far a network may be prepared: as far as it gives what its module gives when it
    is called.

    Args:
        network: the untouched network.
        images: real ones (n, C, H, W), normalised.
    """
    last = len(network.input_shape) != 3 or network.memory_format == torch.channels_last
    network.trusted.steps = len(STEPS) - 1 if last else 0
    network.trusted.note = "" if last else f"channels-last memory does not suit it: {STEPS[0]}"
    confirmed(network.model, network, images)


def confirmed(
    model: nn.Module, network: Network, images: Tensor, dtype: torch.dtype = FP32
) -> Prepared:
    """A prepared copy that was compared with its own module, called as it is. Where they differ one
    step less is tried, from now on for every network made from this one.

    Args:
        model: as in `prepared`.
        network: likewise.
        images: real ones (n, C, H, W), normalised.
        dtype: of what is returned; compared is in float32.
    """
    trusted = network.trusted
    assert trusted.steps is not None
    while trusted.steps and not _agree(model, network, trusted.steps, images):
        trusted.steps -= 1
        trusted.note = (
            "prepared for speed the network would give other outputs than it does: "
            f"{STEPS[trusted.steps]}, no more"
        )
    return _prepared(model, network, trusted.steps, dtype)


def _agree(model: nn.Module, network: Network, steps: int, images: Tensor) -> bool:
    try:
        difference = outputs_differ(_prepared(model, network, steps, FP32), model, images)
    except Exception:  # whatever a user's forward may raise on what it did not expect
        return False
    return difference <= TOLERANCE


def _prepared(model: nn.Module, network: Network, steps: int, dtype: torch.dtype) -> Prepared:
    fast = copied(model).eval().to(network.place)
    layout = network.memory_format if steps >= 1 else torch.contiguous_format
    if steps >= 2:
        _fold(fast, network)
    if layout == torch.channels_last:
        fast = fast.to(memory_format=layout)  # type: ignore[call-overload]
    if steps >= 3 and (dtype == FP32 or fuses_bf16()):
        example = example_input(fast, network.input_shape, batch=2)
        fast = fused(fast, example.contiguous(memory_format=layout))
    return Prepared(fast.to(dtype), dtype, layout).eval()


def _fold(model: nn.Module, network: Network) -> None:
    """BatchNorms into the layers before them, in place, where that is one to one."""
    modules, whole = dict(model.named_modules()), dict(network.model.named_modules())
    for name, norm in network.table.folds:
        layer = last_part(modules, name)
        first, second = modules.get(layer), modules.get(norm)
        if first is None or second is None or not is_batchnorm(second):
            continue
        kind = kind_of(first)
        if kind and (does_as_its_type(first) or type(first) is type(whole[name])):
            replace_module(model, layer, kind.folded(first, second))
            replace_module(model, norm, nn.Identity())


def refuse_infinite(network: Network, outputs: Tensor, images: str) -> None:
    """Refuse an untouched network whose outputs (n, ...) are not all numbers.

    Raises:
        UserError: for how many of the ``images``, as they are called.
    """
    if wrong := int((~torch.isfinite(outputs).flatten(1).all(1)).sum()):
        raise UserError(
            f"the network {network.name!r} gives NaN or infinity for {wrong} of {len(outputs)} "
            f"{images}: look at its weights, and at how the images are normalised"
        )


def check_alike(network: Network, images: Tensor, original: nn.Module | None) -> None:
    """Refuse a network whose outputs for an image are not its own: chance, the other images of a
    batch, or something outside of it has a say in them.

    Args:
        network: the untouched network.
        images: real ones (n, C, H, W), normalised.
        original: the user's module, where it is known.

    Raises:
        UserError: which it is, and what to do.
    """
    name, few = network.name, images[: max(1, len(images) // 4)]
    with evaluating(network.model):
        outputs, again, part = (network.model(x) for x in (images, images, few))
    refuse_infinite(network, outputs, "images")
    if apart(again, outputs) > 1e-6:
        raise UserError(
            f"the network {name!r} gives other outputs for the same images when it is called again "
            "(dropout or noise in eval mode?): make it deterministic in eval mode"
        )
    if apart(part, outputs[: len(few)]) > 1e-3:
        raise UserError(
            f"the outputs of the network {name!r} for an image depend on the other images of its "
            "batch (a BatchNorm without running statistics?): no accuracy could be stated"
        )
    if original is None or {p.dtype for p in original.parameters()} != {torch.float32}:
        return
    if any(parameter.device.type != "cpu" for parameter in original.parameters()):
        return
    with evaluating(original):
        theirs = original(images)
    if apart(outputs, theirs) > TOLERANCE:
        raise UserError(
            f"a copy of the network {name!r} gives other outputs than the network itself: "
            "something outside of it (a closure, a global) has a say; define it in the class"
        )
