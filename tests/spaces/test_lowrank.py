"""The low-rank space and the mixed space."""

from __future__ import annotations

import copy
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from amc.envs.compression import CompressionEnv
from amc.envs.observation import FEATURES
from torch import nn
from zoo import OVERHEAD_MS, Mine, Pretended, config_of, layer_ms, uneven, zoo_network

from amc.config import load_config
from amc.cost.budget import Budget
from amc.cost.cost import METRICS, cost_of
from amc.data.datasets import Dataset
from amc.deliver.export import export
from amc.deliver.load import load
from amc.device.reach import structure_of
from amc.device.survey import measure_profile
from amc.evaluate.prepare import prepared
from amc.network.builtin import CifarResNet
from amc.network.layers import evaluating, example_input
from amc.network.trace import Network, trace
from amc.search import resume, search
from amc.spaces.lowrank import LowRankSpace, energy_ladder
from amc.spaces.mixed import MixedSpace
from amc.spaces.repairing import RepairingSpace
from amc.testing import check_bound_space, check_space, random_strategy, same_table, walk

SPACES: dict[str, type[RepairingSpace]] = {"lowrank": LowRankSpace, "mixed": MixedSpace}
ZOO = [
    ("lowrank", "vgg16_bn"),
    ("lowrank", "tv_mobilenet_v2"),
    ("lowrank", "tv_resnet50"),
    ("mixed", "resnet20"),
    ("mixed", "mobilenet_v1"),
]


@cache
def zoo_space(kind: str, name: str) -> RepairingSpace:
    return SPACES[kind](zoo_network(name), {"repair": "none", "round_to": 4, "min_ratio": 0.3})


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tucker_ranks": "separate"},
        {"convolution": "spatial", "repair": "none"},
        {"convolution": "svd", "round_to": 3},
    ],
)
def test_it_conforms(kind: str, options: dict[str, object]) -> None:
    checked = check_space(SPACES[kind], options)
    assert len(checked) == 24, "three networks, eight laws"


@pytest.mark.parametrize("kind", SPACES)
def test_cp_conforms(kind: str) -> None:
    """On a network of its own: alternating least squares take their time."""
    network = Network.of(uneven(CifarResNet(1, width=4)), (3, 8, 8))
    images = example_input(network.model, network.input_shape, batch=32)
    space = SPACES[kind](network, {"convolution": "cp", "round_to": 2}, images)
    assert len(check_bound_space(space)) == 8


@pytest.mark.parametrize("kind,name", ZOO)
def test_laws_1_and_2_on_real_networks(kind: str, name: str) -> None:
    space = zoo_space(kind, name)
    assert space.decisions
    for strategy in (space.smallest, random_strategy(space, 0)):
        metal = trace(structure_of(space, strategy), space.network.input_shape)
        assert same_table(space.resize(strategy), metal) is None
    original, smallest = space.cost({}), space.cost(space.smallest)
    generator = np.random.default_rng(0)
    for metric in METRICS[:3]:
        budget = Budget(metric, 0.4 * original[metric] + 0.6 * smallest[metric])
        for act in (lambda: 1.0, lambda: float(generator.random())):
            assert budget.allows(space.cost(walk(space, budget, act)))


