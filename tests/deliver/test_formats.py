"""Exports of networks that not every format can hold, and of tensors with two names."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from zoo import config_of

from amc.data.datasets import Dataset
from amc.deliver import formats
from amc.deliver.export import export
from amc.deliver.load import load
from amc.errors import UserError
from amc.network.layers import evaluating, example_input
from amc.problem import Problem
from amc.search import SearchResult, resume, search
from amc.training.keeper import plain


class Plain(nn.Module):
    """What the others differ from in one operation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(64, 24), nn.Linear(24, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.b(torch.relu(self.a(x.flatten(1))))))


class Branching(Plain):
    """Which way it goes depends on the data: neither exporter can follow."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if y.sum() > -1e9 else -y


class Unknown(Plain):
    """An operator that ONNX does not have."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0 * torch.special.bessel_j0(x.flatten(1)[:, :3])


class Through(Plain):
    """Goes through NumPy, which `torch.export` refuses."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.from_numpy(x.detach().numpy()))


class Tied(nn.Module):
    """A weight under two names, and a module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 40)
        self.a, self.b = nn.Linear(40, 40), nn.Linear(40, 40)
        self.b.weight = self.a.weight
        self.again = self.first
        self.middle, self.head = nn.Linear(40, 30), nn.Linear(30, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x.flatten(1)))
        x = torch.relu(self.b(torch.relu(self.a(x))))
        return self.head(torch.relu(self.middle(x)))


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "amc"]


def found(model: type[nn.Module], data: Dataset, out: Path, *overrides: str) -> SearchResult:
    torch.manual_seed(0)
    config = config_of("agent=uniform", "budget.ratio=0.9", *overrides)
    return search(config, model=model(), dataset=data, out=out)


