"""Conformance of a kind of layer: what its methods promise, on its own example and on small
networks in which this stands between two layers, before the head, and twice in a sum.

For plug-in authors: ``check_kind(MyKind)`` in a test, or ``amc check my_module:MyKind``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from amc.base import own_kind
from amc.errors import UserError, first_line, kind_and_line
from amc.network.copying import copied
from amc.network.kinds import Kind
from amc.network.kinds.base import kept
from amc.network.layers import evaluating, example_input
from amc.network.measured import asked, atoms_of
from amc.network.trace import Network
from amc.randomness import own_randomness
from amc.repair.rows import Sampler, flat_weight, set_flat_weight
from amc.spaces.channel import ChannelSpace
from amc.surgery.verify import apart
from amc.testing import check_bound_space
from amc.testing_examples import Example, networks_around, told

ALIKE = 1e-4  # of the largest output: rounding is less, a wrong channel more
STRANGERS = (
    nn.Conv2d(4, 4, 3),
    nn.ConvTranspose2d(4, 4, 3),
    nn.Linear(4, 4),
    nn.BatchNorm2d(4),
    nn.GroupNorm(2, 4),
    nn.LayerNorm(4),
    nn.PReLU(4),
    nn.ReLU(),
    nn.Identity(),
    nn.Sequential(nn.Linear(4, 4)),
)


@own_randomness()
def check_kind(kind_class: type[Kind]) -> list[str]:
    """Check a kind of layer.

    Returns:
        What was checked, a line each.

    Raises:
        AssertionError: the first promise that is broken, in a sentence.
        UserError: the class is no kind.
    """
    kind = own_kind(kind_class, kind_class.__name__)
    try:
        _check_matches(kind)
        example = Example.of(kind)
    except (AssertionError, UserError) as error:
        raise AssertionError(f"{_MATCHES}: {error}") from error
    checks: list[tuple[str, Callable[[Example], None]]] = [
        ("`widths` are those of its input and its output", _check_widths),
        ("it computes the same again, and each image of a batch on its own", _check_apart),
        ("`cut` gives the widths that it should, and a layer that runs", _check_cut),
        ("cut = mask: a smaller layer computes what the whole one does of `masked`", _check_mask),
        ("`links` are all that lets its channels pass", _check_links),
        ("`weight` is (out, in, ...) and is cut with the channels", _check_weight),
        ("what repair solves for: outputs are rows of its input times `weight`", _check_rows),
    ]
    for title, check in checks:
        try:
            check(example)
        except AssertionError as error:
            raise AssertionError(f"{title}: {error}") from error
        except Exception as error:  # a user's code may raise anything
            raise AssertionError(f"{title}: {kind_and_line(error)}") from error
    done = [_MATCHES, *(title for title, _ in checks)]
    for network in networks_around(example):
        done += _check_network(network, example)
    return done


_MATCHES = "it matches its example, and no layer of PyTorch's"


def _check_matches(kind: Kind) -> None:
    try:
        layer, shape = kind.example()
    except NotImplementedError as error:
        raise AssertionError(
            "it has no `example`: a method that gives a layer and the shape of one input"
        ) from error
    assert isinstance(layer, nn.Module), f"`example` gives a {type(layer).__name__}, no layer"
    assert all(isinstance(size, int) and size > 0 for size in shape), (
        f"`example` gives the input shape {shape}: positive whole numbers are expected"
    )
    assert kind.matches(layer), "`matches` says no to the layer that `example` gives"
    for other in STRANGERS:
        assert not kind.matches(other), f"`matches` says yes to a {type(other).__name__}, too"


def _check_widths(example: Example) -> None:
    kind, layer, x = example.kind, example.layer, example.x
    output = example.run(layer, x)
    assert x.dim() >= kind.least_dims(layer), (
        f"`least_dims` is {kind.least_dims(layer)}, but the example's input has {x.dim()}"
    )
    assert output.dim() == x.dim(), (
        f"its output has {output.dim()} dimensions, its input has {x.dim()}"
    )
    assert example.dim in (1, x.dim() - 1), "`dim` is neither 1 nor the last: see `channel_dim`"
    found = x.shape[example.dim], output.shape[example.dim]
    said = tuple(kind.widths(layer))
    assert said == found, f"it says {said}, its input and output have {found} channels"
    assert kind.name != "channelwise" or found[0] == found[1], (
        f"it is channelwise, but has {found[0]} input and {found[1]} output channels"
    )


def _check_apart(example: Example) -> None:
    output = example.run(example.layer, example.x)
    again = example.run(example.layer, example.x)
    assert apart(again, output) <= ALIKE, "called again with the same input it gives another output"
    alone = torch.cat([example.run(example.layer, x) for x in example.x.split(1)])
    assert alone.shape == output.shape and apart(alone, output) <= ALIKE, (
        "what it computes of an image depends on the other images of the batch"
    )


def _check_cut(example: Example) -> None:
    kind, whole = example.kind, example.kind.widths(example.layer)
    before = {key: tuple(value.shape) for key, value in example.layer.state_dict().items()}
    for gone in example.cuts():
        smaller, x = example.smaller(gone)
        wanted = whole[0] - len(gone[0]), whole[1] - len(gone[1])
        found = tuple(kind.widths(smaller))
        assert found == wanted, f"without {told(gone)} `widths` are {found}, not {wanted}"
        assert kind.matches(smaller), f"without {told(gone)} `matches` says no to it"
        try:
            output = example.run(smaller, x)
        except Exception as error:  # a user's code may raise anything
            raise AssertionError(
                f"without {told(gone)} it does not run: {first_line(error)}"
            ) from error
        width = output.shape[example.dim]
        assert width == wanted[1], f"without {told(gone)} its output has {width} channels"
    after = {key: tuple(value.shape) for key, value in example.layer.state_dict().items()}
    assert before == after, "cutting a copy changes the layer that it was copied from"


def _check_mask(example: Example) -> None:
    kind, layer = example.kind, example.layer
    for gone in example.cuts():
        smaller, x = example.smaller(gone)
        masked = kind.masked(copied(layer), example.x.clone(), *asked(kind, gone))
        assert masked.shape == example.x.shape, "`masked` gives another shape than it is given"
        stay = kept(kind.widths(layer)[1], gone[1])
        wanted = example.run(layer, masked).index_select(example.dim, stay)
        difference = apart(example.run(smaller, x), wanted)
        assert difference <= ALIKE, (
            f"without {told(gone)} the outputs that stay differ, by {difference:.2g} of the largest"
        )


def _check_links(example: Example) -> None:
    kind, layer, x = example.kind, example.layer, example.x
    inputs, outputs = kind.widths(layer)
    for one, other in kind.links(layer):
        assert 0 <= one < inputs and 0 <= other < outputs, f"it has no link ({one}, {other})"
    if kind.name == "channelwise" or kind.mixes(layer):
        return
    assert kind.links(layer), "it neither mixes channels nor links any: nothing could be decided"
    whole = example.run(layer, x)
    for gone_in, gone_out in atoms_of(kind, layer):
        moved = x.index_fill(example.dim, torch.tensor(gone_in), 3.0)
        others = kept(outputs, gone_out)
        stay = (t.index_select(example.dim, others) for t in (example.run(layer, moved), whole))
        changed = others[(torch.sub(*stay).abs().movedim(example.dim, 0).flatten(1) > 0).any(1)]
        assert not len(changed), (
            f"the inputs {gone_in} reach the outputs {changed.tolist()}, to which no link ties them"
        )


def _check_weight(example: Example) -> None:
    kind, layer = example.kind, example.layer
    if not kind.mixes(layer):
        return
    weight = kind.weight(layer).detach()
    inputs, outputs = kind.widths(layer)
    assert tuple(weight.shape[:2]) == (outputs, inputs), (
        f"it is {tuple(weight.shape)}, for {outputs} output and {inputs} input channels"
    )
    for gone in example.cuts():
        smaller, _ = example.smaller(gone)
        stay = weight[kept(outputs, gone[1])][:, kept(inputs, gone[0])]
        found = kind.weight(smaller).detach()
        assert found.shape == stay.shape and torch.equal(found, stay), (
            f"without {told(gone)} it is not that of the channels which stay"
        )


def _check_rows(example: Example) -> None:
    kind, layer, x = example.kind, example.layer, example.x
    size = tuple(x.shape[2:]) if example.dim == 1 else ()
    if not kind.mixes(layer) or not kind.by_its_weights(layer, size):
        return
    output, sampler = example.run(layer, x), Sampler(len(x))
    assert kind.output_shape(layer, tuple(x.shape)) == output.shape, "`output_shape` is another"
    rows, wanted = sampler.inputs("", layer, x), sampler.outputs("", layer, output)
    found = rows.double() @ flat_weight(layer).T
    if isinstance(bias := getattr(layer, "bias", None), Tensor):
        found += bias.detach().double()
    assert apart(found, wanted.double()) <= ALIKE, "they are not"
    silent = copied(layer)
    set_flat_weight(silent, torch.zeros_like(flat_weight(layer)))
    assert not flat_weight(silent).any(), "`weight` is no view of the parameters"


def _check_network(network: Network, example: Example) -> list[str]:
    """What spaces promise, and that the layer's channels are decided."""
    names = {name for name in network.table.by_name if name == "2" or name.startswith("2.")}
    costs = f"{network.name}: its costs are what PyTorch counts, and follow from its widths"
    for name in names:
        why = network.table.alone.get(name, "")
        assert network.table[name].kind != "other", f"{costs}: {why}"
    with evaluating(network.model), FlopCounterMode(display=False) as counter:
        network.model(example_input(network.model, network.input_shape))
    assert network.table.macs == counter.get_total_flops() // 2, (
        f"{costs}: {counter.get_total_flops() // 2} MACs, {network.table.macs} in the table"
    )
    calibration = example_input(network.model, network.input_shape, batch=64)
    space = ChannelSpace(network, None, calibration)
    title = f"{network.name}: its channels are decided"
    changed = {layer for decision in space.decisions for layer in space.reshapes(decision)}
    left = [f"{name!r} is left alone ({why})" for name, why in space.left_alone.items()]
    producers = {name for d in space.decisions for name in d.layers}
    wanted = {"0"} | (names if example.kind.mixes(example.layer) else set())
    assert names <= changed and wanted <= producers, f"{title}: {'; '.join(left) or 'they are not'}"
    return [costs, title, *check_bound_space(space)]
