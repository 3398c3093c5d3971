"""Least-squares repair and the criteria."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import uneven

from amc.compute import full_precision
from amc.criteria.magnitude import l1
from amc.criteria.reconstruction import reconstruction, removal_losses
from amc.network.builtin import CifarResNet
from amc.network.groups import find_groups
from amc.network.layers import evaluating, example_input
from amc.network.trace import Network
from amc.repair.independent import GramMatrices
from amc.repair.regression import RIDGES, regress, ridge_solve, second_moments
from amc.repair.rows import Sampler
from amc.spaces.channel import ChannelSpace
from amc.surgery.cut import cut


def calibrated(
    repair: str, model: nn.Module, shape: tuple[int, ...], **options: object
) -> ChannelSpace:
    network = Network.of(uneven(model), shape)
    images = example_input(network.model, shape, batch=200, seed=5)
    return ChannelSpace(network, {"repair": repair, "min_ratio": 0.2, **options}, images)


def two_convolutions() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3, padding=1),
        nn.Flatten(),
        nn.Linear(384, 4),
    )


def error(space: ChannelSpace, strategy: dict[str, int]) -> float:
    """Mean squared error of the outputs on unseen images, as a part of their variance."""
    image = example_input(space.network.model, space.network.input_shape, batch=100, seed=6)
    new = space.apply(strategy)
    with evaluating(new), evaluating(space.network.model):
        got, expected = new(image), space.network.model(image)
    return float(((got - expected) ** 2).mean() / expected.var())


def test_ridge_solve_agrees_with_lstsq() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 40, generator=generator, dtype=torch.float64) * torch.logspace(
        -2, 2, 40, dtype=torch.float64
    )
    y = torch.randn(500, 7, generator=generator, dtype=torch.float64)
    expected = torch.linalg.lstsq(x, y).solution
    assert torch.allclose(
        ridge_solve(x.T @ x, x.T @ y, ridge=1e-14), expected, rtol=1e-5, atol=1e-9
    )


def test_ridge_solve_survives_a_singular_matrix() -> None:
    x = torch.randn(20, 10, dtype=torch.float64)
    x = torch.cat([x, x, torch.zeros(20, 1, dtype=torch.float64)], dim=1)
    assert torch.isfinite(ridge_solve(x.T @ x, x.T @ torch.ones(20, 1, dtype=torch.float64))).all()


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Conv2d(3, 4, (3, 1), stride=2, padding=(2, 0), dilation=(2, 1)),
        nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect"),
        nn.Conv2d(3, 4, 1, stride=2),
    ],
)
def test_sampled_patches_are_what_the_convolution_sees(conv: nn.Conv2d) -> None:
    sampler = Sampler(images=5, positions=6)
    x = torch.randn(5, 3, 9, 10)
    rows = sampler.inputs("layer", conv, x)
    weight = conv.weight.permute(0, 2, 3, 1).flatten(1)
    assert conv.bias is not None
    got = rows @ weight.T + conv.bias
    assert torch.allclose(got, sampler.outputs("layer", conv, conv(x)), atol=1e-5)


@pytest.mark.parametrize("repair", ["independent", "sequential"])
def test_repair_is_the_least_squares_solution(repair: str) -> None:
    """Repair from the Gram matrix equals lstsq on the raw patches in float64: sequentially too, as
    nothing before the second layer has changed but the channels that are gone.
    """
    model = two_convolutions()
    space = calibrated(repair, model, (3, 8, 8))
    repaired = space.apply({"0": 5})
    keep = sorted(set(range(8)) - set(space.cuts({"0": 5})["2"]["in"]))
    assert space.calibration is not None
    with torch.no_grad():
        features = torch.relu(model[0](space.calibration))
        sampler = Sampler(200)
        x = sampler.inputs("2", model[2], features).double()
        y = sampler.outputs("2", model[2], model[2](features)).double()
    columns = [position * 8 + channel for position in range(9) for channel in keep]
    x = torch.cat([x[:, columns], torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
    solution = torch.linalg.lstsq(x, y).solution
    weight = repaired[2].weight.detach().permute(0, 2, 3, 1).flatten(1).T.double()
    assert torch.allclose(weight, solution[:-1], rtol=1e-2, atol=1e-3)
    assert torch.allclose(repaired[2].bias.detach().double(), solution[-1], atol=1e-2)


@pytest.mark.parametrize("build", [lambda: CifarResNet(2), lambda: CifarResNet(2, plain=True)])
def test_repair_gets_better_from_none_to_sequential(build: object) -> None:
    torch.manual_seed(0)
    model = build()  # type: ignore[operator]
    strategy = calibrated("none", model, (3, 16, 16)).uniform(0.6)
    none, independent, sequential = (
        error(calibrated(repair, model, (3, 16, 16)), strategy)
        for repair in ("none", "independent", "sequential")
    )
    assert sequential < independent < none


class Branches(nn.Module):
    """A residual branch whose shortcut loses something that the branch can make good."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.inner, self.one = nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.outer, self.two = nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.project = nn.Conv2d(12, 12, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        out = self.two(self.outer(F.relu(self.one(self.inner(x)))))
        out += self.project(x)
        return self.head(F.relu(out).mean((2, 3)))


