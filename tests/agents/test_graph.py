"""The observation `graph`, and agents that learn from it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from itertools import combinations
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from amc.agents.offpolicy import OffPolicyAgent
from amc.envs import ENV_ID
from amc.envs.graph import WIDTH, Graph, GraphExtractor, neighbours
from amc.envs.observation import Amc, Position
from gymnasium.utils.env_checker import check_env
from scipy.sparse.csgraph import shortest_path
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from torch import Tensor, nn
from zoo import zoo_space

from amc.cost.budget import Budget
from amc.evaluate.outcome import Outcome
from amc.evaluate.rewards import Score
from amc.network.builtin import CifarResNet
from amc.network.trace import Network
from amc.registry import lookup
from amc.spaces.base import CompressionSpace, Strategy
from amc.spaces.channel import ChannelSpace
from amc.spaces.lowrank import LowRankSpace
from amc.spaces.mixed import MixedSpace


@cache
def small() -> Network:
    torch.manual_seed(0)
    return Network.of(CifarResNet(1, width=8).eval(), (3, 16, 16))


def bare(kind: type[CompressionSpace], **options: Any) -> CompressionSpace:
    return kind(small(), {"repair": "none", **options})


SPACES: dict[str, Callable[[], CompressionSpace]] = {
    "channels": lambda: zoo_space("resnet20"),
    "a chain": lambda: zoo_space("plain20"),
    "depthwise": lambda: zoo_space("mobilenet_v1"),
    "a small one": lambda: bare(ChannelSpace),
    "uncoupled": lambda: bare(ChannelSpace, coupled=False),
    "ranks": lambda: bare(LowRankSpace),
    "separate ranks": lambda: bare(LowRankSpace, tucker_ranks="separate"),
    "mixed": lambda: bare(MixedSpace, tucker_ranks="separate"),
    "one decision": lambda: bare(ChannelSpace, keep=["conv1", "layer[23].*", "linear"]),
}


def around(
    space: CompressionSpace,
    reward: Callable[[Strategy], float] = lambda strategy: -0.5,
    ratio: float = 0.5,
) -> gymnasium.Env[Any, Any]:
    def measure(strategy: Strategy, budget: Budget) -> Outcome:
        score = Score(0.5, 1.0, 0.0)
        cost = space.cost(strategy)
        return Outcome(dict(strategy), (), score, cost, reward(strategy), True, 0.0)

    budget = Budget.of("macs", space.cost({}), ratio=ratio, fill=True)
    return gymnasium.make(ENV_ID, space=space, budget=budget, evaluate=measure, observation=Graph)


def extractor_of(env: gymnasium.Env[Any, Any]) -> GraphExtractor:
    kind, arguments = env.get_wrapper_attr("extractor")
    torch.manual_seed(0)
    found = kind(env.observation_space, **arguments)
    assert isinstance(found, GraphExtractor)
    return found


@pytest.mark.parametrize("name", SPACES)
def test_an_episode(name: str) -> None:
    """AMC's features, how much is decided, and every ratio so far; all in [0, 1]."""
    space = SPACES[name]()
    env, plain, count = around(space, ratio=0.8), Amc(space), len(space.decisions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(env.unwrapped, skip_render_check=True)
        sb3_check_env(env)
    env.reset()
    rng = np.random.default_rng(0)
    for _ in space.decisions:
        *_, info = env.step(rng.random(1).astype(np.float32))
    own, seen = len(plain.features), info["observations"]
    features = env.get_wrapper_attr("observation").features
    assert seen.shape == (count + 1, own + 1 + count) == (count + 1, len(features))
    assert seen.min() >= 0 and seen.max() <= 1
    assert features[:own] == plain.features and features[own] == "decided"
    executed = np.array(info["executed_ratios"], np.float32)
    for made, row in enumerate(seen):
        assert row[own] == pytest.approx(made / count)
        np.testing.assert_array_equal(row[own + 1 :], [*executed[:made], *[1.0] * (count - made)])


def test_neighbours_are_the_known_ones() -> None:
    """In a chain the next one; in a ResNet a stage and what its blocks have inside, and the stages;
    of one layer all its decisions; and through depthwise layers.
    """
    for name in ("plain20", "mobilenet_v1"):
        count = len(zoo_space(name).decisions)
        expected = np.eye(count, k=1, dtype=bool) | np.eye(count, k=-1, dtype=bool)
        np.testing.assert_array_equal(neighbours(zoo_space(name)), expected)

    def linked(space: CompressionSpace) -> set[tuple[str, str]]:
        names = [decision.name for decision in space.decisions]
        found = neighbours(space)
        assert (found == found.T).all() and not found.diagonal().any()
        return {(names[a], names[b]) for a, b in np.argwhere(np.triu(found))}

    ranks = bare(LowRankSpace, tucker_ranks="separate")
    both = {(f"layer3.0.conv{i}:rank_in", f"layer3.0.conv{i}:rank_out") for i in (1, 2)}
    assert both <= linked(ranks)
    groups = bare(ChannelSpace)
    inner = [f"layer{stage}.0.conv1" for stage in (1, 2, 3)]
    stages = [d.name for d in groups.decisions if d.name not in inner]
    found = linked(groups)
    assert not any((a, b) in found for a in inner for b in inner), "a stage stands between them"
    assert all((stages[0], name) in found for name in inner), "padded shortcuts carry it to the end"
    assert all((a, b) in found for a in stages for b in stages if stages.index(a) < stages.index(b))
    alone = bare(ChannelSpace, coupled=False)
    every = [decision.name for decision in alone.decisions]
    assert {*inner} < {*every} and linked(alone) == set(combinations(every, 2))


@pytest.mark.parametrize("name", ["channels", "a chain", "mixed"])
def test_what_flows_to_the_current_decision(name: str) -> None:
    """Its embedding depends on the ratios of decisions that are at most two edges away, and on all
    of these.
    """
    space = SPACES[name]()
    env, count = around(space), len(space.decisions)
    extractor, own = extractor_of(env), len(Amc(space).features)
    for layer in extractor.convolutions:
        nn.init.uniform_(layer.weight, 0.01, 1)  # no rectifier hides anything
        nn.init.zeros_(layer.bias)
    away = shortest_path(neighbours(space), unweighted=True)
    for made in range(count + 1):
        current = min(made, count - 1)
        seen = torch.rand(1, own + 1 + count)
        seen[0, own] = made / count
        seen.requires_grad_()
        extractor(seen)[0, :WIDTH].sum().backward()
        assert seen.grad is not None
        touched = (seen.grad[0, own + 1 :] != 0).numpy()
        np.testing.assert_array_equal(touched, away[current] <= 2)
    assert away.max() > 2 or name != "a chain"


def test_what_the_extractor_gives() -> None:
    """By hand, on a graph of three decisions; what an agent appends stays."""
    static = np.array([[0.0], [0.5], [1.0]], np.float32)
    linked = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]], bool)
    space = gymnasium.spaces.Box(0, 1, (2 + 1 + 3 + 2,), np.float32)
    extractor = GraphExtractor(space, static, linked, own=2, width=4)
    seen = torch.tensor([[0.1, 0.2, 1 / 3, 0.7, 1.0, 1.0, 0.3, 0.4]])
    nodes = torch.tensor([[0.0, 0.7, 1, 0], [0.5, 1, 0, 1], [1, 1, 0, 0]])
    means = torch.tensor([[0.0, 1, 0], [1, 0, 0], [0, 0, 0]])
    for layer in extractor.convolutions:
        assert isinstance(layer, nn.Linear)
        both = torch.cat([nodes, means @ nodes], dim=1)
        nodes = torch.relu(both @ layer.weight.T + layer.bias)
    found = extractor(seen)
    assert found.shape == (1, extractor.features_dim) == (1, 4 + 4 + 2 + 2)
    expected = torch.cat([nodes[1], nodes.mean(0), torch.tensor([0.1, 0.2, 0.3, 0.4])])
    torch.testing.assert_close(found[0], expected)


