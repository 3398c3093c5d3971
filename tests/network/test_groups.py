"""Coupled channels found by probing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torch_pruning
from torch import Tensor, nn
from zoo import uneven, zoo_network, zoo_space

from amc.errors import UserError
from amc.network.groups import find_groups
from amc.network.layers import example_input
from amc.network.trace import Network
from amc.spaces.channel import ChannelSpace


def space_of(
    model: nn.Module, shape: tuple[int, ...] = (3, 16, 16), **options: object
) -> ChannelSpace:
    return ChannelSpace(
        Network.of(uneven(model), shape, "test"), {"repair": "none", "min_ratio": 0.1, **options}
    )


def test_option_a_shortcuts_give_the_widths_their_padding_implies() -> None:
    groups, left = find_groups(zoo_network("resnet20"))
    coupled = [group for group in groups if len(group.producers) > 1]
    assert [(group.name, group.size) for group in coupled] == [
        ("conv1", 16),
        ("layer2.0.conv2", 16),
        ("layer3.0.conv2", 32),
    ]
    first = next(
        member
        for member in coupled[0].members
        if (member.layer, member.side) == ("layer2.0.conv2", "out")
    )
    assert sorted(channel for atom in first.channels for channel in atom) == list(range(8, 24))
    assert set(left) == {"linear"}


@pytest.mark.parametrize(
    "name", ["plain20", "vgg16_bn", "tv_resnet18", "tv_resnet50", "tv_mobilenet_v2", "tv_googlenet"]
)
def test_groups_agree_with_torch_pruning_where_it_is_right(name: str) -> None:
    network = zoo_network(name)
    model = network.model
    names = {module: key for key, module in model.named_modules()}
    graph = torch_pruning.DependencyGraph().build_dependency(
        model, example_input(model, network.input_shape)
    )
    groups, _ = find_groups(network)
    for group in groups:
        root = model.get_submodule(group.producers[0])
        theirs = graph.get_pruning_group(root, torch_pruning.prune_conv_out_channels, idxs=[0])
        mixing = {
            names[item.dep.target.module]
            for item in theirs
            if isinstance(item.dep.target.module, (nn.Conv2d, nn.Linear))
            and item.dep.target.module.weight.dim() > 0
            and not (
                isinstance(item.dep.target.module, nn.Conv2d) and item.dep.target.module.groups > 1
            )
        }
        assert mixing == set(group.producers) | set(group.consumers), group.name


class Gate(nn.Module):
    """Squeeze and excitation with a saturating gate, then a concatenation and a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.b = nn.Conv2d(8, 6, 3, padding=1)
        self.c = nn.Conv2d(14, 8, 3, padding=1)
        self.head = nn.Linear(8 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        x = x * F.hardsigmoid(self.excite(torch.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        x = torch.cat([x, self.b(x)], dim=1)
        return self.head(F.adaptive_max_pool2d(F.hardswish(self.c(x)), 4).flatten(1))


def test_gates_concatenation_and_flatten() -> None:
    space = space_of(Gate())
    found = {group.name: set(group.producers) for group in find_groups(space.network)[0]}
    assert found == {"a": {"a", "excite"}, "squeeze": {"squeeze"}, "b": {"b"}, "c": {"c"}}
    assert {decision.name for decision in space.decisions} == set(found)
    head = next(
        m
        for g in find_groups(space.network)[0]
        if g.name == "c"
        for m in g.members
        if m.layer == "head"
    )
    assert all(len(features) == 16 for features in head.channels)


class Odd(nn.Module):
    """Everything that must be left alone, each between two convolutions."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.first, self.between, self.second = nn.Conv2d(3, 8, 3), between, nn.Conv2d(8, 6, 3)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(self.between(self.first(x))))).mean((2, 3))


class Constant(nn.Module):
    """Pads eight channels with a constant one: cutting would shift it."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :4], torch.ones_like(x[:, :4])], dim=1)


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(1, keepdim=True)


@pytest.mark.parametrize("between", [Constant(), Mean(), nn.Softmax(dim=1)])
def test_what_cannot_be_cut_is_left_alone_and_named(between: nn.Module) -> None:
    space = space_of(Odd(between))
    assert [decision.name for decision in space.decisions] == ["second"]
    assert space.left_alone["first"]
    assert set(space.left_alone) == {"first", "head"}


def test_a_shuffle_is_left_alone_but_the_rest_is_decided() -> None:
    space = zoo_space("tv_shufflenet_v2")
    assert len(space.decisions) >= 16
    assert any("stage2" in name for name in space.left_alone)


def test_grouped_convolutions_lose_whole_groups() -> None:
    space = zoo_space("tv_resnext50")
    first = next(d for d in space.decisions if d.name == "layer1.0.conv1")
    assert first.choices[-1] == 128 and all(choice % 4 == 0 for choice in first.choices)
    smaller = space.apply({first.name: first.choices[0]})
    grouped = smaller.get_submodule("layer1.0.conv2")
    assert grouped.groups == first.choices[0] // 4 and grouped.weight.shape[1] == 4


def test_depthwise_with_a_multiplier() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.Conv2d(8, 24, 3, groups=8),
        nn.ReLU(),
        nn.Conv2d(24, 5, 1),
        nn.Flatten(),
        nn.Linear(720, 3),
    )
    space = space_of(model)
    assert [(d.name, d.choices[-1]) for d in space.decisions] == [("0", 8), ("3", 5)]
    assert space.apply({"0": 2})[1].weight.shape == (6, 1, 3, 3)


def test_coupled_false_decides_only_what_one_layer_writes() -> None:
    space = ChannelSpace(zoo_network("resnet20"), {"repair": "none", "coupled": False})
    assert len(space.decisions) == 9
    assert space.left_alone["conv1"] == "its channels are coupled and coupled is false"


def test_the_network_is_as_it_was_after_probing() -> None:
    model = Gate()
    own_forward = {name: "forward" in module.__dict__ for name, module in model.named_modules()}
    network = Network.of(model, (3, 16, 16))
    before = {key: value.clone() for key, value in network.model.state_dict().items()}
    image = example_input(network.model, (3, 16, 16))
    expected = network.model(image)
    find_groups(network)
    assert torch.equal(network.model(image), expected)
    assert {
        name: "forward" in module.__dict__ for name, module in network.model.named_modules()
    } == own_forward
    assert all(torch.equal(before[key], value) for key, value in network.model.state_dict().items())


def test_a_network_for_one_image_only_is_refused() -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Linear(4 * 64, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).view(1, -1))

    with pytest.raises(UserError, match="cannot be probed"):
        find_groups(Network.of(One(), (3, 8, 8), "one"))
