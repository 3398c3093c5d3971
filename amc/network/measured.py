"""What layers of a user's own kind cost at any widths: measured at a few.

A layer is run alone, whole and with half of its inputs, of its outputs, and of both; from what that
takes follows how its costs grow (`amc.network.growth`), and a fifth run tells whether they do. One
whose inputs and outputs live or die together has three runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from amc.errors import first_line
from amc.network.copying import copied
from amc.network.growth import Growth
from amc.network.kinds import Kind, kind_of
from amc.network.kinds.base import kept, own_numel
from amc.network.layers import LayerSpec, LayerTable, evaluating
from amc.network.recording import Recorder

Cut = tuple[list[int], list[int]]
"""Input and output channels that go, ascending."""


def with_growth(model: nn.Module, table: LayerTable, image: Tensor) -> LayerTable:
    """The table of a network in which layers whose costs are measured know how these grow. Those
    whose costs do not are left alone.

    Args:
        model: of which the table is.
        table: as it was traced.
        image: (1, ...), as it was traced.
    """
    modules = dict(model.named_modules())
    measured = {
        spec.name: modules[spec.name.split("@")[0]]
        for spec in table
        if spec.kind in ("own", "channelwise")
    }
    measured = {name: m for name, m in measured.items() if _kind(m).facts(m) is None}
    if not measured:
        return table
    inputs = _inputs(model, {name.split("@")[0] for name in measured}, image)
    found = {name: _growth(module, inputs[name]) for name, module in measured.items()}
    why = {name.split("@")[0]: one for name, one in found.items() if isinstance(one, str)}
    layers = tuple(_grown(s, found[s.name]) if s.name in found else s for s in table)
    return replace(table, layers=layers, alone={**why, **table.alone})


def _grown(spec: LayerSpec, growth: tuple[Growth, Growth] | str) -> LayerSpec:
    if isinstance(growth, str):
        return replace(spec, kind="other", in_channels=0, out_channels=0)
    return replace(spec, growth=growth)


def _kind(module: nn.Module) -> Kind:
    kind = kind_of(module)
    assert kind is not None
    return kind


def _inputs(model: nn.Module, layers: set[str], image: Tensor) -> dict[str, Tensor]:
    """What every call of some layers reads, by the call's name in the table."""
    found: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()

    def noting(name: str) -> Callable[[nn.Module, Any], None]:
        def note(module: nn.Module, inputs: Any) -> None:
            calls[name] += 1
            number = calls[name]
            found[name if number == 1 else f"{name}@{number}"] = inputs[0].clone()

        return note

    handles = [model.get_submodule(n).register_forward_pre_hook(noting(n)) for n in sorted(layers)]
    try:
        with evaluating(model):
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _growth(module: nn.Module, x: Tensor) -> tuple[Growth, Growth] | str:
    """Of the MACs and the parameters of a layer; why there is none, where its costs do not grow so
    or it cannot be cut.
    """
    widths = _kind(module).widths(module)
    cuts = half_cuts(_kind(module), module)
    try:
        costs = [_cost(module, x, one) for one in cuts]
    except Exception as error:  # a user's code may raise anything
        return f"it cannot be cut: {first_line(error)}"
    *four, last = zip(cuts, costs, strict=True)
    lost = len(four[1][0][0]), len(four[2][0][1])
    found = []
    for which in (0, 1):
        whole, inward, outward, both = (cost[which] for _, cost in four)
        growth = Growth.through((whole, inward, outward, both), widths, lost)
        (gone_in, gone_out), cost = last
        if growth.at(widths[0] - len(gone_in), widths[1] - len(gone_out)) != cost[which]:
            return (
                "its costs do not follow from its widths: they are no sum of in, out and in x out"
            )
        found.append(growth)
    return found[0], found[1]


def half_cuts(kind: Kind, module: nn.Module) -> tuple[Cut, Cut, Cut, Cut, Cut]:
    """None; half of the inputs; half of the outputs; half of both; another part of both. Where they
    live or die together: half of both where it is half of the inputs, none where of the outputs.
    """
    atoms = atoms_of(kind, module)
    few, many = atoms[1::2], [atom for i, atom in enumerate(atoms) if i % 4]
    if kind.name == "channelwise" or kind.links(module):
        return _joined([]), _joined(few), _joined([]), _joined(few), _joined(many)
    inward, outward = ([a for a in atoms if a[side]] for side in (0, 1))
    ins, outs = inward[1::2], outward[1::2]
    more = [a for part in (inward, outward) for i, a in enumerate(part) if i % 4]
    return _joined([]), _joined(ins), _joined(outs), _joined(ins + outs), _joined(more)


def atoms_of(kind: Kind, module: nn.Module) -> list[Cut]:
    """The channels of a layer that live or die together, by its links and ties alone."""
    inputs, outputs = kind.widths(module)
    links = kind.links(module)
    if kind.name == "channelwise":
        links = [(channel, channel) for channel in range(outputs)]
    pairs = [(one, inputs + other) for one, other in links]
    pairs += [(inputs + one, inputs + other) for one, other in kind.ties(module)]
    left, right = zip(*pairs, strict=True) if pairs else ((), ())
    total = inputs + outputs
    graph = coo_matrix((np.ones(len(pairs)), (left, right)), shape=(total, total))
    count, labels = connected_components(graph, directed=False)
    atoms: list[Cut] = [([], []) for _ in range(count)]
    for channel, label in enumerate(labels):
        is_output = channel >= inputs
        atoms[label][is_output].append(channel - inputs * is_output)
    return atoms


def _joined(atoms: Sequence[Cut]) -> Cut:
    ins, outs = ([channel for atom in atoms for channel in atom[side]] for side in (0, 1))
    return sorted(ins), sorted(outs)


def cut_alone(module: nn.Module, x: Tensor, gone: Cut) -> tuple[nn.Module, Tensor]:
    """A smaller copy of a layer, and an input that fits it.

    Raises:
        ValueError: it cannot lose these.
    """
    kind, smaller = _kind(module), copied(module)
    if any(gone):
        kind.cut(smaller, *asked(kind, gone))
    stay = kept(kind.widths(module)[0], gone[0]).to(x.device)
    return smaller, x.index_select(kind.dim(module), stay)


def asked(kind: Kind, gone: Cut) -> Cut:
    """What a kind is told of channels that go: of a channelwise layer those of its output."""
    return ([], gone[1]) if kind.name == "channelwise" else gone


def _cost(module: nn.Module, x: Tensor, gone: Cut) -> tuple[int, int]:
    """MACs and parameters of a layer without some channels."""
    smaller, x = cut_alone(module, x, gone)
    recorder = Recorder(smaller)
    with evaluating(smaller), recorder:
        smaller(x)
    return recorder.macs, own_numel(smaller)