@pytest.mark.parametrize("kind,name", ZOO)
def test_law_5_monotone_on_real_networks(kind: str, name: str) -> None:
    space = zoo_space(kind, name)
    for seed, decision in enumerate(space.decisions[:: 1 + len(space.decisions) // 12]):
        base = random_strategy(space, seed)
        costs = [space.cost({**base, decision.name: choice}) for choice in decision.choices]
        for metric in METRICS[:3]:
            values = [cost[metric] for cost in costs]
            assert values == sorted(values), f"{metric} falls as {decision.name} keeps more"


def test_what_is_left_alone_is_named() -> None:
    shared = nn.Conv2d(8, 8, 3, padding=1)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        shared,
        shared,
        nn.Conv2d(8, 3, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 2),
        nn.Linear(2, 2),
    )
    space = LowRankSpace(Network.of(model, (3, 6, 6)), {"repair": "none"})
    assert [decision.name for decision in space.decisions] == ["0:rank", "5:rank", "8:rank"]
    expected = {
        "1": "grouped",
        "2": "padding",
        "3": "more than once",
        "9": "no factors",
    }
    assert space.left_alone.keys() == expected.keys()
    assert all(why in space.left_alone[layer] for layer, why in expected.items())


def test_a_layer_becomes_plain_convolutions() -> None:
    network = zoo_network("resnet20")
    space = LowRankSpace(network, {"repair": "none"})
    decisions = {decision.name: decision for decision in space.decisions}
    strategy = {name: d.choices[len(d.choices) // 2] for name, d in decisions.items()}
    model = space.apply(strategy)
    parts = model.get_submodule("layer1.0.conv1")
    assert type(parts) is nn.Sequential and [type(part) for part in parts] == [nn.Conv2d] * 3
    assert parts[0].out_channels + parts[1].out_channels == strategy["layer1.0.conv1:rank"]
    assert len(model.conv1) == len(model.linear) == 2, "the first convolution and linear: SVD"
    assert all(0 < ratio < 1 for d in space.decisions for ratio in d.ratios[:-1])
    whole = space.apply({})
    assert not any(type(m) is nn.Sequential for n, m in whole.named_modules() if "conv" in n)


def test_both_modes_keep_equal_parts_of_their_energy() -> None:
    torch.manual_seed(0)
    matrices = [torch.randn(12, 40).double() * torch.logspace(0, -3, 12)[:, None], torch.eye(20)]
    ladder = list(energy_ladder(matrices, 1))
    assert ladder[0] == (1, 1) and all(sum(b) == sum(a) + 1 for a, b in pairwise(ladder))
    kept = [torch.linalg.eigvalsh(m.double() @ m.T.double()).flip(0).cumsum(0) for m in matrices]
    for ranks in ladder[:-1]:
        parts = [float(k[r - 1] / k[-1]) for k, r in zip(kept, ranks, strict=True)]
        before = [
            float(k[r - 2] / k[-1]) if r > 1 else 0.0 for k, r in zip(kept, ranks, strict=True)
        ]
        assert max(before) <= min(parts) + 1e-9, "neither is ahead by more than its last step"


@pytest.mark.parametrize("kind", SPACES)
def test_repair_gives_the_outputs_better(kind: str) -> None:
    network = Network.of(uneven(CifarResNet(1, width=8)), (3, 16, 16))
    colours = torch.randn(3, 3, generator=torch.Generator().manual_seed(1))
    images, unseen = (
        torch.einsum("nchw,dc->ndhw", example_input(network.model, (3, 16, 16), 200, seed), colours)
        for seed in (5, 6)
    )
    errors = {}
    for repair in ("none", "sequential"):
        space = SPACES[kind](network, {"repair": repair, "min_ratio": 0.2}, images)
        new = space.apply(space.uniform(0.6))
        with evaluating(new), evaluating(network.model):
            expected = network.model(unseen)
            errors[repair] = float(((new(unseen) - expected) ** 2).mean() / expected.var())
    assert errors["sequential"] < 0.5 * errors["none"], errors


def test_rank_ratios_mean_the_same_part_of_what_remains() -> None:
    space = zoo_space("mixed", "mobilenet_v1")
    assert isinstance(space, MixedSpace)
    half = {d.name: space.decode(d, 0.5) for d in space.channels.decisions}
    ranks = {d.name: space.decode(d, 0.5) for d in space.factors.decisions}
    alone, cut = space.cost(ranks).macs / space.cost({}).macs, space.cost(half).macs
    assert space.cost({**half, **ranks}).macs / cut == pytest.approx(alone, rel=0.15)


def test_decisions_of_a_layer_are_channels_then_ranks() -> None:
    space = zoo_space("mixed", "resnet20")
    names = [d.name for d in space.decisions]
    at = names.index("layer2.0.conv1")
    assert names[at + 1] == "layer2.0.conv1:rank"
    budget = Budget.of("macs", space.cost({}), ratio=0.5)
    env = CompressionEnv(space, budget, lambda strategy: None)  # type: ignore[arg-type,return-value]
    assert env.observation_space.shape == (len(FEATURES) + 1,)
    seen = []
    observation, _ = env.reset()
    for decision in space.decisions:
        seen.append((decision.kind, float(observation[0])))
        if len(seen) < len(space.decisions):
            observation, *_ = env.step(np.array([0.7], np.float32))
    assert set(seen) == {("channels", 0.0), ("rank", 1.0)}, "the agent is told which it decides"


def test_inference_folds_batchnorms_into_the_last_part() -> None:
    space = zoo_space("lowrank", "resnet20")
    model = space.apply(random_strategy(space, 1))
    fast = prepared(model, space.network)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fast.modules())
    image = example_input(model, (3, 32, 32), batch=4, seed=2)
    with evaluating(model):
        expected = model(image)
    assert torch.allclose(fast(image), expected, atol=1e-3 * float(expected.abs().max()))


def test_a_profile_sees_the_three_layers(tmp_path: Path) -> None:
    """On the pretended device a width costs as much as the next multiple of 16: three thin layers
    are slower than one, and the space's latency says so.
    """
    network = Network.of(Mine(), (1, 8, 8), "Mine")
    space = LowRankSpace(network, {"repair": "none"})
    device = measure_profile(space, Pretended(), tmp_path / "mine.yaml")
    space.latency = device.latency_model("Mine")
    decision = next(d for d in space.decisions if d.name == "b:rank")
    strategy = {"b:rank": decision.choices[-3]}
    layers = space.resize(strategy)
    assert [layer.name for layer in layers if layer.name.startswith("b.")] == ["b.0", "b.1", "b.2"]
    cost, whole = space.cost(strategy), space.cost({})
    assert cost.macs < whole.macs and cost.latency_ms > whole.latency_ms
    assert cost.latency_ms == pytest.approx(OVERHEAD_MS + sum(map(layer_ms, layers)), rel=0.15)
    budget = Budget("latency_ms", 0.9 * whole.latency_ms)
    generator = np.random.default_rng(0)
    for _ in range(20):
        ended = walk(space, budget, lambda: float(generator.random()))
        assert budget.allows(space.cost(ended))


@pytest.mark.parametrize("space", ["lowrank", "mixed"])
def test_a_search_to_its_export(space: str, digits: Dataset, tmp_path: Path) -> None:
    config = config_of(f"space={{name: {space}}}", "agent.episodes=6", "agent.warmup_episodes=3")
    torch.manual_seed(0)
    model = Mine(10)
    result = search(config, model=copy.deepcopy(model), dataset=digits, out=tmp_path)
    lines = result.run.lines()
    assert len(lines) == 7 and all(line["feasible"] for line in lines)
    assert resume(result.run.path, model=copy.deepcopy(model), dataset=digits).run.lines() == lines
    metrics = export(result.run.path, model=copy.deepcopy(model), dataset=digits)
    assert metrics["onnx_max_abs_diff"] < 1e-4
    loaded = load(result.run.path / "export", model=copy.deepcopy(model))
    assert cost_of(trace(loaded, (1, 8, 8))).macs == result.best["macs"] == metrics["macs"]


def test_a_network_that_is_trained_first(tmp_path: Path) -> None:
    """The ranks of a keep ratio depend on the weights: those after the training, and again when the
    run is resumed.
    """
    small = ["evaluate.images=50", "evaluate.calibration_images=70", "train.epochs=2"]
    agent = ["agent.episodes=3", "agent.warmup_episodes=2", "allow_untrained=true"]
    _, config = load_config("digits_resnet8_lowrank_macs50", [*small, *agent])
    result = search(config, out=tmp_path, name="digits")
    again = resume(result.run.path)
    assert again.problem.space.decisions == result.problem.space.decisions
    for line in result.run.lines():
        plans = [run.problem.space.describe(line["strategy"]) for run in (result, again)]
        assert plans[0] == plans[1]


def test_another_plug_in_starts_from_its_own_defaults() -> None:
    _, config = load_config("cifar10_resnet56_lowrank_macs50", ["agent.name=vbmf"])
    assert config.agent == {"name": "vbmf"} and config.space["name"] == "lowrank"
    _, config = load_config(
        "cifar10_resnet56_channel_macs50", ["space.name=lowrank", "space.round_to=4"]
    )
    assert config.space["round_to"] == 4 and config.space["min_ratio"] == 0.0


@pytest.mark.parametrize("kind", SPACES)
def test_layer_errors_fall_to_nothing(kind: str) -> None:
    space = zoo_space(kind, "resnet20")
    estimates = {d.name: space.layer_errors(d) for d in space.decisions}
    for decision in space.decisions:
        errors = estimates[decision.name]
        if kind == "mixed" and decision.kind == "channels":
            assert errors is None, "without calibration images there is no estimate"
            continue
        assert errors is not None and len(errors) == len(decision.choices) and errors[-1] == 0
        assert all(a >= b - 1e-9 for a, b in pairwise(errors))
    lowrank = space if isinstance(space, LowRankSpace) else space.factors
    decision = next(d for d in lowrank.decisions if lowrank._methods[d.layers[0]] == "svd")
    (matrix,) = lowrank.unfoldings(decision.name)
    values = torch.linalg.svdvals(matrix).square()
    rank = decision.choices[0]
    expected = float(values[rank:].sum() / values.sum())
    assert estimates[decision.name][0] == pytest.approx(expected, rel=1e-6)
