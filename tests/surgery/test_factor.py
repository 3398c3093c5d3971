"""Factorised layers: on paper, in metal, and fitted to data."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from amc.cost.cost import cost_of
from amc.network.layers import LayerSpec, example_input
from amc.network.trace import Network, trace
from amc.repair.factors import Factoring, input_projection, refit
from amc.repair.regression import principal
from amc.repair.rows import Sampler
from amc.spaces.lowrank import shrunk
from amc.surgery.factor import (
    METHODS,
    Method,
    Ranks,
    affordable,
    factored,
    factorise,
    full_ranks,
)
from amc.testing import same_table

CONVOLUTIONS = [
    nn.Conv2d(6, 8, 3, padding=1),
    nn.Conv2d(8, 6, (3, 5), (2, 1), (1, 2)),
    nn.Conv2d(6, 6, 3, 2, 2, 2, bias=False),
    nn.Conv2d(6, 8, (1, 3), padding="same", padding_mode="reflect"),
]


def alone(module: nn.Module) -> tuple[Network, LayerSpec]:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    shape = (module.in_channels, 13, 12) if isinstance(module, nn.Conv2d) else (12,)
    network = Network.of(nn.Sequential(module), shape)
    return network, network.table.layers[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("conv", CONVOLUTIONS)
def test_nothing_is_lost_at_full_rank(conv: nn.Conv2d, method: Method) -> None:
    _, spec = alone(conv)
    ranks = full_ranks(method, spec)
    x = torch.randn(2, conv.in_channels, 13, 12)
    with torch.no_grad():
        got, expected = factorise(conv, method, ranks)(x), conv(x)
    assert got.shape == expected.shape
    tolerance = 2e-2 if method == "cp" else 1e-4  # CP comes from alternating least squares
    assert float((got - expected).abs().max()) < tolerance * float(expected.abs().max())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("conv", CONVOLUTIONS[:3])
def test_paper_is_metal_for_one_layer(conv: nn.Conv2d, method: Method) -> None:
    network, spec = alone(conv)
    ranks: Ranks = (2, 3) if method == "tucker" else (3,)
    paper = network.table.replacing({"0": factored(spec, method, ranks)})
    metal = trace(nn.Sequential(factorise(conv, method, ranks)), network.input_shape)
    assert same_table(paper, metal) is None


@pytest.mark.parametrize("method", ["svd", "tucker", "spatial"])
def test_weights_of_that_rank_are_found_again(method: Method) -> None:
    """A layer that was made of factors is factorised into what computes the same."""
    conv, ranks = CONVOLUTIONS[0], (3, 4) if method == "tucker" else (3,)
    alone(conv)
    parts = factorise(conv, method, ranks)
    x = torch.eye(6 * 9).reshape(-1, 6, 3, 3)  # the response to every weight
    made = nn.Conv2d(6, 8, 3, padding=1)
    with torch.no_grad():
        assert made.bias is not None and conv.bias is not None
        made.bias.copy_(conv.bias)
        made.weight.copy_((parts(x)[:, :, 1, 1] - conv.bias).T.reshape(8, 6, 3, 3))
        y = torch.randn(2, 6, 9, 9)
        again = factorise(made, method, ranks)
        assert torch.allclose(again(y), parts(y), atol=1e-4)


KIM = [  # layer, groups of this shape, in, out, kernel, ranks, weights left (Kim et al., table 2)
    ("conv2", 2, 48, 128, 5, (25, 59), 91.3e3, 307e3),
    ("conv3", 1, 256, 384, 3, (105, 112), 175.7e3, 885e3),
    ("conv4", 2, 192, 192, 3, (49, 46), 77.1e3, 664e3),
    ("conv5", 2, 192, 128, 3, (40, 34), 48.5e3, 442e3),
    ("fc6", 1, 256, 4096, 6, (210, 584), 6.86e6, 37.7e6),
    ("fc7", 1, 4096, 4096, 1, (301,), 2.47e6, 16.8e6),
    ("fc8", 1, 4096, 1000, 1, (195,), 0.99e6, 4.10e6),
]


@pytest.mark.parametrize("layer,groups,inputs,outputs,kernel,ranks,after,before", KIM)
def test_kims_alexnet(
    layer: str,
    groups: int,
    inputs: int,
    outputs: int,
    kernel: int,
    ranks: Ranks,
    after: float,
    before: float,
) -> None:
    """Weights a layer, of the published table; a group is a convolution of its own."""
    size = {5: (27, 27), 3: (13, 13), 6: (6, 6), 1: (1, 1)}[kernel]
    after_size = (1, 1) if kernel == 6 else size
    shape: Any = {"kernel": (kernel, kernel), "input_size": size, "output_size": after_size}
    spec = LayerSpec(layer, "conv", inputs, outputs, **shape)
    method: Method = "svd" if len(ranks) == 1 else "tucker"
    parts = factored(spec, method, ranks)
    assert groups * spec.params == pytest.approx(before, rel=6e-3)
    assert groups * sum(part.params for part in parts) == pytest.approx(after, rel=6e-3)
    if layer != "fc6":  # its first factor runs at 36 positions, the layer at one: it costs MACs
        assert affordable(spec, method, ranks) == ranks


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stride", [1, 2])
def test_affordable_ranks_save_and_are_monotone(method: Method, stride: int) -> None:
    """In every rank, and in every width that the mixed space may leave: MACs and parameters never
    fall, and never exceed the whole layer's.
    """

    def layer(c: int, n: int) -> LayerSpec:
        size = (8 // stride, 8 // stride)
        return LayerSpec("x", "conv", c, n, (3, 3), (stride, stride), 1, (8, 8), size)

    def cost(c: int, n: int, ranks: Ranks) -> tuple[int, int]:
        before, spec = layer(12, 16), layer(c, n)
        cut = affordable(spec, method, shrunk(method, ranks, before, spec, 1))
        parts = (spec,) if cut is None else factored(spec, method, cut)
        macs, params = sum(p.macs for p in parts), sum(p.params for p in parts)
        assert macs <= spec.macs and params <= spec.params
        return macs, params

    whole = full_ranks(method, layer(12, 16))
    steps = [sorted({1, 2, 3, 5, 8, rank // 2, rank - 1, rank}) for rank in whole]
    values = {
        (c, n, *ranks): cost(c, n, ranks)
        for c, n in itertools.product((2, 3, 5, 11, 12), (2, 3, 9, 15, 16))
        for ranks in itertools.product(*steps)
    }
    for (a, low), (b, high) in itertools.permutations(values.items(), 2):
        if all(x <= y for x, y in zip(a, b, strict=True)):
            assert low[0] <= high[0] and low[1] <= high[1], (a, b)


def test_principal_is_the_best_product() -> None:
    """Of all products of that rank none predicts better: compared with alternating least squares
    from many starts.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 10, generator=generator, dtype=torch.float64)
    x[:, 5:] = x[:, :5] * 0.9 + 0.1 * x[:, 5:]  # correlated inputs
    y = x @ torch.randn(10, 6, generator=generator, dtype=torch.float64)
    y += 0.3 * torch.randn(y.shape, generator=generator, dtype=torch.float64)
    full = torch.linalg.lstsq(x, y).solution.T
    inward, outward = principal(full, full @ (x.T @ x / 300) @ full.T, 2)
    best = float(((y - x @ (outward @ inward).T) ** 2).sum())
    u, s, v = torch.linalg.svd(full)
    truncated = (u[:, :2] * s[:2]) @ v[:2]
    assert best < float(((y - x @ truncated.T) ** 2).sum())
    for _ in range(10):
        right = torch.randn(2, 6, generator=generator, dtype=torch.float64)
        for _ in range(200):
            left = torch.linalg.lstsq(x, y @ torch.linalg.pinv(right)).solution
            right = torch.linalg.lstsq(x @ left, y).solution
        assert best <= float(((y - x @ left @ right) ** 2).sum()) * (1 + 1e-9)


