"""What is cut with the channels around it: laws 1, 2, 5, 6, 10, 11 on networks that contain it."""

from __future__ import annotations

import io

import numpy as np
import onnxruntime
import pytest
import torch
from parts import PARTS, SHAPE, Block, Either, FusedHeads, Plain, Response, Tokens, part
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from amc.network.asking import at_smallest_input, to_ask
from amc.network.decoding import Mixing
from amc.network.groups import find_groups
from amc.network.kinds import kind_of
from amc.network.kinds.across import Across, GlobalResponse
from amc.network.layers import example_input
from amc.network.trace import Network
from amc.spaces.channel import ChannelSpace
from amc.surgery.cut import cut, masking
from amc.surgery.verify import cut_is_mask
from amc.testing import check_bound_space


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def counted(model: nn.Module) -> tuple[int, int]:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images(1))
    return counter.get_total_flops() // 2, sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", PARTS)
def test_the_laws_hold_on_a_network_with(name: str) -> None:
    model = part(name)
    network = Network.of(model, SHAPE, name)
    space = ChannelSpace(network, {"repair": "none", "min_ratio": 0.25})
    assert {decision.name for decision in space.decisions} == PARTS[name][1]
    check_bound_space(space)
    said = space.cost({})
    assert (said.macs, said.params) == counted(model)
    for strategy in (space.smallest, space.uniform(0.5)):
        smaller, said = space.apply(strategy), space.cost(strategy)
        assert (said.macs, said.params) == counted(smaller)
        assert cut_is_mask(network, smaller, space.cuts(strategy))


@pytest.mark.parametrize("name", PARTS)
def test_repair_brings_outputs_nearer_on_a_network_with(name: str) -> None:
    """Law 11: on images that it has not seen."""
    model = part(name)
    network, fresh = Network.of(model, SHAPE, name), images(64, seed=2)
    space = ChannelSpace(network, {"min_ratio": 0.25}, images(200, seed=1))
    strategy = space.uniform(0.6)
    plain = cut(network.model, space.cuts(strategy)).eval()
    with torch.no_grad():
        wanted = model(fresh)
        errors = [float((one(fresh) - wanted).norm()) for one in (plain, space.apply(strategy))]
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize("name", ["fused heads", "multi-head", "convnext", "split in two"])
def test_what_is_left_can_be_exported(name: str) -> None:
    space = ChannelSpace(Network.of(part(name), SHAPE, name), {"repair": "none"})
    smaller, x, file = space.apply(space.uniform(0.5)), images(3), io.BytesIO()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.onnx.export(smaller, (x,), dynamo=True, dynamic_shapes=({0: batch},))
    assert program is not None
    program.save(file)
    session = onnxruntime.InferenceSession(file.getvalue())
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(output, smaller(x).numpy(), atol=1e-4)


def test_a_normalisation_reads_a_cut_channel_as_the_mean_of_the_others() -> None:
    """By hand, for a LayerNorm: the original with such an input is the smaller one."""
    norm, kind = nn.LayerNorm(6), Across()
    nn.init.normal_(norm.weight)
    x, gone, stay = torch.randn(4, 6), [1, 4], [0, 2, 3, 5]
    filled = x.clone()
    filled[:, gone] = x[:, stay].mean(1, keepdim=True)
    wanted = norm(filled)[:, stay]
    assert torch.equal(kind.masked(norm, x, [], gone), filled)
    kind.cut(norm, [], gone)
    torch.testing.assert_close(norm(x[:, stay]), wanted)
    assert norm.normalized_shape == (4,)


def test_where_a_normalisation_has_its_channels_is_asked() -> None:
    assert Across().dim(Either(8, first=True)) == 1
    assert Across().dim(Either(8)) == Across().dim(nn.LayerNorm(8)) == -1
    response = Response(8)
    assert isinstance(kind_of(response), GlobalResponse)
    assert GlobalResponse().dim(response) == -1


class Affine(nn.Module):
    """Two parameters a channel, but no response normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.a + self.b


def test_what_only_looks_like_a_response_normalisation_is_none() -> None:
    assert kind_of(Affine()) is None
    fresh = Response(8)
    nn.init.zeros_(fresh.gamma), nn.init.zeros_(fresh.beta)  # they tell nothing
    assert GlobalResponse().matches(fresh) and bool((fresh.gamma == 0).all())


class InHeads(FusedHeads):
    """A LayerNorm over the channels of each head, which is not over those of a layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.q_norm = nn.LayerNorm(self.head_dim)

    def forward(self, x: Tensor) -> Tensor:
        images, places, _ = x.shape
        qkv = self.qkv(x).reshape(images, places, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = (self.q_norm(q) @ k.transpose(-1, -2)).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(images, places, self.attn_dim))