def test_sequential_repair_of_projected_and_in_place_sums() -> None:
    torch.manual_seed(0)
    model = Branches()
    strategy = {"stem": 8, "inner": 6, "outer": 9}
    none, sequential = (
        error(calibrated(repair, model, (3, 12, 12)), strategy) for repair in ("none", "sequential")
    )
    assert sequential < 0.5 * none


def test_repair_restores_forwards_and_is_deterministic() -> None:
    torch.manual_seed(0)
    space = calibrated("sequential", Branches(), (3, 12, 12))
    first, second = space.apply({"inner": 6}), space.apply({"inner": 6})
    assert not any(
        "forward" in module.__dict__
        for net in (first, space.network.model)
        for module in net.modules()
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_batchnorm_reestimation_changes_only_statistics() -> None:
    torch.manual_seed(0)
    model = CifarResNet(1)
    plain = calibrated("sequential", model, (3, 16, 16)).apply({"conv1": 8}).state_dict()
    again = (
        calibrated("sequential", model, (3, 16, 16), reestimate_batchnorm=True)
        .apply({"conv1": 8})
        .state_dict()
    )
    changed = {key for key in plain if not torch.equal(plain[key], again[key])}
    assert changed and all(
        key.endswith(("running_mean", "running_var", "num_batches_tracked")) for key in changed
    )


def test_reconstruction_criterion_keeps_what_cannot_be_made_good() -> None:
    """Two channels are copies of each other: one of them is free to go, whatever its norm."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(576, 3)
    )
    with torch.no_grad():
        model[0].weight[3] = model[0].weight[0]
        model[0].bias[3] = model[0].bias[0]
        model[2].weight[:, 0] *= 5
        model[2].weight[:, 3] *= 5
    space = calibrated("independent", model, (3, 16, 16), criterion="reconstruction")
    assert space.cuts({"0": 3})["0"]["out"][0] in (0, 3)
    assert calibrated("independent", model, (3, 16, 16)).cuts({"0": 3})["0"]["out"][0] in (
        1,
        2,
    )  # L1 keeps both copies


def test_layer_errors_are_what_least_squares_leaves_over() -> None:
    model = two_convolutions()
    space = calibrated("independent", model, (3, 8, 8))
    decision = next(d for d in space.decisions if d.name == "0")
    errors = space.layer_errors(decision)
    assert errors is not None and errors[-1] == 0
    assert all(a >= b for a, b in pairwise(errors))
    assert space.calibration is not None
    with torch.no_grad():
        x = Sampler(200).inputs("2", model[2], torch.relu(model[0](space.calibration))).double()
    x = x - x.mean(0)
    y = x @ model[2].weight.detach().permute(0, 2, 3, 1).flatten(1).T.double()
    for choice, error in zip(decision.choices, errors, strict=True):
        gone = space.cuts({"0": choice}).get("2", {"in": []})["in"]
        keep = [8 * spot + c for spot in range(9) for c in range(8) if c not in gone]
        rest = y - x[:, keep] @ torch.linalg.lstsq(x[:, keep], y).solution
        assert error == pytest.approx(float(rest.square().sum() / y.square().sum()), abs=2e-3)


def test_gram_matrix_is_the_second_moment() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    network = Network.of(model, (3, 2, 2))
    images = example_input(model, (3, 2, 2), batch=150)
    gram = GramMatrices(network, images, Sampler(150))["1"]
    rows = np.concatenate([images.flatten(1).numpy(), np.ones((150, 1))], axis=1)
    assert np.allclose(gram.numpy(), rows.T @ rows / 150, atol=1e-5)


@pytest.mark.parametrize("repair", ["independent", "sequential"])
def test_repair_of_inputs_that_hardly_vary(repair: str) -> None:
    """Large means and tiny variances, which a product before centring loses to rounding."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 3)
    )
    with torch.no_grad():
        model[0].weight *= 1e-5
        model[0].bias.fill_(30.0)
    space = calibrated(repair, model, (3, 8, 8))
    repaired = space.apply({"0": 5})
    assert all(torch.isfinite(value).all() for value in repaired.state_dict().values())
    assert error(space, {"0": 5}) < 1.5


