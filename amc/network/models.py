"""Where networks and their weights come from."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from amc.errors import UserError, unknown
from amc.network.builtin import CifarResNet, CifarVGG16, MobileNetV1
from amc.network.checkpoints import classes_differ, misfits, read_checkpoint
from amc.network.torchvision_compat import torchvision
from amc.plugins import imported
from amc.reading import damaged

Builder = Callable[[int, int], nn.Module]

BUILTIN: dict[str, Builder] = {
    **{
        f"cifar:resnet{6 * blocks + 2}": lambda classes, channels, blocks=blocks: CifarResNet(
            blocks, classes, channels
        )  # type: ignore[misc]
        for blocks in (3, 5, 7, 9, 18)
    },
    "cifar:plain20": lambda classes, channels: CifarResNet(3, classes, channels, plain=True),
    "cifar:vgg16_bn": CifarVGG16,
    "digits:resnet8": lambda classes, channels: CifarResNet(1, classes, channels, width=32),
    "mobilenet_v1": MobileNetV1,
}
"""Name -> function of (classes, input channels)."""


def is_known(name: str) -> bool:
    """Whether a network is built in or torchvision's, not a user's own."""
    return name in BUILTIN or name.startswith("torchvision:")


def torchvision_names() -> list[str]:
    """torchvision's classification networks, as ``torchvision:NAME``."""
    names = torchvision.models.list_models(module=torchvision.models)
    return [f"torchvision:{name}" for name in names]


def build_model(name: str, classes: int, channels: int, pretrained: bool = False) -> nn.Module:
    """A network by name: a built-in one, ``torchvision:NAME``, or ``module:callable`` (a user's
    own).

    Raises:
        UserError: there is no such network.
    """
    if name in BUILTIN:
        return BUILTIN[name](classes, channels)
    if name.startswith("torchvision:"):
        return _from_torchvision(name, classes, pretrained)
    if ":" not in name or name.split(":", maxsplit=1)[0] in ("cifar", "digits"):
        raise unknown("model", name, [*BUILTIN, "torchvision:NAME", "module:callable"])
    model = imported(name, "model")()
    if not isinstance(model, nn.Module):
        raise UserError(f"model {name!r} gives a {type(model).__name__}, not an nn.Module")
    return model


def check_size(name: str, classes: int, channels: int, weights: Path) -> None:
    """Refuse a network of ours that a file of weights is far too small for, before it takes memory.

    Raises:
        UserError: it has more parameters than the file has bytes.
    """
    if not is_known(name) or not weights.is_file():
        return
    with torch.device("meta"):
        count = sum(one.numel() for one in build_model(name, classes, channels).parameters())
    if count > weights.stat().st_size:
        raise UserError(
            f"{name!r} has {count:,} parameters, but the weights in {str(weights)!r} are only "
            f"{weights.stat().st_size:,} bytes: they are of another network"
        )


def _from_torchvision(name: str, classes: int, pretrained: bool) -> nn.Module:
    short = name.removeprefix("torchvision:")
    if name not in torchvision_names():
        raise unknown("model", name, torchvision_names())
    builder = torchvision.models.get_model_builder(short)
    extra = (
        {"init_weights": False} if "init_weights" in inspect.signature(builder).parameters else {}
    )
    if not pretrained:
        model: nn.Module = builder(weights=None, num_classes=classes, **extra)
        return model
    weights = torchvision.models.get_model_weights(short).DEFAULT
    if classes != (known := len(weights.meta["categories"])):
        raise UserError(
            f"torchvision's weights of {name!r} tell ImageNet's {known} classes apart, not "
            f"{classes}: give images of all {known}, numbered as there (the folders n01440764, "
            "... in alphabetical order are), or a network that was trained for these"
        )
    try:
        model = builder(weights=weights)
    except OSError as error:
        raise UserError(
            f"the weights of {name!r} could not be downloaded ({error}): put {weights.url} into a "
            "file and name it as weights"
        ) from error
    return model


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict (safetensors, or a torch file of tensors only) into ``model``, in place.
    One that a training script has wrapped is unwrapped, said in the log.

    Raises:
        UserError: the file is missing, damaged, or does not fit; the first mismatches are named.
    """
    if not path.is_file():
        raise UserError(f"the weights file {str(path)!r} does not exist")
    expected = {k: value for k, value in model.state_dict().items() if isinstance(value, Tensor)}
    state, done = read_checkpoint(path, expected)
    if wrong := misfits(state, expected):
        if classes := classes_differ(state, expected):
            raise UserError(
                f"the weights in {str(path)!r} are of a network with {classes[0]} classes, not "
                f"{classes[1]} ({wrong[0]}): train its last layer for these first"
            )
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(
            f"the weights in {str(path)!r} do not fit the network: {'; '.join(wrong[:3])}{more}"
        )
    if done:
        logging.getLogger("amc").warning("the weights in %r: %s", str(path), done)
    with damaged(path):
        model.load_state_dict(state, strict=False)