def test_a_normalisation_inside_a_head_stays_whole() -> None:
    torch.manual_seed(0)
    model = Tokens(16, nn.LayerNorm, Block(16, nn.LayerNorm, InHeads(16, 4))).eval()
    space = ChannelSpace(Network.of(model, SHAPE), {"repair": "none"})
    assert "blocks.0.attention.qkv" in {decision.name for decision in space.decisions}
    smaller = space.apply(space.smallest)
    assert smaller.blocks[0].attention.q_norm.normalized_shape == (4,)  # type: ignore[union-attr,index]
    assert smaller.blocks[0].attention.num_heads < 4  # type: ignore[union-attr,index,operator]


def test_a_mask_is_told_from_a_wrong_cut() -> None:
    """A LayerNorm that keeps its weights as they were is not the original with the channels
    ignored.
    """
    network = Network.of(part("fused heads"), SHAPE)
    space = ChannelSpace(network, {"repair": "none"})
    cuts = space.cuts(space.uniform(0.5))
    smaller = cut(network.model, cuts)
    assert cut_is_mask(network, smaller, cuts)
    with torch.no_grad():
        smaller.get_submodule("norm").weight *= 1.01  # type: ignore[operator]
    assert not cut_is_mask(network, smaller, cuts)


def test_a_mask_leaves_the_network_as_it_was() -> None:
    network = Network.of(part("convnext"), SHAPE)
    space = ChannelSpace(network, {"repair": "none"})
    image = example_input(network.model, SHAPE, batch=2)
    with torch.no_grad():
        before = network.model(image)
        with masking(network.model, space.cuts(space.smallest)):
            assert not torch.equal(network.model(image), before)
        assert torch.equal(network.model(image), before)


def test_a_network_is_asked_at_a_small_input_that_keeps_its_layers() -> None:
    network = Network.of(Plain(nn.MaxPool2d(4)), (3, 64, 64))
    assert at_smallest_input(network).input_shape == (3, 8, 8)  # whose maps are 2 x 2
    fixed = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 30 * 30, 5))
    assert at_smallest_input(Network.of(fixed, (3, 32, 32))).input_shape == (3, 32, 32)


def test_atoms_of_heads_are_whole_heads() -> None:
    groups, _ = find_groups(Network.of(part("separate heads"), SHAPE))
    heads = next(group for group in groups if group.name == "blocks.0.attention.query")
    assert heads.size == 4 and set(heads.producers) == {
        f"blocks.0.attention.{name}" for name in ("query", "key", "value")
    }
    for member in heads.members:
        if member.side in ("in", "out"):
            assert [c for atom in member.channels for c in atom] == list(range(16))


def test_what_mixes_is_named_with_the_normalisations_that_may_be_why() -> None:
    assert Mixing({"b", "a"}).sites == {"a", "b"} and str(Mixing({"b", "a"})) == "a, b"


def test_heads_are_not_coupled_but_the_residual_stream_is() -> None:
    network = Network.of(part("separate heads"), SHAPE)
    space = ChannelSpace(network, {"repair": "none", "coupled": False})
    names = {decision.name for decision in space.decisions}
    assert names == {"blocks.0.attention.query", "blocks.0.wide"}
    assert "coupled" in space.left_alone["patches"]


def test_what_hides_is_lifted_before_a_network_is_asked() -> None:
    """A scale of 1e-6 lets no change behind it be seen, and a fresh one of zero lets nothing pass:
    the same is decided all the same, and the network itself stays as it is.
    """
    for value in (1e-6, 0.0):
        model = part("convnext")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "gamma" in name:
                    parameter.fill_(value)
        network = Network.of(model, SHAPE)
        before = {key: tensor.clone() for key, tensor in network.model.state_dict().items()}
        space = ChannelSpace(network, {"repair": "none"})
        assert {decision.name for decision in space.decisions} == PARTS["convnext"][1]
        for key, tensor in network.model.state_dict().items():
            assert torch.equal(tensor, before[key])
    loud = Network.of(part("convnext"), SHAPE)
    with torch.no_grad():
        for parameter in loud.model.parameters():
            parameter.copy_(torch.ones_like(parameter))
    assert to_ask(loud).model is loud.model
