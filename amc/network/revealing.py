"""A network whose values hide nothing from who asks it: a layer scale of 1e-6 lets no change behind
it be seen, nor would a wrong cut show behind a scale of zero, or behind BatchNorms whose statistics
are not those of what they are given (before training), so that the image hardly reaches the output.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from amc.network.copying import copied
from amc.network.kinds import is_batchnorm_like
from amc.network.layers import evaluating, example_input
from amc.network.trace import Network

_SMALL = 0.1  # of a value for each channel
_IMAGES = 4  # by which statistics are told
_TINY = 1e-2  # of all values of any other tensor


def revealed(network: Network) -> Network:
    """The same network, to be asked, in a copy with other values where small ones hide something;
    itself, where none do.
    """
    has_statistics = any(map(_keeps_statistics, network.model.modules()))
    if not has_statistics and not any(_hides(tensor) for _, tensor in _tensors(network.model)):
        return network
    model = copied(network.model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for positive, tensor in _tensors(model):
            if _hides(tensor):
                _lift(tensor, positive, generator)
    revealed = replace(network, model=model)
    if has_statistics:
        _standardise(revealed)
    return revealed


def _keeps_statistics(module: nn.Module) -> bool:
    return is_batchnorm_like(module) and getattr(module, "running_mean", None) is not None


def _standardise(network: Network) -> None:
    """Give every BatchNorm the statistics of what it is given, in place."""
    image = example_input(network.model, network.input_shape, batch=_IMAGES)
    before = {key: value.clone() for key, value in network.model.state_dict().items()}
    norms = [module for module in network.model.modules() if _keeps_statistics(module)]
    momenta = [norm.momentum for norm in norms]
    try:
        with evaluating(network.model):
            for norm in norms:
                norm.train()
                setattr(norm, "momentum", 1.0)  # noqa: B010 (as `eps` of `kinds.across`)
            network.model(image)
    except Exception:  # a user's forward may do anything; then they stay as they are
        network.model.load_state_dict(before)
    for norm, momentum in zip(norms, momenta, strict=True):
        setattr(norm, "momentum", momentum)  # noqa: B010


def _tensors(model: nn.Module) -> Iterator[tuple[bool, Tensor]]:
    """All that may hide something; and whether it may be a variance, so that it is positive."""
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.numel():
            yield False, parameter
    for buffer in model.buffers():
        if buffer.is_floating_point() and buffer.numel() and _is_flat(buffer):
            yield True, buffer


def _is_flat(tensor: Tensor) -> bool:
    """Whether a tensor holds a value for each channel, or a single one."""
    return tensor.numel() == max(tensor.shape, default=1)


def _hides(tensor: Tensor) -> bool:
    size = tensor.detach().abs()
    return bool((size.min() < _SMALL) if _is_flat(tensor) else (size.max() < _TINY))


def _lift(tensor: Tensor, positive: bool, generator: torch.Generator) -> None:
    drawn = torch.rand(tensor.shape, generator=generator, device="cpu").to(tensor)
    if _is_flat(tensor):
        sign = torch.ones_like(tensor) if positive else torch.where(tensor < 0, -1.0, 1.0)
        tensor.copy_(torch.where(tensor.abs() < _SMALL, sign * (0.5 + drawn), tensor))
    elif bool((tensor == 0).all()):
        bound = (3 * tensor.shape[0] / tensor.numel()) ** 0.5  # variance 1 / inputs
        tensor.copy_((2 * drawn - 1) * bound)
    else:
        tensor /= tensor.abs().max()