def test_input_projection_keeps_what_the_layer_reads() -> None:
    """Inputs vary most where the layer does not look: the projection keeps the rest."""
    moments = torch.diag(torch.tensor([100.0, 1.0, 1.0, 100.0], dtype=torch.float64))
    weight = torch.tensor([[0.001, 1.0, 2.0, 0.0]], dtype=torch.float64)
    encoder, decoder = input_projection(moments, weight, 1)
    x = torch.tensor([[7.0, 1.0, 2.0, -9.0]], dtype=torch.float64)
    assert torch.allclose(x @ encoder.T @ decoder.T @ weight.T, x @ weight.T, atol=0.05)


@pytest.mark.parametrize("method", METHODS)
def test_refit_gives_the_output_better_than_the_weights(method: Method) -> None:
    conv = nn.Conv2d(6, 8, 3, padding=1)
    network, _ = alone(conv)
    # inputs are correlated, as those of real networks are
    colours = torch.randn(6, 6) * torch.tensor([3.0, 1.0, 0.3, 0.1, 0.1, 0.1])
    x = torch.einsum("nchw,dc->ndhw", example_input(conv, (6, 9, 9), batch=200), colours).relu()
    factoring = Factoring(method, (3, 3) if method == "tucker" else (3,), conv)
    sampler = Sampler(200)
    parts = factoring.before_refit()
    with torch.no_grad():
        assert conv.bias is not None
        wanted = sampler.outputs("0", conv, conv(x)) - conv.bias
        shift = refit(parts, factoring, x, wanted, partial(sampler.inputs, "0"), True, 1e-6)
        parts[-1].bias += shift
        errors = [
            float(((made(x) - conv(x)) ** 2).mean()) for made in (parts, factoring.from_weights())
        ]
    assert errors[0] < 0.8 * errors[1]
    norms = [
        float(part.weight.detach().norm()) for part in parts
    ]  # a shared scale, or they do not train
    assert method == "cp" or max(norms) < 3 * min(norms), norms
    assert cost_of(trace(nn.Sequential(parts), network.input_shape)).params < 6 * 8 * 9 + 8