def test_after_the_last_decision_it_is_still_the_current_one() -> None:
    env = around(zoo_space("plain20"))
    extractor, count = extractor_of(env), len(zoo_space("plain20").decisions)
    env.reset()
    for _ in range(count):
        *_, info = env.step(np.array([0.5], np.float32))
    every = extractor(torch.from_numpy(info["observations"]))
    assert every.shape == (count + 1, extractor.features_dim) and every.isfinite().all()
    for row, alone in zip(every, info["observations"], strict=True):
        torch.testing.assert_close(row, extractor(torch.from_numpy(alone[None]))[0])
    assert not torch.equal(every[-1], every[-2]), "its own ratio is known now"


def test_weights_fit_another_network() -> None:
    one, other = (extractor_of(around(zoo_space(name))) for name in ("plain20", "resnet20"))
    assert one.count != other.count
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(1)
    other.load_state_dict(one.state_dict())
    assert set(one.state_dict()) == {name for name, _ in one.named_parameters()}
    assert one.features_dim == other.features_dim
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def agent_of(name: str, env: gymnasium.Env[Any, Any], seed: int = 0, **options: Any) -> Any:
    found = lookup("agent", name)
    steps = len(env.get_wrapper_attr("space").decisions)
    agent = found(env, steps, found.Options(hidden=64, **options), seed)
    assert isinstance(agent, OffPolicyAgent)
    return agent


