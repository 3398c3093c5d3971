"""The observation `graph`: the whole network as a graph of decisions, and where in it the episode
stands.

GNN-RL (Yu, Mazaheri, Jannesari, ICML 2022) lets an agent see a network through a graph neural
network. Its code takes one vector of the whole for all keep ratios at once, random numbers as the
features of nodes and edges, and leaves out the shortcuts of its ResNets. Here nodes are decisions
and have AMC's features, edges are how the layers read each other, shortcuts included, and each
decision is seen in its place. The convolution is GraphSAGE's with the mean (Hamilton, Ying,
Leskovec: NeurIPS 2017), which keeps what a node is apart from what its neighbours are: where all
decisions are neighbours, as in a ResNet's blocks, that of Kipf & Welling (ICLR 2017) makes all
nodes alike.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from amc.envs.observation import Amc, FloatArray, Position
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from amc.spaces.base import CompressionSpace

BoolArray = NDArray[np.bool_]

WIDTH = 32


class Graph(Amc):
    """AMC's features; the part of the decisions that are made; and the keep ratio of each decision,
    1 where it is not made yet.

    `GraphExtractor` adds what never changes: the static features of every decision, and which of
    them are neighbours.
    """

    def __init__(self, space: CompressionSpace) -> None:
        super().__init__(space)
        self._own = len(self.features)
        names = (f"ratio of {decision.name}" for decision in space.decisions)
        self.features = (*self.features, "decided", *names)
        self.neighbours = neighbours(space)
        """(decisions, decisions): symmetric, without loops"""

    @property
    def extractor(self) -> tuple[type, Mapping[str, Any]] | None:
        """Two graph convolutions."""
        return GraphExtractor, {
            "static": self.static.astype(np.float32),
            "neighbours": self.neighbours,
            "own": self._own,
        }

    def __call__(self, position: Position) -> FloatArray:
        made, count = len(position.ratios), len(self.static)
        ratios = [*position.ratios, *[1.0] * (count - made)]
        more = np.array([made / count, *ratios], np.float32)
        return np.concatenate([super().__call__(position), more])


def neighbours(space: CompressionSpace) -> BoolArray:
    """Which decisions meet in a layer: those that shrink it, and those that shrink what it reads,
    directly or through layers that nobody decides. So the decisions behind a sum are neighbours of
    each other and of whoever reads it. Shape (decisions, decisions).
    """
    deciders: dict[str, list[int]] = {}
    for index, decision in enumerate(space.decisions):
        for layer in decision.layers:
            deciders.setdefault(layer, []).append(index)
    written: dict[str, set[str]] = {}  # reader -> writers
    for writer, reader in space.network.table.edges:
        written.setdefault(_layer(reader), set()).add(_layer(writer))
    result = np.zeros([len(space.decisions)] * 2, np.bool_)
    for layer in {*deciders, *written}:
        meeting = [*deciders.get(layer, ()), *_behind(layer, written, deciders)]
        result[np.ix_(meeting, meeting)] = True
    np.fill_diagonal(result, False)
    return result


def _layer(name: str) -> str:
    """The layer of a row of the table, which may be a further call of it."""
    return name.split("@", maxsplit=1)[0]


def _behind(
    layer: str, written: Mapping[str, Collection[str]], deciders: Mapping[str, list[int]]
) -> set[int]:
    """The decisions that shrink what a layer reads."""
    found: set[int] = set()
    seen: set[str] = set()
    ahead = list(written.get(layer, ()))
    while ahead:
        writer = ahead.pop()
        if writer in deciders:
            found.update(deciders[writer])
        elif writer not in seen:
            seen.add(writer)
            ahead += written.get(writer, ())
    return found


class GraphExtractor(BaseFeaturesExtractor):
    """Two graph convolutions, ReLU([X, D^-1 A X] W) (Hamilton et al. 2017, algorithm 1 with the
    mean, without its normalisation), over the decisions; a node has its static features, its keep
    ratio so far, and whether it is decided and whether it is the one that is decided now.

    It gives the embedding of the current decision, the mean over all, and what is seen of the
    position beside the graph. After the last decision that one is still the current one.

    Weights fit every network: what is of one network is in no state dict.
    """

    static: Tensor  # (decisions, static features)
    means: Tensor  # over neighbours, (decisions, decisions)

    def __init__(
        self,
        observation_space: spaces.Box,
        static: FloatArray,
        neighbours: BoolArray,
        own: int,
        width: int = WIDTH,
    ) -> None:
        """An extractor for one network.

        Args:
            observation_space: of `Graph`'s vectors; an agent may have appended features.
            static: (decisions, features).
            neighbours: (decisions, decisions), symmetric.
            own: how many features stand before the part of the decisions that are made.
            width: of an embedding.
        """
        self.count, self.own = len(static), own
        beside = observation_space.shape[0] - 1 - self.count
        super().__init__(observation_space, 2 * width + beside)
        self.convolutions = nn.ModuleList(
            [nn.Linear(2 * (static.shape[1] + 3), width), nn.Linear(2 * width, width)]
        )
        linked = torch.from_numpy(neighbours).float()
        means = linked / linked.sum(1, keepdim=True).clamp(min=1)
        self.register_buffer("static", torch.from_numpy(static), persistent=False)
        self.register_buffer("means", means, persistent=False)

    def forward(self, observations: Tensor) -> Tensor:
        """From observations (batch, features) to (batch, `features_dim`)."""
        sizes = (self.own, 1, self.count, observations.shape[1] - self.own - 1 - self.count)
        own, part, ratios, appended = observations.split(sizes, dim=1)
        made = (part * self.count).round()  # (batch, 1)
        order = torch.arange(self.count, device=part.device)
        current = made.clamp(max=self.count - 1).long()
        moving = torch.stack([ratios, (order < made).float(), (order == current).float()], dim=2)
        static = self.static.expand(len(moving), -1, -1)
        nodes = torch.cat([static, moving], dim=2)
        for convolution in self.convolutions:
            nodes = torch.relu(convolution(torch.cat([nodes, self.means @ nodes], dim=2)))
        here = nodes[torch.arange(len(nodes), device=part.device), current[:, 0]]
        return torch.cat([here, nodes.mean(1), own, appended], dim=1)
