"""Convolutions over one, two and three axes, transposed and grouped ones, and those that pad in a
forward of their own: every law that a kind of layer has to keep.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from zoo import uneven

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
from amc.repair.rows import Sampler, flat_weight, set_flat_weight
from amc.spaces.channel import ChannelSpace
from amc.spaces.lowrank import LowRankSpace
from amc.surgery.cut import cut, masking
from amc.testing import check_bound_space, random_strategy


def signals() -> nn.Module:
    """Of sounds: (2, 40)."""
    return nn.Sequential(
        nn.Conv1d(2, 12, 5, stride=2, padding=2, bias=False),
        nn.BatchNorm1d(12),
        nn.ReLU(),
        nn.Conv1d(12, 12, 3, padding=2, dilation=2, groups=6),
        nn.ReLU(),
        nn.Conv1d(12, 16, 3, padding="same", padding_mode="circular", bias=False),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.ConvTranspose1d(16, 10, 4, stride=2, padding=1, output_padding=1, bias=False),
        nn.BatchNorm1d(10),
        nn.ReLU(),
        nn.Conv1d(10, 8, 3),
        nn.AdaptiveAvgPool1d(2),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


def volumes() -> nn.Module:
    """Of scans: (1, 6, 7, 8)."""
    return nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm3d(8),
        nn.ReLU(),
        nn.Conv3d(8, 12, (1, 2, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
        nn.ReLU(),
        nn.ConvTranspose3d(12, 12, 2, stride=2, groups=4, bias=False),
        nn.BatchNorm3d(12),
        nn.ReLU(),
        nn.Conv3d(12, 6, 1),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )


class UNet(nn.Module):
    """Down, up by transposed convolutions (one of them grouped), with concatenations: (3, 16, 16)
    to a map of 4 channels, as many pixels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = self._block(3, 8)
        self.second = self._block(8, 16)
        self.bottom = self._block(16, 24)
        self.up = nn.ConvTranspose2d(24, 12, 2, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.right = self._block(28, 16)
        self.last_up = nn.ConvTranspose2d(16, 8, 3, 2, 1, output_padding=1, groups=4)
        self.last = self._block(16, 8)
        self.head = nn.Conv2d(8, 4, 1)

    @staticmethod
    def _block(inputs: int, outputs: int) -> nn.Module:
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        one = self.first(x)
        two = self.second(F.max_pool2d(one, 2))
        up = F.relu(self.norm(self.up(self.bottom(F.max_pool2d(two, 2)))))
        up = self.last_up(self.right(torch.cat((two, up), 1)))
        return self.head(self.last(torch.cat((F.relu(up), one), 1)))


class SameConv(nn.Conv2d):
    """Pads as TensorFlow does: as much as the size asks for, more behind than in front."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for size, kernel, step in zip(x.shape[2:], self.kernel_size, self.stride, strict=True):
            total = max((-(-size // step) - 1) * step + kernel - size, 0)
            pads = [total // 2, total - total // 2, *pads]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride)


class Standardised(nn.Conv2d):
    """Its weights are not what it computes with."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


def padding_itself() -> nn.Module:
    """(3, 15, 14)."""
    return nn.Sequential(
        SameConv(3, 12, 3, stride=2, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        SameConv(12, 16, (2, 3)),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 56, 5),
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "signals": (signals, (2, 40)),
    "volumes": (volumes, (1, 6, 7, 8)),
    "unet": (UNet, (3, 16, 16)),
    "padding itself": (padding_itself, (3, 15, 14)),
}


@cache
def network_of(name: str) -> Network:
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    return Network.of(uneven(build()), shape, name)


def space_of(name: str, repair: str = "none") -> ChannelSpace:
    network = network_of(name)
    images = example_input(network.model, network.input_shape, batch=96, seed=5)
    return ChannelSpace(network, {"repair": repair, "min_ratio": 0.3}, images)


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


@pytest.mark.parametrize("name", NETWORKS)
def test_repair_helps(name: str) -> None:
    image = example_input(network_of(name).model, network_of(name).input_shape, batch=64, seed=6)

    def error(repair: str) -> float:
        space = space_of(name, repair)
        new, old = space.apply(space.uniform(0.6)), space.network.model
        with evaluating(new), evaluating(old):
            got, expected = new(image), old(image)
        return float((got - expected).square().mean())

    none, sequential = error("none"), error("sequential")
    assert sequential < 0.8 * none


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(3, 4, 3, 2, 2, 2),
        nn.Conv1d(3, 4, 4, padding="same", padding_mode="replicate"),
        nn.Conv3d(3, 4, (1, 2, 3), (2, 1, 2), (0, 1, 1)),
        nn.Conv3d(3, 4, 3, padding=(1, 0, 2), padding_mode="circular"),
        nn.ConvTranspose1d(3, 4, 5, 3, 2, 1),
        nn.ConvTranspose1d(3, 4, 3, 2, 0, 1, dilation=3),
        nn.ConvTranspose2d(3, 4, (2, 3), (2, 1), (0, 1)),
        nn.ConvTranspose2d(3, 4, 1, 2),
        nn.ConvTranspose3d(3, 4, 2, 2, dilation=(2, 1, 1)),
        SameConv(3, 4, (3, 2), 2),
    ],
    ids=str,
)
def test_rows_are_what_the_layer_reads(layer: nn.Module) -> None:
    """Rows times the flat weights are the layer's own outputs, at every sampled position."""
    kind, size = kind_of(layer), (7, 6, 8)[: layer.weight.dim() - 2]
    assert kind is not None and kind.by_its_weights(layer, size)
    sampler, x = Sampler(images=4, positions=9), torch.randn(4, 3, *size)
    rows, weight = sampler.inputs("layer", layer, x), flat_weight(layer)
    got = rows.double() @ weight.T + layer.bias
    expected = sampler.outputs("layer", layer, layer(x)).double()
    assert torch.allclose(got, expected, atol=1e-5)
    assert kind.output_shape(layer, tuple(x.shape)) == tuple(layer(x).shape)
    set_flat_weight(layer, 2 * weight)
    assert torch.equal(flat_weight(layer), 2 * weight)


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


