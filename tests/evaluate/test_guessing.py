"""A search begins with a network that has learned something, whose weights are numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from zoo import Mine, config_of

from amc.config import load_config, parse_config
from amc.data.datasets import Dataset
from amc.errors import UserError
from amc.evaluate.guessing import Guessing
from amc.network.trace import Network
from amc.plugins import allow
from amc.problem import Problem, check_trained
from amc.spaces.channel import ChannelSpace

DIGITS = "digits_resnet8_channel_macs50"
DEFAULTS = parse_config({"budget": {"ratio": 0.5}})


@pytest.mark.parametrize(
    ("counts", "accuracy", "reach"),
    [([10, 10], 0.5, 0.5 + math.sqrt(0.25 / 20)), ([0, 30, 70], 0.7, 0.7 + math.sqrt(0.21 / 100))],
)
def test_guessing_names_the_most_frequent_class(
    counts: list[int], accuracy: float, reach: float
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    for given in (labels, torch.from_numpy(labels), labels.tolist()):
        found = Guessing.of(given)
        assert found.accuracy == pytest.approx(accuracy) and found.reach == pytest.approx(reach)
        assert found.images == sum(counts)


def test_a_network_no_better_than_guessing_is_refused_with_both_figures() -> None:
    labels = torch.arange(100) % 4
    for accuracy in (0.0, 0.25, 0.29):
        with pytest.raises(UserError) as caught:
            check_trained(DEFAULTS, accuracy, labels)
        text = str(caught.value)
        assert f"{accuracy:.2%}" in text and "(25.00%)" in text and "allow_untrained=true" in text
    check_trained(DEFAULTS, 0.30, labels)
    allowed = parse_config({"budget": {"ratio": 0.5}}, ["allow_untrained=true"])
    check_trained(allowed, 0.0, labels)
    with pytest.raises(UserError):
        check_trained(DEFAULTS, 1.0, torch.zeros(10, dtype=torch.int64))


@pytest.mark.parametrize("model", ["digits:resnet8", "my_module:build"])
def test_default_weights_are_torchvisions_only(model: str) -> None:
    _, config = load_config(DIGITS, [f"model={model}", "weights=DEFAULT"])
    with pytest.raises(UserError, match=f"weights is DEFAULT, but only torchvision's.*{model}"):
        Problem.build(config)


def spoil(name: str, value: float) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        with torch.no_grad():
            {**dict(model.named_parameters()), **dict(model.named_buffers())}[name].view(-1)[1] = (
                value
            )

    return change


@pytest.mark.parametrize("name", ["a.weight", "head.bias", "norm.running_mean", "norm.running_var"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_no_numbers_are_named(name: str, value: float, digits: Dataset) -> None:
    model = Mine()
    spoil(name, value)(model)
    found = "NaN" if math.isnan(value) else "infinite"
    with pytest.raises(UserError, match=rf"'Mine' is damaged: 1 of the \d+ .*'{name}' are {found}"):
        Problem.build(config_of(), model, digits)


def test_a_file_of_weights_that_are_no_numbers_is_named(digits: Dataset, tmp_path: Path) -> None:
    model = Mine()
    spoil("b.bias", math.nan)(model)
    torch.save(model.state_dict(), tmp_path / "bad.pt")
    with pytest.raises(UserError, match=r"'Mine with .*bad.pt' is damaged: .*'b.bias' are NaN"):
        Problem.build(config_of(), Mine(), digits, base=tmp_path / "bad.pt")


def test_a_mask_may_be_infinite_but_no_number_it_must_be(digits: Dataset) -> None:
    class Masked(Mine):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.tensor([0.0, -math.inf]))

    assert Problem.build(config_of(), Masked(), digits).space.decisions
    model = Masked()
    spoil("mask", math.nan)(model)
    with pytest.raises(UserError, match="buffer 'mask' are NaN"):
        Problem.build(config_of(), model, digits)


def wrong_scores(group: Any) -> dict[str, tuple[Callable[[], Any], str]]:
    def fails() -> Tensor:
        raise ValueError("no\ngood")

    return {
        "length": (lambda: torch.rand(group.size + 1), r"gives float32 \(13,\) for"),
        "shape": (lambda: torch.rand(group.size, 1), r"gives float32 \(12, 1\)"),
        "nan": (lambda: torch.full((group.size,), math.nan), r"gives float32 \(12,\) with NaN"),
        "array": (lambda: np.ones(group.size), "gives a ndarray"),
        "none": (lambda: None, "gives a NoneType"),
        "integer": (lambda: torch.arange(group.size), r"gives int64 \(12,\)"),
        "bool": (lambda: torch.ones(group.size) > 0, r"gives bool \(12,\)"),
        "complex": (lambda: torch.rand(group.size) + 1j, r"gives complex64 \(12,\)"),
        "fails": (fails, r"fails for .*\(ValueError: no\)"),
    }


@pytest.mark.parametrize("case", wrong_scores(None))
def test_a_criterion_that_gives_no_scores_is_refused(
    case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "my_criterion.py").write_text("def mine(group, network, grams): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    import my_criterion  # type: ignore[import-not-found]

    make, message = wrong_scores(type("Group", (), {"size": 12}))[case]
    monkeypatch.setattr(my_criterion, "mine", lambda group, network, grams: make())
    network = Network.of(Mine().eval(), (1, 8, 8), "mine")
    allow("my_criterion:mine")
    space = ChannelSpace(network, {"repair": "none", "criterion": "my_criterion:mine"})
    with pytest.raises(UserError, match=message) as caught:
        assert space.decisions
    text = str(caught.value)
    assert "the criterion 'my_criterion:mine'" in text and "channels of 'a'" in text
    assert "\n" not in text


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_criterion_may_give_any_floats(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "other_criterion.py").write_text(
        "import torch\n\n\ndef mine(group, network, grams):\n"
        f"    return torch.arange(group.size).to({dtype}).requires_grad_()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    network = Network.of(Mine().eval(), (1, 8, 8), "mine")
    allow("other_criterion:mine")
    space = ChannelSpace(network, {"repair": "none", "criterion": "other_criterion:mine"})
    assert space.cuts({"a": 4})["a"]["out"] == list(range(8))
