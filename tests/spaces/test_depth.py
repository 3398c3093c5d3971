"""``space.depth``: a residual branch goes whole where all else still sees the image, and what only
fed it goes with it.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from amc.agents.curves import Curve, places, spread
from torch import Tensor, nn
from zoo import config_of, env_around, uneven

from amc.cost.budget import Budget
from amc.data.datasets import Dataset
from amc.deliver import formats
from amc.deliver.export import export
from amc.deliver.load import load
from amc.evaluate.prepare import prepared
from amc.network.builtin import CifarResNet
from amc.network.layers import evaluating, example_input
from amc.network.trace import Network, trace
from amc.search import SearchResult, search
from amc.spaces.bounding import Bounds
from amc.spaces.channel import ChannelSpace
from amc.spaces.mixed import MixedSpace
from amc.surgery.cut import cut, masking
from amc.testing import check_bound_space, same_table


class Bottleneck(nn.Module):
    """ResNet's, grouped where it is asked for (ResNeXt's)."""

    def __init__(self, width: int, inner: int, out: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=groups, bias=False)
        self.conv3, self.norm3 = nn.Conv2d(inner, out, 1, bias=False), nn.BatchNorm2d(out)
        self.shortcut: nn.Module = (
            nn.Identity() if width == out else nn.Conv2d(width, out, 1, stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        y = self.norm3(self.conv3(y))
        y += self.shortcut(x)
        return F.relu(y)


class Excited(nn.Module):
    """Squeeze and excitation, with a layer more than usual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.squeeze, self.middle = nn.Conv2d(width, 6, 1), nn.Conv2d(6, 5, 1)
        self.pool, self.excite = nn.AdaptiveAvgPool2d(1), nn.Conv2d(5, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.middle(F.relu(self.squeeze(self.pool(x)))))
        return x * torch.sigmoid(self.excite(y))