def test_a_layer_that_computes_with_other_weights_is_not_solved_for() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Standardised(8, 6, 3), nn.ReLU())
    network = Network.of(model.append(nn.Conv2d(6, 4, 3)), (3, 12, 12))
    assert network.solvable == {"0", "4"}


class Windows(nn.Module):
    """A linear layer over windows of an image that lie in the batch, image by image or not."""

    def __init__(self, by_image: bool) -> None:
        super().__init__()
        self.by_image = by_image
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x)).unfold(2, 4, 4).unfold(3, 4, 4)
        images, channels, down, across, *_ = x.shape
        order = (0, 2, 3, 4, 5, 1) if self.by_image else (2, 3, 0, 4, 5, 1)
        x = x.permute(order).reshape(images * down * across, 16, channels)
        x = torch.relu(self.second(torch.relu(self.first(x))))
        parts = (images, down * across, 16) if self.by_image else (down * across, images, 16)
        return self.head(x.unflatten(0, parts[:2]).mean((0 if not self.by_image else 1, 2)))


def test_windows_in_the_batch_are_solved_for_where_they_are_image_by_image() -> None:
    torch.manual_seed(0)
    network = Network.of(Windows(True), (3, 8, 8))
    assert network.parts == {"first": 4, "second": 4}
    assert {"first", "second"} <= network.solvable
    mingled = Network.of(Windows(False), (3, 8, 8))
    assert mingled.parts == network.parts and not {"first", "second"} & mingled.solvable
    images = example_input(network.model, network.input_shape, batch=64, seed=5)
    fresh = example_input(network.model, network.input_shape, batch=64, seed=6)

    def error(repair: str) -> float:
        space = ChannelSpace(network, {"repair": repair}, images)
        new, old = space.apply({"first": 8}), network.model
        with evaluating(new), evaluating(old):
            return float((new(fresh) - old(fresh)).square().mean())

    assert max(error("sequential"), error("independent")) < 0.5 * error("none")


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