def extractors(agent: Any) -> dict[str, nn.Module]:
    policy = agent.policy
    parts = ("actor", "critic", "actor_target", "critic_target")
    return {
        part: getattr(policy, part).features_extractor for part in parts if hasattr(policy, part)
    }


@pytest.mark.parametrize("name", ["td3", "ddpg", "sac"])
def test_every_network_of_an_agent_learns_its_own(name: str) -> None:
    """Actor and critic have an extractor each; gradients reach both, and targets follow."""
    agent = agent_of(name, around(zoo_space("plain20")), episodes=3, warmup_episodes=1)
    assert all(isinstance(one, GraphExtractor) for one in extractors(agent).values())
    owned = [id(p) for one in extractors(agent).values() for p in one.parameters()]
    assert len(set(owned)) == len(owned) == 4 * len(extractors(agent))

    def weights() -> dict[str, list[Tensor]]:
        return {
            part: [p.detach().clone() for p in one.parameters()]
            for part, one in extractors(agent).items()
        }

    before = weights()
    for part in ("actor", "critic"):
        if f"{part}_target" in before:
            for own, target in zip(before[part], before[f"{part}_target"], strict=True):
                assert torch.equal(own, target)
    agent.run()
    for part, after in weights().items():
        for new, old in zip(after, before[part], strict=True):
            assert not torch.equal(new, old), part


@pytest.mark.parametrize("name", ["td3", "ddpg", "sac"])
@pytest.mark.parametrize("ratio", [0.3, 0.6])
def test_the_actor_begins_at_the_uniform_strategy(name: str, ratio: float) -> None:
    env = around(zoo_space("plain20"), ratio=ratio)
    space = zoo_space("plain20")
    uniform = np.mean(space.ratios(env.get_wrapper_attr("bounds").of_episode(0).uniform()))
    agent = agent_of(name, env, episodes=1)
    _, seen = env.get_wrapper_attr("rehearse")(agent.best_ratio)
    ratios = [agent.best_ratio(row) for row in seen]
    assert np.abs(np.array(ratios) - uniform).max() < 0.05


@pytest.mark.parametrize("name", ["a small one", "separate ranks"])
def test_law_7_better_than_random_on_a_toy(name: str) -> None:
    space = SPACES[name]()
    wanted = np.linspace(0.9, 0.3, len(space.decisions))

    def best(name: str, seed: int, **options: Any) -> float:
        rewards: list[float] = []

        def reward(strategy: Strategy) -> float:
            rewards.append(-float(np.mean((np.array(space.ratios(strategy)) - wanted) ** 2)))
            return rewards[-1]

        kind, env = lookup("agent", name), around(space, reward, 0.7)
        kind(env, len(space.decisions), kind.Options(episodes=40, **options), seed).run()
        assert len(rewards) == 40
        return max(rewards)

    learned = [best("td3", seed, warmup_episodes=10, hidden=64) for seed in range(2)]
    assert np.mean(learned) > np.mean([best("random", seed) for seed in range(2)])


def test_a_decision_without_neighbours_stands_alone() -> None:
    space = SPACES["one decision"]()
    assert len(space.decisions) == 1 and not neighbours(space).any()
    seen = Graph(space)(Position((), 0.0, 0.5, 0.5))
    found = extractor_of(around(space, ratio=0.9))(torch.from_numpy(seen[None]))
    torch.testing.assert_close(found[0, :WIDTH], found[0, WIDTH : 2 * WIDTH])
