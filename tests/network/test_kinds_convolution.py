"""Convolutions over one, two and three axes, transposed and grouped ones, and those that pad in a
forward of their own: every law that a kind of layer has to keep.
"""

from __future__ import annotations

import onnx
import pytest
import torch
from convolutions import NETWORKS, network_of, space_of
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from zoo import uneven

from amc.compute import Compute
from amc.cost.cost import cost_of
from amc.deliver.formats import as_onnx
from amc.device.copies import Copies, layer_input
from amc.device.layer_times import Family
from amc.device.profile import DeviceProfile, LatencyModel, NetworkFit
from amc.errors import UserError
from amc.evaluate.prepare import STEPS, prepared
from amc.network.kinds import kind_of
from amc.network.layers import evaluating, example_input
from amc.network.trace import Network, trace
from amc.spaces.channel import ChannelSpace
from amc.spaces.lowrank import LowRankSpace
from amc.surgery.cut import cut, masking
from amc.testing import check_bound_space, random_strategy


def counted(model: nn.Module, shape: tuple[int, ...]) -> tuple[int, int]:
    """MACs and parameters, by PyTorch."""
    with FlopCounterMode(display=False) as counter, evaluating(model):
        model(example_input(model, shape))
    return counter.get_total_flops() // 2, sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_is_decided_or_reaches_the_output(name: str) -> None:
    space = space_of(name)
    alone = {layer: why for layer, why in space.left_alone.items() if "output" not in why}
    assert not alone
    decided = {layer for decision in space.decisions for layer in decision.layers}
    read = {m.layer for d in space.decisions for m in space._verified[d.name].group.members}
    mixers = {spec.name for spec in space.network.table if spec.kind in ("conv", "linear")}
    assert mixers <= decided | read


@pytest.mark.parametrize("repair", ["sequential", "independent"])
@pytest.mark.parametrize("name", NETWORKS)
def test_laws_of_a_space(name: str, repair: str) -> None:
    assert check_bound_space(space_of(name, repair))


@pytest.mark.parametrize("name", NETWORKS)
def test_law_6_cut_is_mask(name: str) -> None:
    space = space_of(name)
    exact = network_of(name).model.double()
    try:
        image = example_input(exact, space.network.input_shape, batch=2, seed=3)
        for strategy in (space.smallest, random_strategy(space, 0)):
            cuts = space.cuts(strategy)
            smaller = cut(exact, cuts)
            with evaluating(smaller), evaluating(exact):
                got, whole = smaller(image), exact(image)
                with masking(exact, cuts):
                    expected = exact(image)
            assert torch.allclose(got, expected, rtol=1e-7, atol=1e-9 * float(expected.abs().max()))
            assert not torch.allclose(got, whole, rtol=1e-3)
    finally:
        exact.float()


@pytest.mark.parametrize("name", NETWORKS)
def test_law_10_costs_are_pytorchs(name: str) -> None:
    space = space_of(name)
    shape = space.network.input_shape
    for strategy in ({}, space.smallest, space.uniform(0.5)):
        cost = space.cost(strategy)
        assert (cost.macs, cost.params) == counted(space.apply(strategy), shape)