@pytest.mark.parametrize(
    ("model", "failing"),
    [(Branching, {"onnx", "pt2"}), (Unknown, {"onnx"}), (Through, {"pt2"}), (Plain, set())],
)
def test_what_one_format_cannot_hold_the_others_do(
    model: type[nn.Module],
    failing: set[str],
    digits: Dataset,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    result = found(model, digits, tmp_path)
    folder = result.run.path / "export"
    folder.mkdir()
    for name in ("model.onnx", "model.pt2"):
        (folder / name).write_text("of an earlier export")
    capfd.readouterr()
    metrics = export(result)
    assert set(metrics["failed_formats"]) == failing
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    card = (folder / "README.md").read_text()
    for name in ("onnx", "pt2"):
        written = (folder / f"model.{name}").is_file()
        assert written == (name not in failing) == (f"- `model.{name}`" in card)
        assert (metrics[f"{name}_max_abs_diff"] is not None) == written
        assert (f"- {name}: the network could not be exported" in card) != written
    assert {"model.safetensors", "strategy.json"} <= {path.name for path in folder.iterdir()}
    lines = [line for line in said(caplog) if "not exported" in line]
    assert len(lines) == len(failing) and not any("\n" in line for line in said(caplog))
    for line in (*lines, *metrics["failed_formats"].values()):
        assert "\x1b" not in line and len(line) < 300 and not line.endswith("Next steps:")
    assert len("".join(capfd.readouterr()).splitlines()) <= len(said(caplog))
    assert logging.root.manager.disable == logging.NOTSET


def test_nothing_written_is_an_error(digits: Dataset, tmp_path: Path) -> None:
    result = found(Branching, digits, tmp_path)
    with pytest.raises(UserError, match=r"nothing could be exported \(onnx: .*; pt2: .*\)"):
        export(result, ["onnx", "pt2"])
    assert not list((result.run.path / "export").glob("model.*"))


def test_a_format_that_disagrees_is_not_written(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "TOLERANCE", -1.0)
    metrics = export(found(Plain, digits, tmp_path))
    assert set(metrics["failed_formats"]) == {"onnx", "pt2"}
    assert "differ by" in metrics["failed_formats"]["onnx"]


@pytest.mark.parametrize("model", [Unknown, Through])
def test_latency_that_cannot_be_measured_is_one_line(
    model: type[nn.Module], digits: Dataset, caplog: Any, capfd: Any
) -> None:
    problem = Problem.build(config_of(), model(), digits)
    capfd.readouterr()
    assert problem.measured_latency(problem.network.model) is None
    (line,) = said(caplog)
    assert line.startswith("the latency was not measured: ") and "\n" not in line
    assert len("".join(capfd.readouterr()).splitlines()) <= 1


@pytest.mark.parametrize("space", ["channel", "lowrank"])
def test_two_names_are_saved_and_load_exactly(space: str, digits: Dataset, tmp_path: Path) -> None:
    result = found(Tied, digits, tmp_path, f"space={space}")
    base = load_file(result.run.path / "base.safetensors")
    whole = result.problem.network.model
    for key, value in whole.state_dict().items():
        assert torch.equal(base[key], value), key
    assert export(result, ["safetensors"])["failed_formats"] == {}
    expected = result.problem.space.apply(result.best["strategy"])
    image = example_input(expected, (1, 8, 8), batch=5)
    for loaded in (load(result), load(result.run.path, model=Tied())):
        with evaluating(loaded), evaluating(expected):
            assert torch.equal(loaded(image), expected(image))
        assert loaded.state_dict().keys() == expected.state_dict().keys()
    assert resume(result.run.path, model=Tied(), dataset=digits).best == result.best


def test_every_tensor_has_memory_of_its_own() -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            flat = torch.arange(12.0)
            self.whole, self.part = nn.Parameter(flat), nn.Parameter(flat[6:])
            self.turned = nn.Parameter(flat.view(3, 4).t())
            self.register_buffer("none", torch.zeros(0))
            self.register_buffer("nothing", torch.zeros(0))

        def get_extra_state(self) -> dict[str, int]:
            return {"version": 1}

        def set_extra_state(self, state: Any) -> None: ...

    state = plain(Views())
    places = [t.untyped_storage().data_ptr() for t in state.values() if t.numel()]
    assert len(set(places)) == 3 == len(places)
    assert state["part"].tolist() == list(range(6, 12)) and "_extra_state" not in state


class Counts(Plain):
    """Computes with the number of its images, which no exporter leaves open."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 64))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.token.expand(len(x), -1).view(len(x), 1, 8, 8))


def test_a_network_that_computes_with_the_number_of_images_takes_one_at_a_time(
    tmp_path: Path, digits: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of("agent=random", "agent.episodes=1")
    found = search(config, model=Counts(), dataset=digits, out=tmp_path)
    with caplog.at_level(logging.WARNING):
        metrics = export(found)
    assert not metrics["failed_formats"] and metrics["onnx_batch"] == metrics["pt2_batch"] == 1
    assert metrics["onnx_top1_agreement"] == 1.0
    assert sum("takes one image at a time" in line for line in said(caplog)) == 2
    card = (found.run.path / "export" / "README.md").read_text()
    assert card.count(", one image at a time; agrees") == 2 and "dynamic batch" not in card


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_networks_come_back_in_the_dtype_that_they_were_given_in(
    tmp_path: Path, digits: Dataset, dtype: torch.dtype
) -> None:
    model = nn.DataParallel(Plain().to(dtype))
    config = config_of("agent=random", "agent.episodes=1")
    found = search(config, model=model, dataset=digits, out=tmp_path)
    export(found, ["safetensors"])
    again = load(found.run.path, model=Plain().to(dtype))
    for smaller in (load(found), again):
        assert {parameter.dtype for parameter in smaller.parameters()} == {dtype}
    images = digits.normalise(digits.test.fetch(torch.arange(4).numpy()))
    apart = load(found)(images.to(dtype)) - again(images.to(dtype))
    assert float(apart.detach().abs().max()) == 0
    assert next(model.parameters()).dtype == dtype
