"""The base network of a search: built, with its weights, traced, and refused where it cannot be
what is compressed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from amc.compute import HOST, Compute
from amc.data.datasets import Dataset
from amc.data.places import find_file
from amc.errors import UserError, first_line, shown, unknown
from amc.network.kinds import Kind, kind_of
from amc.network.layers import evaluating, example_input
from amc.network.models import build_model, check_size, is_known, load_weights
from amc.network.trace import Network
from amc.randomness import own_randomness
from amc.registry import lookup
from amc.sections import Config
from amc.surgery.verify import apart

KIND_NAMES = ("own", "channelwise", "conv", "linear")  # that a user's kind of layer can have
ALIKE = 1e-3  # of the largest output: by so much computes may differ


def base_network(
    config: Config, dataset: Dataset, model: nn.Module | None, base: Path | None
) -> tuple[Network, bool]:
    """The network that is compressed, and whether it is still to be trained."""
    name = config.model or type(model).__name__
    untrained = False
    if model is not None and not isinstance(model, nn.Module):
        raise UserError(f"model is {shown(model)}: an nn.Module is expected, made, not its class")
    if model is None:
        pretrained = config.weights == "DEFAULT"
        if pretrained and not str(config.model).startswith("torchvision:"):
            raise UserError(
                f"weights is DEFAULT, but only torchvision's networks have such, not {name!r}: "
                "name a file as weights, or take weights=null and add a train section"
            )
        base = base or weights_file(config)
        if base is not None:
            channels = dataset.input_shape[0]
            check_size(named(config.model, "model"), dataset.classes, channels, base)
        pretrained = pretrained and base is None  # a run keeps what was downloaded
        model = built(config, dataset.classes, dataset.input_shape[0], pretrained)
        untrained = base is None and config.weights is None and _needs_training(config)
    if base is not None:
        load_weights(model, base)
    kinds = kinds_of(config.kinds)
    network = Network.of(model, dataset.input_shape, name, kinds)
    for own, kind in zip(config.kinds, kinds, strict=True):
        if not any(type(kind_of(module)) is type(kind) for module in network.model.modules()):
            logging.getLogger("amc").warning("warning: no layer of the network is a %s", own)
    _check_finite(network.model, name if base is None else f"{name} with {base}")
    _check_classes(network, dataset)
    return network, untrained


def kinds_of(names: Sequence[str]) -> list[Kind]:
    """The user's own kinds of layer.

    Raises:
        UserError: one does not exist, is code that the user has not named, or is no kind.
    """
    return [own_kind(lookup("kind", name), name) for name in names]


def own_kind(found: Any, name: str) -> Kind:
    """A kind of layer, of its class.

    Raises:
        UserError: it is none.
    """
    if not issubclass(found, Kind):
        raise UserError(f"{name!r} is no kind: it does not inherit from Kind, of amc.network.kinds")
    try:
        kind: Kind = found()
    except TypeError as error:  # a method is missing, or it wants arguments
        raise UserError(f"{name!r} is no kind: {first_line(error)}") from error
    if kind.name not in KIND_NAMES:
        raise unknown(f"name of the kind {name!r},", str(kind.name), KIND_NAMES)
    return kind


def placed(
    network: Network, images: Tensor, compute: Compute, asked_for: bool
) -> tuple[Compute, Tensor]:
    """Bring a network to a compute: where it gives there what it gives on the host.

    Args:
        network: on the host.
        images: real ones (n, C, H, W), normalised, on the host.
        compute: where it is to be.
        asked_for: whether the user has named it; else a network that does not run there stays on
            the host.

    Returns:
        the compute, and the images there.

    Raises:
        UserError: the network does not run on what the user has named.
    """
    if not compute.is_accelerator:
        return compute, images
    with evaluating(network.model):
        here = network.model(images)
    try:
        network.model.to(compute.device)
        there = compute.put(images)
        with evaluating(network.model):
            difference = apart(network.model(there).cpu(), here)
        if difference <= ALIKE:
            return compute, there
        why = f"it gives other outputs there, by {difference:.2g} of the largest"
    except Exception as error:  # a user's forward may make tensors where it likes
        why = first_line(error)
    network.model.cpu()
    if asked_for:
        raise UserError(
            f"the network {network.name!r} does not run on {compute.name} ({why}): take compute=cpu"
        )
    logging.getLogger("amc").warning(
        "warning: the network does not run on %s (%s): all is done on the processor",
        compute.name,
        why,
    )
    return HOST, images


def weights_file(config: Config) -> Path | None:
    """Where the weights of a config are; None where they come from no file.

    Raises:
        UserError: the file does not exist.
    """
    if config.weights in (None, "DEFAULT"):
        return None
    assert config.weights is not None
    return find_file(config.weights, config.weights_dir, "weights_dir")


def _needs_training(config: Config) -> bool:
    """Whether a network without weights is trained first; a user's own function may give a trained
    one.
    """
    if config.train is not None:
        return True
    name = str(config.model)
    if is_known(name):
        raise UserError(
            f"model {name!r} has no weights: name a file as weights, or add a train section"
        )
    return False


def named(value: str | None, key: str) -> str:
    """What a key of the config names.

    Raises:
        UserError: nothing.
    """
    if value is None:
        raise UserError(f"the config names no {key}")
    return value


def built(config: Config, classes: int, channels: int, pretrained: bool = False) -> nn.Module:
    """The config's network, whose random weights follow from its seed."""
    name = named(config.model, "model")
    with own_randomness(config.seed):
        return build_model(name, classes, channels, pretrained)


def _check_finite(model: nn.Module, name: str) -> None:
    """Refuse weights and running statistics that are no numbers. Other buffers may be infinite, as
    masks of attention are.
    """
    parameters = [(key, value, "weights") for key, value in model.named_parameters()]
    buffers = [(key, value, "buffer") for key, value in model.named_buffers()]
    for key, value, what in parameters + buffers:
        if not value.is_floating_point():
            continue
        numbers = value.detach()
        statistics = key.rpartition(".")[2] in ("running_mean", "running_var")
        wrong = numbers.isnan() if what == "buffer" and not statistics else ~numbers.isfinite()
        if count := int(wrong.sum()):
            found = "NaN" if numbers.isnan().any() else "infinite"
            raise UserError(
                f"the network {name!r} is damaged: {count} of the {value.numel()} values of its "
                f"{what} {key!r} are {found}; take weights from before its training diverged"
            )


def _check_classes(network: Network, dataset: Dataset) -> None:
    with evaluating(network.model):
        output = network.model(example_input(network.model, network.input_shape))
    if (
        not isinstance(output, torch.Tensor)
        or output.dim() != 2
        or output.shape[1] < dataset.classes
    ):
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise UserError(
            f"{network.name!r} gives {shape} for an image, but {dataset.name!r} has "
            f"{dataset.classes} classes: (1, {dataset.classes}) was expected"
            f"{_about_classes(dataset)}"
        )


def _about_classes(dataset: Dataset) -> str:
    """What about a dataset's labels may be why there are more of them than the network knows."""
    train, test = np.unique(dataset.train.labels), np.unique(dataset.test.labels)
    if lowest := min(train[0], test[0]):
        return f"; the labels begin at {lowest}, subtract it if the network's classes begin at 0"
    if len(only := np.setdiff1d(test, train)):
        return f"; no training image is of class {only[0]}, leave out its test images"
    return ""
