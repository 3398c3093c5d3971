"""Laws 9, 10, 11 and 13 on networks of strangers: right or refused, counted whole, measured as they
are.
"""

from __future__ import annotations

import copy

import pytest
import torch
from strangers import STRANGERS, images, strange_forward, stranger
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from amc.errors import UserError
from amc.evaluate.prepare import check_alike, confirmed, prepared, trust
from amc.network.trace import Network
from amc.spaces.channel import ChannelSpace
from amc.spaces.lowrank import LowRankSpace
from amc.surgery.cut import cut
from amc.surgery.verify import cut_is_mask

SHAPE = (3, 16, 16)


def counted(model: nn.Module) -> tuple[int, int]:
    """MACs and parameters, by PyTorch."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(images(1))
    return counter.get_total_flops() // 2, sum(p.numel() for p in model.parameters())


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("name", STRANGERS)
def test_a_network_is_counted_whole_and_measured_as_it_is(name: str) -> None:
    model, x = stranger(name), images(8)
    network = Network.of(model, SHAPE, name)
    trust(network, images(16, seed=1))
    with torch.no_grad():
        assert apart(prepared(network.model, network)(x), model(x)) <= 1e-4
    space = ChannelSpace(network, {"min_ratio": 0.3}, images(48, seed=2))
    space.fresh = images(16, seed=3)
    assert space.decisions, space.left_alone
    assert (space.cost({}).macs, space.cost({}).params) == counted(model)
    for strategy in (space.smallest, space.uniform(0.5), space.uniform(0.85)):
        cuts, said = space.cuts(strategy), space.cost(strategy)
        assert cut_is_mask(network, cut(network.model, cuts), cuts)
        smaller = space.apply(strategy)
        assert (said.macs, said.params) == counted(smaller)
        fast = confirmed(smaller, network, images(16, seed=1))
        with torch.no_grad():
            assert apart(fast(x), smaller(x)) <= 1e-4


@pytest.mark.parametrize("name", STRANGERS)
def test_repair_is_kept_only_where_it_helps_on_other_images(name: str) -> None:
    """Law 11, with few and noisy calibration images: least squares fits those."""
    network = Network.of(stranger(name), SHAPE, name)
    space = ChannelSpace(network, {"min_ratio": 0.3}, torch.randn(12, *SHAPE))
    space.fresh = x = images(16, seed=4)
    strategy = space.uniform(0.5)
    smaller, plain = space.apply(strategy), cut(network.model, space.cuts(strategy)).eval()
    with torch.no_grad():
        wanted, got, before = (model(x) for model in (network.model, smaller, plain))
    assert (got - wanted).norm() <= (before - wanted).norm() * 1.0001
    if not space.repair_kept:
        assert torch.equal(got, before)


@pytest.mark.parametrize("name", STRANGERS)
def test_factors_are_counted_whole_too(name: str) -> None:
    model = stranger(name)
    network = Network.of(model, SHAPE, name)
    space = LowRankSpace(network, {"repair": "none", "convolution": "svd"})
    assert (space.cost({}).macs, space.cost({}).params) == counted(model)
    smaller, said = space.apply(space.smallest), space.cost(space.smallest)
    assert (said.macs, said.params) == counted(smaller)


def test_layers_that_cannot_be_changed_are_named_with_the_reason() -> None:
    reasons = {
        "parametrised": ("middle.0", "computed from others"),
        "tied": ("middle.0", "'middle.0', 'middle.2' hold the same ones"),
        "functional": ("middle", "a Do is of no kind"),
        "depends on its width": ("middle.conv", "at some widths"),
    }
    for name, (layer, why) in reasons.items():
        network = Network.of(stranger(name), SHAPE, name)
        space = ChannelSpace(network, {"repair": "none", "min_ratio": 0.1})
        assert space.decisions and why in space.left_alone[layer], (name, space.left_alone)


def test_probing_sees_through_dead_rectifiers() -> None:
    network = Network.of(stranger("maps of one pixel"), SHAPE)
    decided = {d.name for d in ChannelSpace(network, {"repair": "none"}).decisions}
    assert {"first", "middle.1"} <= decided


def test_what_is_not_one_to_one_is_not_folded() -> None:
    for name in ("one convolution, two norms", "one norm, two convolutions", "a hook"):
        assert not Network.of(stranger(name), SHAPE).table.folds, name
    assert Network.of(stranger("unused"), SHAPE).table.folds == (("middle.0", "middle.1"),)


def test_a_network_that_only_its_own_module_computes_runs_as_it_is() -> None:
    """What a symbolic trace would freeze differs for other images: one step less is taken."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.conv(x))
            x = x.contiguous().view(len(x), 8, -1)
            return self.head(x.amax(2) if float(x.mean()) > -1 else x.mean(2))

    model = Branches().eval()
    network = Network.of(model, SHAPE)
    x = images(8)
    with torch.no_grad():
        assert apart(prepared(network.model, network)(x), model(x)) <= 1e-4


def test_a_copy_that_computes_with_the_original_is_refused() -> None:
    model = stranger("unused")
    model.forward = lambda x: model.head(torch.relu(model.first(x)).mean((2, 3))[:, :10])
    with pytest.raises(UserError, match="the original's weights"):
        Network.of(model, SHAPE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_cast_and_known(dtype: torch.dtype) -> None:
    model = stranger("unused").to(dtype)
    network = Network.of(nn.DataParallel(model), SHAPE)
    assert network.dtype == dtype and next(network.model.parameters()).dtype == torch.float32
    assert next(model.parameters()).dtype == dtype


def test_what_cannot_be_cut_is_refused_with_the_way_out() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    lazy = nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(4))
    for model, way in ((scripted, "the Python module"), (lazy, "run the network once")):
        with pytest.raises(UserError, match=way):
            Network.of(model, SHAPE)


def test_compiled_networks_are_unwrapped() -> None:
    model = stranger("unused")
    parts = nn.Sequential(torch.compile(model))
    for wrapped in (torch.compile(model), parts):
        assert set(Network.of(wrapped, SHAPE).table.by_name) & {"first", "0.first"}


def test_work_that_nobody_can_count_is_named() -> None:
    class Transformed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.fft.rfft2(self.conv(x)).abs().mean((2, 3)))

    assert Network.of(Transformed(), SHAPE).table.rest.uncounted == ("_fft_r2c",)
    assert not Network.of(stranger("attention, fused"), SHAPE).table.rest.uncounted


def test_steps_are_taken_back_where_a_smaller_network_differs() -> None:
    network = Network.of(stranger("unused"), SHAPE)
    trust(network, images(8))
    assert network.trusted.steps == 3 and not network.trusted.note
    other = strange_forward(copy.deepcopy(network.model))
    fast = confirmed(other, network, images(8))
    with torch.no_grad():
        assert apart(fast(images(8)), other(images(8))) <= 1e-4
    assert network.trusted.steps < 3 and "other outputs" in network.trusted.note


def test_chance_and_the_rest_of_a_batch_must_have_no_say() -> None:
    noisy = stranger("unused")
    noisy.middle.append(nn.Dropout(0.5))
    noisy.middle[-1].forward = lambda x: torch.dropout(x, 0.5, True)
    batch = stranger("a norm without parameters")
    batch.middle[1] = nn.BatchNorm2d(12, track_running_stats=False)
    for model, why in ((noisy, "called again"), (batch, "other images of its batch")):
        with pytest.raises(UserError, match=why):
            check_alike(Network.of(model, SHAPE), images(8), model)
