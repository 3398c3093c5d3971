"""Let a convolution compute what follows it before its output leaves the cache: a residual sum, an
activation, or both.

The patterns are found in a symbolic trace (torch.fx) and computed by the oneDNN operators that
TorchInductor uses. Where a network cannot be traced, or there is no oneDNN, nothing changes.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from amc.network.kinds import does_as_its_type
from amc.network.layers import evaluating

TOLERANCE = 1e-4  # of the largest output: what another order of summation may change

_ACTIVATIONS: dict[str, tuple[list[float], tuple[Any, ...]]] = {
    "relu": ([], (nn.ReLU, F.relu, torch.relu, "relu", "relu_")),
    "hardtanh": ([0.0, 6.0], (nn.ReLU6, F.relu6)),
    "hardswish": ([], (nn.Hardswish, F.hardswish)),
    "swish": ([], (nn.SiLU, F.silu)),
}
"""oneDNN's name -> its numbers, and what a trace may show for it."""
_SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")


class FusedConv(nn.Module):
    """``activation(conv(x) + other)``; without the sum and without the activation where there is
    none.
    """

    def __init__(self, conv: nn.Conv2d, activation: str = "none") -> None:
        super().__init__()
        self.conv, self.activation = conv, activation

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        conv, name = self.conv, self.activation
        numbers = _ACTIVATIONS[name][0] if name in _ACTIVATIONS else []
        call: Any = torch.ops.mkldnn._convolution_pointwise
        weights: Any = (conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation)
        if other is None:
            result: Tensor = call(x, *weights, conv.groups, name, numbers, "")
        else:
            last = None if name == "none" else name
            result = call.binary(x, other, *weights, conv.groups, "add", None, last, numbers, "")
        return result


def fused(model: nn.Module, example: Tensor) -> nn.Module:
    """``model`` for inference on the CPU, with its convolutions fused with what follows them.

    Args:
        model: shares its weights with the result.
        example: images (n, C, H, W). The result must give what ``model`` gives for them, to within
            rounding; otherwise ``model`` itself is returned.
    """
    if not hasattr(torch.ops.mkldnn, "_convolution_pointwise") or example.device.type != "cpu":
        return model
    with evaluating(model):
        try:
            graph = fx.symbolic_trace(model)
            expected = ShapeProp(graph).propagate(example)
            _rewrite(graph)
            difference = (graph(example) - expected).abs().max()
        except Exception:  # whatever a user's forward may raise on symbolic values
            return model
    return graph if difference <= TOLERANCE * expected.abs().max() else model


def _rewrite(graph: fx.GraphModule) -> None:
    """Replace convolution, sum and activation by one `FusedConv`, where only the last is read."""
    modules = dict(graph.named_modules())
    for node in list(graph.graph.nodes):  # what is left of a folded BatchNorm
        if node.op == "call_module" and type(modules[str(node.target)]) is nn.Identity:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    for conv in list(graph.graph.nodes):
        module = modules.get(str(conv.target)) if conv.op == "call_module" else None
        if module is None or not _is_fusible(conv, module):
            continue
        chain, arguments, activation = [conv], conv.args, "none"
        if (reader := _only_reader(conv)) is not None and (term := _term(reader, conv)) is not None:
            chain, arguments = [conv, reader], (*conv.args, term)
        if (reader := _only_reader(chain[-1])) and (found := _activation(reader, modules)):
            chain, activation = [*chain, reader], found
        if len(chain) == 1:
            continue
        name = f"{conv.name}_fused"
        graph.add_module(name, FusedConv(module, activation))
        with graph.graph.inserting_after(chain[-1]):
            node = graph.graph.call_module(name, arguments)
        node.meta = chain[-1].meta
        chain[-1].replace_all_uses_with(node)
        for replaced in reversed(chain):
            graph.graph.erase_node(replaced)
    graph.recompile()


def _is_fusible(node: fx.Node, module: nn.Module) -> bool:
    """Whether a call is of a convolution that oneDNN can compute with what follows it."""
    if not isinstance(module, nn.Conv2d) or not does_as_its_type(module):
        return False
    known = not isinstance(module.padding, str) and module.padding_mode == "zeros"
    return known and len(node.args) == 1 and not node.kwargs


def _only_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _term(node: fx.Node, conv: fx.Node) -> fx.Node | None:
    """What ``node`` adds to the convolution's output, where both have one shape."""
    if node.target not in _SUMS or len(node.args) != 2 or node.kwargs:
        return None
    terms = [arg for arg in node.args if isinstance(arg, fx.Node) and arg is not conv]
    if len(terms) != 1 or not terms[0].meta.get("tensor_meta"):
        return None
    same = terms[0].meta["tensor_meta"].shape == conv.meta["tensor_meta"].shape
    return terms[0] if same else None


def _activation(node: fx.Node, modules: dict[str, nn.Module]) -> str | None:
    """oneDNN's name for what ``node`` computes."""
    target: Any = node.target
    if node.op == "call_module":
        target = type(modules.get(str(target)))
    elif len(node.args) != 1:
        return None
    return next((name for name, (_, known) in _ACTIVATIONS.items() if target in known), None)
