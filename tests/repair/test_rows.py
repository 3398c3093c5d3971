"""What a layer reads, as rows for least squares."""

from __future__ import annotations

import pytest
import torch
from convolutions import NETWORKS, SameConv, network_of, space_of
from torch import Tensor, nn

from amc.network.kinds import kind_of
from amc.network.layers import evaluating, example_input
from amc.network.trace import Network
from amc.repair.rows import Sampler, flat_weight, set_flat_weight
from amc.spaces.channel import ChannelSpace


class Standardised(nn.Conv2d):
    """Its weights are not what it computes with."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


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
