"""What a teacher adds to the loss, against values worked out by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo import Mine

from amc.errors import UserError
from amc.network.models import build_model
from amc.training.distill import (
    Distillation,
    Objective,
    attention,
    attention_map,
    flow,
    fsp,
    hint,
    last_of_each_resolution,
    soft_targets,
)
from amc.training.settings import DistillConfig


def test_soft_targets() -> None:
    """Teacher odds 9 to 1 and temperature 2: odds 3 to 1; the student says 1 to 1."""
    teacher, student = torch.tensor([[math.log(9), 0.0]]), torch.zeros(1, 2)
    by_hand = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert soft_targets(student, teacher, 2.0).item() == pytest.approx(by_hand)
    twice = soft_targets(student.repeat(2, 1), teacher.repeat(2, 1), 2.0)
    assert twice.item() == pytest.approx(by_hand)  # the mean over images
    assert soft_targets(teacher, teacher, 3.0).item() == pytest.approx(0, abs=1e-6)


def test_hint() -> None:
    """Differences 1, 3, 0, 0: half of 10 / 4."""
    teacher = torch.zeros(1, 1, 2, 2)
    student = torch.tensor([[[[1.0, -3.0], [0.0, 0.0]]]])
    assert hint(student, teacher).item() == pytest.approx(1.25)


def test_attention() -> None:
    """Squares summed over channels: 9 + 16, 0 -> (1, 0); the teacher's 0, 4 -> (0, 1)."""
    student = torch.tensor([[[[3.0, 0.0]], [[4.0, 0.0]]]])
    teacher = torch.tensor([[[[0.0, -2.0]]]])  # another number of channels
    assert attention_map(student).tolist() == [[1.0, 0.0]]
    assert attention(student, teacher).item() == pytest.approx(0.5 * 2)
    both = torch.tensor([[[[1.0, 1.0]]]])
    assert attention(student, both).item() == pytest.approx(0.5 * (2 - math.sqrt(2)))
    own = student.clone().requires_grad_()
    attention(own, student).backward()
    assert own.grad is not None and torch.equal(own.grad, torch.zeros_like(student))


def test_fsp() -> None:
    """Two channels and one, two positions: ((1*5 + 2*6) / 2, (3*5 + 4*6) / 2)."""
    first = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])
    last = torch.tensor([[[[5.0, 6.0]]]])
    assert flow(first, last).tolist() == [[[8.5], [19.5]]]
    large = torch.tensor([[[[0.0, 1.0, 2.0, 0.0]], [[3.0, 0.0, 4.0, 1.0]]]])
    assert torch.equal(flow(large, last), flow(first, last))  # max-pooled
    nothing = torch.zeros_like(first), last
    assert fsp(nothing, (first, last)).item() == pytest.approx((8.5**2 + 19.5**2) / 2)


def test_features_are_taken_where_the_resolution_falls() -> None:
    resnet = build_model("cifar:resnet20", 10, 3)
    assert last_of_each_resolution(resnet, (3, 32, 32)) == ("layer1", "layer2", "layer3")
    vgg = build_model("cifar:vgg16_bn", 10, 3)
    layers = last_of_each_resolution(vgg, (3, 32, 32))
    modules = dict(vgg.named_modules())
    assert len(layers) == 5 and all(layer in modules for layer in layers)


def test_all_losses_together_and_each_alone() -> None:
    torch.manual_seed(0)
    teacher, student = Mine().eval(), Mine()
    images, labels = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    weights = {"soft": 0.4, "temperature": 3.0, "hint": 0.5, "attention": 2.0, "fsp": 0.1}
    layers = last_of_each_resolution(teacher, (1, 8, 8))

    def loss(**chosen: float) -> float:
        config = DistillConfig.model_validate(chosen)
        objective = Distillation(student, teacher, (1, 8, 8), config).eval()
        return float(objective(images, labels)[0].detach())

    features: dict[str, list[torch.Tensor]] = {layer: [] for layer in layers}
    for network in (student.eval(), teacher):
        for layer in layers:
            network.get_submodule(layer).register_forward_hook(
                lambda _m, _i, output, layer=layer: features[layer].append(output)
            )
    outputs, targets = student(images), teacher(images)
    expected = 0.6 * F.cross_entropy(outputs, labels) + 0.4 * soft_targets(outputs, targets, 3.0)
    for ours, theirs in (features[layer][:2] for layer in layers):
        expected = expected + 0.5 * hint(ours, theirs) + 2.0 * attention(ours, theirs)
    for first, last in pairwise(layers):
        pairs = [(features[first][k], features[last][k]) for k in (0, 1)]
        expected = expected + 0.1 * fsp(pairs[0], pairs[1])
    assert loss(**weights) == pytest.approx(expected.item(), rel=1e-5)
    plain = Objective(student).eval()(images, labels)[0].item()
    assert loss() == pytest.approx(plain)
    for name in ("hint", "attention"):
        assert loss(**{name: weights[name]}) > plain


def test_a_hint_of_another_width_goes_through_a_regressor() -> None:
    teacher = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Conv2d(6, 6, 3), nn.Flatten(), nn.Linear(96, 3))
    student = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 6, 3), nn.Flatten(), nn.Linear(96, 3))
    objective = Distillation(student, teacher.eval(), (1, 8, 8), DistillConfig(hint=1.0))
    assert {key: tuple(conv.weight.shape) for key, conv in objective.regressors.items()} == {
        "0": (6, 2, 1, 1)
    }
    objective(torch.randn(2, 1, 8, 8), torch.tensor([0, 1]))[0].backward()
    assert all(p.grad is not None for p in objective.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert not any("teacher" in key for key in objective.state_dict())
    with pytest.raises(UserError, match="needs as many channels as the teacher has"):
        Distillation(student, teacher, (1, 8, 8), DistillConfig(fsp=1.0))
    with pytest.raises(UserError, match=r"unknown layer in distill\.layers .leyer."):
        Distillation(student, teacher, (1, 8, 8), DistillConfig(hint=1.0, layers=("leyer",)))
    with pytest.raises(UserError, match="maps of one height and width"):
        Distillation(student, teacher, (1, 8, 8), DistillConfig(attention=1.0, layers=("3",)))
