"""A user's own kind of layer: found, counted, cut and masked as ours are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from own_kinds import Gated, GatedKind, Swapped, SwappedKind
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from amc.errors import UserError
from amc.network.growth import Growth
from amc.network.kinds import Kind, kind_of
from amc.network.layers import evaluating, example_input
from amc.network.trace import Network
from amc.spaces.channel import ChannelSpace


def around(layer: nn.Module, kind: Kind) -> Network:
    """A layer of 12 inputs between two linear ones."""
    torch.manual_seed(0)
    width = kind.widths(layer)[1]
    parts = [nn.Linear(6, 12), nn.ReLU(), layer, nn.ReLU(), nn.Linear(width, 8), nn.Linear(8, 4)]
    return Network.of(nn.Sequential(*parts), (6,), "around", [kind])


def test_law_10_count_is_metal() -> None:
    """The table counts what PyTorch does, of the whole network and of a smaller one."""
    network = around(Gated(12, 20), GatedKind())
    space = ChannelSpace(network, None, example_input(network.model, (6,), batch=64))
    assert {name for d in space.decisions for name in d.layers} >= {"0", "2"}
    for strategy in ({}, {"0": 5}, {"2": 7}, {"0": 5, "2": 7}, space.smallest):
        paper, metal = space.resize(strategy), space.apply(strategy)
        with evaluating(metal), FlopCounterMode(display=False) as counter:
            metal(example_input(metal, (6,)))
        assert paper.macs == counter.get_total_flops() // 2
        assert paper.params == sum(parameter.numel() for parameter in metal.parameters())


def test_law_6_cut_is_mask_by_hand() -> None:
    """What a group cuts of such a layer is what zeros in its inputs say, and nothing else."""
    network = around(Gated(12, 20), GatedKind())
    space = ChannelSpace(network, {"repair": "none"})
    cuts = space.cuts({"0": 5, "2": 7})
    whole, smaller = network.model, space.apply({"0": 5, "2": 7})
    x = example_input(whole, (6,), batch=4)
    with evaluating(whole), evaluating(smaller):
        hidden = torch.relu(whole[0](x))  # type: ignore[index]
        hidden[:, cuts["2"]["in"]] = 0
        hidden = torch.relu(whole[2](hidden))  # type: ignore[index]
        hidden[:, cuts["4"]["in"]] = 0
        wanted = whole[5](whole[4](hidden))  # type: ignore[index]
        assert torch.allclose(smaller(x), wanted, atol=1e-5)


def test_repair_solves_for_its_weights() -> None:
    """Least squares from the Gram matrix is lstsq on its inputs; a layer whose outputs are no
    product is left as it was cut.
    """
    for layer, kind, solved in (
        (Swapped(12, 12), SwappedKind(), True),
        (Gated(12, 12), GatedKind(), False),
    ):
        network = around(layer, kind)
        assert ("2" in network.solvable) == solved
        images = example_input(network.model, (6,), batch=200)
        spaces = [ChannelSpace(network, {"repair": r}, images) for r in ("none", "sequential")]
        plain, repaired = (space.apply({"0": 6}) for space in spaces)
        with evaluating(network.model), torch.no_grad():
            wanted = network.model[:3](images)  # type: ignore[index]
            errors = [(m[:3](images) - wanted).square().mean() for m in (plain, repaired)]
        assert bool(errors[1] < 0.9 * errors[0]) == solved


def test_growth_is_exact() -> None:
    """A sum of in, out and in x out is found from four costs; what does not grow is constant."""

    def cost(ins: int, outs: int) -> int:
        return 7 + 3 * ins + 5 * outs + 2 * ins * outs

    growth = Growth.through((cost(9, 8), cost(5, 8), cost(9, 4), cost(5, 4)), (9, 8), (4, 4))
    assert all(growth.at(i, o) == cost(i, o) for i in range(1, 9) for o in range(1, 8))
    assert Growth.through((6, 6, 6, 6), (1, 1), (0, 0)).at(1, 1) == 6


def test_a_kind_goes_before_ours_and_with_copies() -> None:
    class Mine(Kind):
        name = "channelwise"

        def matches(self, module: nn.Module) -> bool:
            return isinstance(module, nn.BatchNorm1d)

        def widths(self, module: Any) -> tuple[int, int]:
            return module.num_features, module.num_features

        def cut(self, module: nn.Module, gone_in: list[int], gone_out: list[int]) -> None:
            raise ValueError("it loses none")

    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    network = Network.of(model, (6,), "n", [Mine()])
    assert isinstance(kind_of(copy.deepcopy(network.model)[1]), Mine)  # type: ignore[index]
    assert network.table["1"].kind == "other"
    assert network.table.alone["1"] == "it cannot be cut: it loses none"
    assert Network.of(model, (6,)).table["1"].kind == "channelwise"


def test_a_layer_of_layers_is_refused() -> None:
    class OfLayers(GatedKind):
        def matches(self, module: nn.Module) -> bool:
            return isinstance(module, nn.ModuleList)

    with pytest.raises(UserError, match="the kind OfLayers matches '0', which is made of layers"):
        Network.of(nn.Sequential(nn.ModuleList([nn.Linear(3, 3)])), (3,), "n", [OfLayers()])