@pytest.mark.parametrize("name", NETWORKS)
def test_law_9_prepared_is_the_network(name: str) -> None:
    network = network_of(name)
    image = example_input(network.model, network.input_shape, batch=3, seed=9)
    fast = prepared(network.model, network)
    with evaluating(network.model):
        expected = network.model(image)
    assert torch.allclose(fast(image), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert network.trusted.steps == len(STEPS) - 1, network.trusted.note
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    assert not any(isinstance(module, norms) for module in fast.modules()), "all are folded"


def test_a_grouped_transposed_convolution_loses_whole_groups() -> None:
    layer = nn.ConvTranspose2d(8, 12, 3, groups=4)
    kind = kind_of(layer)
    assert kind is not None
    assert {(2, 3), (2, 4), (2, 5), (3, 3)} <= set(kind.links(layer))
    x = torch.randn(1, 8, 5, 5)
    before = layer(x)
    with pytest.raises(ValueError, match="whole groups"):
        kind.cut(layer, [2], [3, 4, 5])
    kind.cut(layer, [2, 3], [3, 4, 5])
    stay = [channel for channel in range(12) if channel not in (3, 4, 5)]
    assert torch.allclose(layer(x[:, [0, 1, 4, 5, 6, 7]]), before[:, stay], atol=1e-6)


def test_a_square_transposed_convolution_is_cut_along_the_right_sides() -> None:
    """As many channels in as out: nothing but the dimension tells them apart."""
    layer = nn.ConvTranspose1d(4, 4, 3)
    kind = kind_of(layer)
    assert kind is not None
    x = torch.randn(2, 4, 6)
    x[:, 1] = 0
    before = layer(x)
    kind.cut(layer, [1], [2, 3])
    assert torch.allclose(layer(x[:, [0, 2, 3]]), before[:, :2], atol=1e-6)
    assert layer.weight.shape == (3, 2, 3)


def test_low_rank_leaves_them_alone_and_says_why() -> None:
    alone = {}
    for name in NETWORKS:
        space = LowRankSpace(network_of(name), {"repair": "none"})
        assert space.decisions
        alone |= {f"{name} {layer}": why for layer, why in space.left_alone.items()}
    assert "transposed" in alone["unet up"] and "height and width" in alone["signals 0"]
    assert "height and width" in alone["volumes 3"] and "own" in alone["padding itself 3"]


def test_a_cut_network_is_exported_as_it_is() -> None:
    space = space_of("unet")
    model = space.apply(space.uniform(0.5))
    images = example_input(model, space.network.input_shape, batch=8)
    content, parity = as_onnx(model, images, {})
    assert parity.top1_agreement == 1 and parity.batch is None
    names = {node.op_type for node in onnx.load_from_string(content).graph.node}
    assert {"ConvTranspose", "Concat"} <= names
    assert cost_of(trace(model, space.network.input_shape)).macs < 0.6 * space.cost({}).macs


@pytest.mark.parametrize("name", NETWORKS)
def test_a_layer_is_timed_as_what_it_is(name: str) -> None:
    for spec in network_of(name).table:
        if spec.kind == "conv":
            family, widths = Family.of(spec), (spec.in_channels, spec.out_channels)
            assert Family.model_validate_json(family.model_dump_json()) == family
            copies = Copies(family, widths, 2)
            assert copies(layer_input(family, spec.in_channels, 1)).shape[1] == spec.out_channels
            made = trace(copies, tuple(layer_input(family, spec.in_channels, 1).shape[1:]))
            timed = [one for one in made if one.kind == "conv"]
            assert len(timed) == 2 and {one.transposed for one in timed} == {spec.transposed}
            assert {one.macs for one in timed} == {spec.macs}


def test_a_profile_without_such_a_layer_says_so() -> None:
    spec = network_of("unet").table["up"]
    known = {"kind": "conv", "kernel": spec.kernel, "stride": spec.stride}
    sizes = {"input_size": spec.input_size, "output_size": spec.output_size}
    other = Family.model_validate({**known, **sizes, "followed_by": spec.followed_by})
    times = {"family": other, "in_channels": (24,), "out_channels": (12,)}
    profile = DeviceProfile.model_validate(
        {
            **{"name": "mine", "runtime": "r", "runtime_version": "1", "threads": 1, "batch": 1},
            **{"machine": {}, "date": ""},
            "layers": [{**times, "points": [(24, 12, 1.0, 0.0, 1)]}],
        }
    )
    with pytest.raises(UserError, match="2x2 transposed conv 4x4 to 8x8"):
        LatencyModel(profile, NetworkFit(reference_ms=0.0)).layer_ms(spec)


@pytest.mark.parametrize("repair", ["sequential", "independent"])
@pytest.mark.parametrize("name", NETWORKS)
def test_law_14_the_same_on_every_compute(name: str, repair: str, elsewhere: Compute) -> None:
    build, shape = NETWORKS[name]
    found = []
    for device in (torch.device("cpu"), elsewhere.device):
        torch.manual_seed(0)
        network = Network.of(uneven(build()), shape, name)
        network.model.to(device)
        images = example_input(network.model, shape, batch=64, seed=5)
        space = ChannelSpace(network, {"repair": repair, "min_ratio": 0.3}, images)
        smaller = space.apply(space.uniform(0.6))
        with evaluating(smaller):
            found.append(smaller(images[:4]).cpu())
    assert torch.allclose(*found, rtol=1e-2, atol=1e-3 * float(found[0].abs().max()))
