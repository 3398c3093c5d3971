"""Where networks and their weights come from."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from amc.errors import UserError, unknown
from amc.network.builtin import CifarResNet, CifarVGG16, MobileNetV1
from amc.network.torchvision_compat import torchvision
from amc.registry import import_object

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
    model = import_object(name, "model")()
    if not isinstance(model, nn.Module):
        raise UserError(f"model {name!r} gives a {type(model).__name__}, not an nn.Module")
    return model


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
    try:
        model = builder(weights="DEFAULT")
    except OSError as error:
        raise UserError(
            f"the weights of {name!r} could not be downloaded ({error}): put them in a file and "
            "name it as weights"
        ) from error
    return model


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict (safetensors, or a torch file of tensors only) into ``model``, in place.

    Raises:
        UserError: the file is missing, damaged, or does not fit; the first mismatches are named.
    """
    if not path.is_file():
        raise UserError(f"the weights file {str(path)!r} does not exist")
    state = _read(path)
    expected = model.state_dict()
    counters = {key for key in expected if key.endswith("num_batches_tracked")}
    wrong = [f"{key} is missing" for key in expected if key not in state and key not in counters]
    wrong += [f"{key} is unknown" for key in state if key not in expected]
    wrong += [
        f"{key} is {tuple(value.shape)}, not {tuple(expected[key].shape)}"
        for key, value in state.items()
        if key in expected and value.shape != expected[key].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(
            f"the weights in {str(path)!r} do not fit the network: {'; '.join(wrong[:3])}{more}"
        )
    model.load_state_dict(state, strict=False)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        return dict(state.get("state_dict", state))
    except (SafetensorError, RuntimeError, EOFError, ValueError, AttributeError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"the weights file {str(path)!r} is damaged or not a weights file: {first}"
        ) from error
    except Exception as error:  # torch's unpickler has errors of its own
        raise UserError(
            f"the weights file {str(path)!r} cannot be read without running code from it"
        ) from error