class Inverted(nn.Sequential):
    """MobileNet's block; a shortcut where its input is as its output."""

    def __init__(self, width: int, inner: int, out: int, stride: int) -> None:
        super().__init__(
            nn.Conv2d(width, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.Hardswish(inplace=True),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.PReLU(inner),
            Excited(inner),
            nn.Conv2d(inner, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.added = stride == 1 and width == out

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return x + y if self.added else y


class Modern(nn.Module):
    """As ConvNeXt's, with a normalisation of the inner width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.deep = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm, self.inner_norm = nn.LayerNorm(width), nn.LayerNorm(4 * width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.norm(self.deep(x).permute(0, 2, 3, 1)))
        y = self.gamma * self.down(self.inner_norm(F.gelu(y)))
        return x + y.permute(0, 3, 1, 2)


class Former(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.each = heads, width // heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        images, length, _ = x.shape
        read = self.norm1(x)
        shape = images, length, self.heads, self.each
        q, k, v = (part(read).reshape(shape).transpose(1, 2) for part in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        x = x + self.out(y.reshape(images, length, self.heads * self.each))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Patches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class MeanOver(nn.Module):
    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.dims)


def sequence(*parts: nn.Module, width: int, dims: tuple[int, ...] = (2, 3)) -> nn.Module:
    return nn.Sequential(*parts, MeanOver(*dims), nn.Linear(width, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "basic": lambda: CifarResNet(1),
    "bottleneck": lambda: sequence(
        nn.Conv2d(3, 16, 3, 2, 1),
        Bottleneck(16, 8, 16),
        Bottleneck(16, 8, 20, stride=2),
        Bottleneck(20, 12, 20, groups=4),
        width=20,
    ),
    "inverted": lambda: sequence(
        nn.Conv2d(3, 8, 3, 2, 1), Inverted(8, 24, 8, 1), Inverted(8, 16, 12, 2), width=12
    ),
    "modern": lambda: sequence(nn.Conv2d(3, 10, 4, 4), Modern(10), Modern(10), width=10),
    "former": lambda: sequence(
        nn.Conv2d(3, 12, 4, 4), Patches(), Former(12, 3), Former(12, 3), width=12, dims=(1,)
    ),
    "chain": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 10),
    ),
}  # fmt: skip
WHOLE = {  # the decisions that have the choice 0
    "basic": {f"layer{stage}.0.conv1" for stage in (1, 2, 3)},
    "bottleneck": {"1.conv2", "2.conv2", "3.conv1"},
    "inverted": {"1.0", "1.6.middle", "2.6.middle"},
    "modern": {"1.up", "2.up"},
    "former": {f"{block}.{layer}" for block in (2, 3) for layer in ("q", "up")},
    "chain": set(),
}


@cache
def network_of(name: str) -> Network:
    torch.manual_seed(0)
    return Network.of(uneven(NETWORKS[name]()), (3, 16, 16), name)


def space_of(
    name: str, kind: type[ChannelSpace | MixedSpace] = ChannelSpace, **options: object
) -> ChannelSpace:
    network = network_of(name)
    calibration = example_input(network.model, network.input_shape, batch=16)
    space = kind(network, {"depth": True, **options}, calibration)
    space.fresh = example_input(network.model, network.input_shape, batch=8, seed=5)
    return space  # type: ignore[return-value]


def gone(space: ChannelSpace) -> dict[str, int]:
    """Everything that may go whole."""
    return {decision.name: 0 for decision in space.decisions if decision.choices[0] == 0}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_may_go_and_the_laws(name: str) -> None:
    space = space_of(name)
    found = set(gone(space))
    if name == "basic":  # what a stage has more than the one before is beside a shortcut of zeros
        found -= {"layer2.0.conv2", "layer3.0.conv2"}
    assert found == WHOLE[name]
    check_bound_space(space)


@pytest.mark.parametrize("name", ["basic", "former"])
def test_the_mixed_space_keeps_its_laws(name: str) -> None:
    space = space_of(name, MixedSpace, round_to=4)
    assert gone(space)
    check_bound_space(space)


def test_without_it_nothing_goes() -> None:
    assert all(d.choices[0] > 0 for d in space_of("basic", depth=False).decisions)


def test_a_head_of_zeros_hides_nothing() -> None:
    """As before training: the same may go."""
    model = copy.deepcopy(network_of("former").model)
    nn.init.zeros_(model[-1].weight)
    space = ChannelSpace(Network.of(model, (3, 16, 16)), {"depth": True, "repair": "none"})
    assert space.decisions and gone(space) == gone(space_of("former"))


@pytest.mark.parametrize("name", ["bottleneck", "inverted"])
def test_what_only_fed_what_is_gone_goes_too(name: str) -> None:
    space = space_of(name, repair="none")
    alone = {"bottleneck": ("1.conv2", "1.conv1"), "inverted": ("1.0", "1.6.squeeze")}[name]
    decision = next(d for d in space.decisions if d.name == alone[1])
    for choice in decision.choices:
        strategy = {alone[0]: 0, alone[1]: choice}
        paper, model = space.resize(strategy), space.apply(strategy)
        assert paper[alone[1]].out_channels == paper[alone[1]].macs == paper[alone[1]].params == 0
        assert same_table(paper, trace(model, space.network.input_shape)) is None
        assert space.cost(strategy) == space.cost({alone[0]: 0})


def test_what_stays_is_the_shortcut_and_a_constant() -> None:
    """Law 6, and with the whole branch gone its output is the same for every image."""
    space = space_of("bottleneck", repair="none")
    exact = copy.deepcopy(space.network.model).double()
    cuts = space.cuts({"1.conv2": 0})
    smaller = cut(exact, cuts)
    image = example_input(exact, space.network.input_shape, batch=3)
    seen: list[Tensor] = []
    smaller.get_submodule("1.norm3").register_forward_hook(
        lambda *call: seen.append(call[2].clone())
    )
    with evaluating(smaller), evaluating(exact), masking(exact, cuts):
        assert torch.allclose(smaller(image), exact(image), rtol=1e-9)
    assert torch.equal(seen[0], seen[0][:1, :, :1, :1].expand_as(seen[0]))


def test_repair_solves_for_the_constant() -> None:
    """Of a branch that is gone the best constant is its mean: law 11, and better than without."""
    space, plain = space_of("basic"), space_of("basic", repair="none")
    strategy, errors = gone(space), []
    for one in (space, plain):
        model = one.apply(strategy)
        errors.append(space._error(model))
    assert space.repair_kept
    assert errors[0] < errors[1]
    independent = space_of("basic", repair="independent").apply(strategy)
    assert all(tensor.isfinite().all() for tensor in independent.state_dict().values())


@pytest.mark.parametrize("name", ["inverted", "former"])
def test_what_is_left_runs_everywhere(name: str) -> None:
    """Copies, prepared for speed, trained, and exported: no tensor of the file has no elements."""
    import onnx

    space = space_of(name)
    model = space.apply(gone(space))
    images = example_input(model, space.network.input_shape, batch=5, seed=9)
    with evaluating(model):
        wanted = model(images)
    for other in (
        pickle.loads(pickle.dumps(copy.deepcopy(model))),
        prepared(model, space.network),
    ):
        with evaluating(other):
            assert torch.allclose(other(images), wanted, atol=1e-4)
    trained = copy.deepcopy(model).train()
    F.cross_entropy(trained(images), torch.arange(5)).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in trained.parameters())
    content, parity = formats.as_onnx(model, images, {})
    assert parity.batch is None and parity.top1_agreement == 1
    tensors = onnx.load_model_from_string(content).graph.initializer
    assert tensors and not any(0 in tensor.dims for tensor in tensors)
    assert formats.as_program(model, images)[1].batch is None


def test_a_layer_that_is_kept_stays_and_its_branch_may_go() -> None:
    space = space_of("bottleneck", repair="none", keep=["1.conv1"])
    strategy = gone(space)
    assert "1.conv2" in strategy and "1.conv1" not in {d.name for d in space.decisions}
    paper = space.resize(strategy)
    assert paper["1.conv1"].out_channels == 8 and paper["1.conv2"].out_channels == 0
    assert same_table(paper, trace(space.apply(strategy), space.network.input_shape)) is None


def test_depth_alone_may_be_decided() -> None:
    """With ``min_ratio: 1`` a decision is whether a branch stays."""
    space = space_of("basic", min_ratio=1)
    assert {d.choices[:1] for d in space.decisions} == {(0,)}
    assert all(len(decision.choices) == 2 for decision in space.decisions)
    check_bound_space(space)


def test_0_is_nearest_below_half_of_the_smallest_other_ratio() -> None:
    space = space_of("basic")
    decision = next(d for d in space.decisions if d.name == "layer1.0.conv1")
    least = decision.ratios[1]
    assert decision.choices[1] == 4 and decision.ratios[0] == 0
    assert space.decode(decision, 0.49 * least) == 0 < space.decode(decision, 0.51 * least)


def test_what_is_gone_stays_gone_where_the_budget_is_filled() -> None:
    space = space_of("basic", repair="none")
    bounds = Bounds.of(space, Budget.of("macs", space.cost({}), ratio=0.7, fill=True))
    wanted = {decision.name: 0.9 for decision in space.decisions}
    for name in gone(space):
        found = bounds.scaled({**wanted, name: 0.0})
        assert found[name] == 0 and bounds.budget.allows(space.cost(found))
    environment = env_around(space, 0.7, fill=True)
    environment.reset()
    for _ in space.decisions:
        *_, info = environment.step(np.zeros(1, np.float32))
    assert bounds.budget.allows(info["outcome"].cost)


def test_curves_have_a_place_for_0() -> None:
    ratios = [0.0, 0.25, 0.5, 1.0]
    assert np.allclose(np.exp(places(ratios, ratios)), [0.125, 0.25, 0.5, 1.0])
    assert spread(ratios, 2)[0] == 0
    losses = Curve({0.0: 3.0, 0.5: 1.0, 1.0: 0.0})(ratios)
    assert np.isfinite(losses).all() and (np.diff(losses) < 0).all()


def searched(agent: str, data: Dataset, out: Path, *more: str) -> SearchResult:
    """Within a budget that nothing else reaches."""
    config = config_of(
        "space.depth=true", "space.min_ratio=0.9", "budget.ratio=0.6", f"agent={agent}",
        "agent.episodes=16", "evaluate.images=40", *more,
    )  # fmt: skip
    torch.manual_seed(0)
    model = CifarResNet(1, 3, data.input_shape[0], width=8)
    found = search(config, model=model, dataset=data, out=out)
    assert 0 in found.best["strategy"].values()
    assert found.best["cost_ratios"]["macs"] <= 0.6
    return found


def test_sensitivity_measures_what_a_branch_is_worth(digits: Dataset, tmp_path: Path) -> None:
    searched("sensitivity", digits, tmp_path, "agent.choices=1")


def test_a_search_takes_a_branch_whole_and_its_export_is_loaded(
    digits: Dataset, tmp_path: Path
) -> None:
    found = searched("genetic", digits, tmp_path)
    assert not export(found, ["safetensors", "onnx"])["failed_formats"]
    wanted, loaded = found.problem.space.apply(found.best["strategy"]), load(found)
    images = example_input(wanted, digits.input_shape, batch=8)
    with evaluating(wanted), evaluating(loaded):
        assert torch.allclose(loaded(images), wanted(images), atol=1e-4)