@pytest.mark.parametrize("width", [1, 5, 128, 300])
def test_second_moments_of_any_width(width: int) -> None:
    rows = torch.randn(40, width, dtype=torch.float64)
    assert torch.allclose(second_moments(rows), rows.T @ rows)


@pytest.mark.parametrize("one_by_one", [False, True])
def test_products_are_exact_whatever_is_allowed(one_by_one: bool) -> None:
    matmul = torch.backends.cuda.matmul
    try:
        torch.set_float32_matmul_precision("highest" if one_by_one else "medium")
        if one_by_one:
            matmul.fp32_precision = "tf32"
        with full_precision():
            assert matmul.fp32_precision == "ieee"
            assert torch.get_float32_matmul_precision() == "highest"
        assert matmul.fp32_precision == "tf32"
        assert one_by_one or torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("count", [30, 90, 400])
def test_regression_with_fewer_and_more_rows_than_columns(count: int) -> None:
    """It solves for all rows with one of the ridges, or changes nothing: compared with the solution
    in float64 from the raw rows; bf16 rows are not multiplied in bf16.
    """
    generator = torch.Generator().manual_seed(count)
    rows = torch.randn(count, 60, generator=generator).bfloat16()
    truth, start = torch.randn(2, 3, 60, generator=generator, dtype=torch.float64)
    wanted = (rows.double() @ truth.T).float()
    fit = regress(rows.clone(), wanted, start, count, ridge=1e-6)
    x, y = rows.double() - rows.double().mean(0), wanted.double() - wanted.double().mean(0)

    def solved(ridge: float) -> Tensor:
        gram = x.T @ x
        damped = gram + ridge * gram.trace() / 60 * torch.eye(60, dtype=torch.float64)
        return start + torch.linalg.solve(damped, x.T @ (y - x @ start.T)).T

    allowed = [solved(ridge) for ridge in (1e-6, *RIDGES)]
    assert min(float((fit.weight - one).abs().max()) for one in allowed) < 1e-4
    assert (fit.weight - truth).norm() < (start - truth).norm()
    moments = fit.weight @ (x.T @ x / count) @ fit.weight.T
    assert torch.allclose(fit.moments(), moments, rtol=1e-4, atol=1e-4)


def test_nothing_is_changed_where_no_ridge_helps() -> None:
    """What would help on the images that are seen does harm on those held back."""
    generator = torch.Generator().manual_seed(0)
    rows, truth = (torch.randn(count, 60, generator=generator) for count in (40, 2))
    wanted = rows @ truth.T
    wanted[-10:] *= -1
    start = torch.zeros(2, 60, dtype=torch.float64)
    assert torch.equal(regress(rows, wanted, start, 40, centre=False).weight, start)


def test_what_is_drawn_depends_on_the_layer_and_the_seed_only() -> None:
    cpu = torch.device("cpu")
    one, same, other = (Sampler(20, seed, 5).at("layer", 100, cpu) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one, Sampler(20, 0, 5).at("another", 100, cpu))


@pytest.mark.parametrize("repair", ["independent", "sequential"])
def test_tensors_are_made_where_the_network_is(repair: str) -> None:
    """Another device is the default one meanwhile, whose tensors hold nothing: what is made there
    by mistake cannot be used with the network's.
    """
    torch.manual_seed(0)
    space = calibrated(repair, Branches(), (3, 12, 12), reestimate_batchnorm=True)
    strategy = {"stem": 8, "inner": 6}
    expected, cuts = space.apply(strategy).state_dict(), space.cuts(strategy)
    group = next(group for group in find_groups(space.network)[0] if group.name == "inner")
    again = ChannelSpace(space.network, space.options.model_dump(), space.calibration)
    assert again.calibration is not None
    with torch.device("meta"):
        model = cut(space.network.model, cuts)
        again._repair(model, cuts)  # its targets and Gram matrices are not computed yet
        grams = GramMatrices(space.network, again.calibration, Sampler(200))
        scores = [criterion(group, space.network, grams) for criterion in (l1, reconstruction)]
        assert all(loss > 0 for loss in removal_losses(group, space.network, grams, [[0], [1, 2]]))
    assert {one.device.type for one in scores} == {"cpu"}
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