@pytest.mark.parametrize("method", METHODS)
def test_factors_of_weights_share_their_scale(method: Method) -> None:
    conv, ranks = CONVOLUTIONS[0], (4, 5) if method == "tucker" else (4,)
    alone(conv)
    with torch.no_grad():
        conv.weight *= 1e-3
        norms = [float(part.weight.norm()) for part in factorise(conv, method, ranks)]
    assert max(norms) < 3 * min(norms), norms


def test_the_same_factors_every_time() -> None:
    conv = CONVOLUTIONS[0]
    alone(conv)
    for method in METHODS:
        ranks = (2, 2) if method == "tucker" else (2,)
        one, two = (factorise(conv, method, ranks).state_dict() for _ in range(2))
        assert all(np.array_equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("method", METHODS)
def test_factors_are_made_where_the_layer_is(method: Method) -> None:
    """Another device is the default one meanwhile, whose tensors hold nothing."""
    conv = nn.Conv2d(6, 8, 3, padding=1)
    x = example_input(conv, (6, 9, 9), batch=100)
    factoring, sampler = (
        Factoring(method, (3, 3) if method == "tucker" else (3,), conv),
        Sampler(100),
    )
    found = []
    for device in ("cpu", "meta"):
        with torch.no_grad(), torch.device(device):
            parts, plain = factoring.before_refit(), factoring.from_weights()
            wanted = sampler.outputs("0", conv, conv(x))
            refit(parts, factoring, x, wanted, partial(sampler.inputs, "0"), True, 1e-6)
        found.append([*parts.parameters(), *plain.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
