"""torch-pruning on the same networks, judged by the checks that can be asked of it: README.md
beside this file says how, and why so.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch_pruning as tp
from checks import TOUCHED, compare, macs, params, told
from torch import Tensor, nn
from torch_pruning import _helpers

NORMS = (nn.LayerNorm, nn.GroupNorm)  # what normalises over channels, so that cutting changes it


@dataclass
class Left:
    """The channels of a layer that are still there, by their numbers in the original."""

    inputs: list[int]
    outputs: list[int]


@dataclass
class PeerFindings:
    """What was found of one network; None where the checks have not come to it."""

    verdict: str = ""
    reason: str = ""
    params_ratio: float | None = None
    macs_ratio: float | None = None
    diff: float | None = None
    seconds: float | None = None


def examine(model: nn.Module, images: Tensor, classes: int) -> PeerFindings:
    """Prune ``model`` (which is modified) to half its channels and compare it with its mask."""
    found, start = PeerFindings(), time.perf_counter()
    try:
        _judge(found, model.eval(), images, classes)
    except Exception as error:
        found.verdict, found.reason = "traceback", told(error)
    found.seconds = time.perf_counter() - start
    return found


def _judge(found: PeerFindings, model: nn.Module, images: Tensor, classes: int) -> None:
    original = copy.deepcopy(model)
    left = prune(model, images[:1], classes)
    found.params_ratio = params(model) / params(original)
    found.macs_ratio = macs(model, images) / macs(original, images)
    with torch.no_grad():
        reference = masked(original, model, left)
        differs, holds = compare(model, reference, images, lambda whole, x: whole(x))
    found.diff = differs
    over = sum(isinstance(module, NormOfTheRest) for module in reference.modules())
    note = f"{over} normalisations are over fewer channels" if over else ""
    if not holds:
        found.verdict = "wrong"
        found.reason = f"it is not the original with those channels zero: {differs:.2g}"
    elif found.params_ratio >= 1:
        found.verdict, found.reason = "partly", "nothing is pruned"
    elif 1 - found.macs_ratio < TOUCHED:
        share = f"{1 - found.macs_ratio:.1%} of the MACs are pruned"
        found.verdict, found.reason = "partly", share
    else:
        found.verdict, found.reason = "right", note


def prune(model: nn.Module, image: Tensor, classes: int) -> dict[str, Left]:
    """Half the channels by its high-level pruner, without the classifier, heads named as its
    example for timm does. Returns what is left of each layer that has lost channels.
    """
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    outputs = [m for m in layers if getattr(m, "out_features", 0) == classes]
    outputs += [m for m in layers if getattr(m, "out_channels", 0) == classes]
    attention = [m for m in model.modules() if isinstance(getattr(m, "qkv", None), nn.Linear)]
    heads = {
        m.qkv: m.num_heads for m in attention if isinstance(getattr(m, "num_heads", None), int)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = tp.pruner.BasePruner(
            model,
            image,
            importance=tp.importance.MagnitudeImportance(p=1),
            pruning_ratio=0.5,
            ignored_layers=outputs,
            num_heads=heads,
            in_channel_groups={},  # its defaults are one object for all pruners
            out_channel_groups={},
        )
        left = _follow(pruner, model)
    for module in attention:
        if module.qkv in heads and hasattr(module, "head_dim"):
            module.head_dim = module.qkv.out_features // (3 * module.num_heads)
            if hasattr(module, "attn_dim"):
                module.attn_dim = module.num_heads * module.head_dim
    return left


def _follow(pruner: tp.pruner.BasePruner, model: nn.Module) -> dict[str, Left]:
    """Prune, group after group, and keep account of which channels go: a later group's numbers
    are of a layer that has lost some already.
    """
    names = {module: name for name, module in model.named_modules()}
    left: dict[str, Left] = {}
    graph = pruner.DG
    for group in pruner.step(interactive=True):
        for dependency, found in group:
            module, handler = dependency.target.module, dependency.handler
            name, numbers = names.get(module), set(_helpers.to_plain_idxs(found))
            if name is None or not isinstance(module, (nn.Conv2d, nn.Linear, *NORMS)):
                continue
            layer = left.setdefault(name, _whole(module))
            if graph.is_out_channel_pruning_fn(handler):
                layer.outputs = _without(layer.outputs, numbers)
            if graph.is_in_channel_pruning_fn(handler):
                layer.inputs = _without(layer.inputs, numbers)
        group.prune()
    return left


def _whole(module: nn.Module) -> Left:
    if isinstance(module, nn.Conv2d):
        return Left(list(range(module.in_channels)), list(range(module.out_channels)))
    if isinstance(module, nn.Linear):
        return Left(list(range(module.in_features)), list(range(module.out_features)))
    width = module.num_channels if isinstance(module, nn.GroupNorm) else module.normalized_shape[-1]
    return Left(list(range(width)), list(range(width)))


def _without(channels: list[int], numbers: set[int]) -> list[int]:
    return [channel for number, channel in enumerate(channels) if number not in numbers]


def masked(original: nn.Module, pruned: nn.Module, left: Mapping[str, Left]) -> nn.Module:
    """``original``, modified: every weight that writes or reads a channel that is gone is zero, and
    what normalises over channels does so over those that are left.
    """
    for name, layer in left.items():
        module, whole = original.get_submodule(name), _whole(original.get_submodule(name))
        gone_in = sorted(set(whole.inputs) - set(layer.inputs))
        gone_out = sorted(set(whole.outputs) - set(layer.outputs))
        if isinstance(module, NORMS):
            if gone_out:
                _over_the_rest(module, pruned.get_submodule(name), layer.outputs)
            continue
        module.weight[gone_out] = 0
        if module.bias is not None:
            module.bias[gone_out] = 0
        groups = getattr(module, "groups", 1)
        if groups == len(whole.inputs):  # depthwise: it reads what it writes
            continue
        width_in, width_out = len(whole.inputs) // groups, len(whole.outputs) // groups
        for channel in gone_in:
            group, number = divmod(channel, width_in)
            module.weight[group * width_out : (group + 1) * width_out, number] = 0
    return original


class NormOfTheRest(nn.Module):
    """Mixed into a normalisation: it sees the channels that are left only."""

    rest: nn.Module
    left: Tensor

    def forward(self, x: Tensor) -> Tensor:
        dim = 1 if isinstance(self, nn.GroupNorm) or "2d" in type(self).__name__ else -1
        inside = self.rest(x.index_select(dim, self.left))
        return torch.zeros_like(x).index_copy(dim, self.left, inside)


def _over_the_rest(module: nn.Module, pruned: nn.Module, left: list[int]) -> None:
    kind = type(module)
    module.__class__ = type(kind.__name__, (NormOfTheRest, kind), {})
    module.rest, module.left = copy.deepcopy(pruned), torch.tensor(left)
