"""The README's kind of layer, outside the package: it conforms, and a search uses it."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from readme import BLOCKS
from torch import nn

from amc import cli
from amc.compute import HOST
from amc.config import parse_config
from amc.data.datasets import Dataset
from amc.deliver.export import export
from amc.deliver.load import load
from amc.errors import UserError
from amc.network.kinds import kind_of
from amc.network.layers import evaluating, example_input
from amc.network.trace import Network, trace
from amc.parallel.packing import packed, unpacked
from amc.problem import Problem
from amc.search import resume, search
from amc.testing import same_table

SOURCE = next(block for block in BLOCKS if "class GatedKind" in block)
LAYERS = """
import torch
from torch import nn

class Gated(nn.Module):
    def __init__(self, ins, outs):
        super().__init__()
        self.a = nn.Parameter(torch.randn(ins, outs) / ins**0.5)
        self.b = nn.Parameter(torch.randn(ins, outs) / ins**0.5)

    def forward(self, x):
        return (x @ self.a) * torch.sigmoid(x @ self.b)

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), Gated(24, 32), nn.ReLU(),
                         nn.Linear(32, 3))
"""
CONFIG: dict[str, Any] = {
    "model": "my_layers:build",
    "weights": None,
    "kinds": ["my_kinds:GatedKind"],
    "budget": {"ratio": 0.5},
    "evaluate": {"images": 100, "calibration_images": 50},
    "agent": {"name": "random", "episodes": 4},
    "allow_untrained": True,
}


@pytest.fixture
def my_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, beside ``my_kinds``, in the current folder."""
    (tmp_path / "my_kinds.py").write_text(SOURCE)
    (tmp_path / "my_layers.py").write_text(LAYERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("my_kinds", "my_layers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return __import__("my_layers")


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str]:
    """How ``amc check`` ends, and all that it prints."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setattr(sys, "argv", ["amc", "check", *arguments])
        cli.main()
    printed = capsys.readouterr()
    return caught.value.code, printed.out + printed.err


def test_the_example_is_short() -> None:
    assert len([line for line in SOURCE.splitlines() if line.strip()]) <= 20


def test_the_example_conforms(my_layers: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed = said(capsys, "my_kinds:GatedKind")
    assert code == 0 and printed.count("ok ") > 30


def test_what_is_wrong_is_said(
    my_layers: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wrong_kinds.py").write_text(
        SOURCE.replace('for name in ("a", "b")', 'for name in ("a",)') + "\n\n"
        "class Half(Kind):\n    def matches(self, module):\n        return True\n"
    )
    code, printed = said(capsys, "wrong_kinds:GatedKind")
    assert code == 1 and "does not conform" in printed and "does not run" in printed
    code, printed = said(capsys, "wrong_kinds:Half")
    assert code == 2 and "cut" in printed and "Traceback" not in printed


def test_a_search_from_config_to_load(
    my_layers: ModuleType, digits: Dataset, tmp_path: Path
) -> None:
    """Decided, within budget, gone on with, exported, and rebuilt from what the export names."""
    result = search(parse_config(CONFIG), dataset=digits, out=tmp_path)
    space = result.problem.space
    assert {name for d in space.decisions for name in d.layers} == {"1", "3"}
    strategy = result.best["strategy"]
    assert strategy["3"] < 32 or strategy["1"] < 24
    smaller = space.apply(strategy)
    assert same_table(space.resize(strategy), trace(smaller, (1, 8, 8))) is None
    before = result.run.lines()
    assert len(resume(result.run.path, dataset=digits).run.lines()) == len(before)
    export(result.run.path, ["safetensors"], dataset=digits)
    rebuilt = load(result.run.path)
    x = example_input(rebuilt, (1, 8, 8), batch=4)
    with evaluating(rebuilt), evaluating(smaller):
        assert torch.allclose(rebuilt(x), smaller(x), atol=1e-5)
    torch.save(rebuilt, content := io.BytesIO())
    assert b"my_kinds" not in content.getvalue(), "what is handed out knows of no kind"


def test_it_goes_with_its_network_into_another_process(
    my_layers: ModuleType, digits: Dataset
) -> None:
    evaluator = Problem.build(parse_config(CONFIG), dataset=digits).evaluator()
    space = unpacked(packed(evaluator), HOST).space
    smaller = space.apply(space.smallest)
    assert same_table(space.resize(space.smallest), trace(smaller, (1, 8, 8))) is None
    assert smaller[3].a.shape == (space.smallest["1"], space.smallest["3"])


def test_one_search_says_nothing_to_another(my_layers: ModuleType) -> None:
    kind = __import__("my_kinds").GatedKind()
    model = my_layers.build()
    known, other = (Network.of(model, (1, 8, 8), "n", kinds) for kinds in ([kind], []))
    assert known.table["3"].kind == "own" and other.table["3"].kind == "other"
    assert kind_of(model[3]) is None, "the user's own network is as it was"


def test_names_that_are_no_kinds_are_refused(my_layers: ModuleType, digits: Dataset) -> None:
    for name, why in {
        "GatedKind": "unknown kind 'GatedKind': .*module:Class",
        "my_kinds:Gatedkind": "did you mean 'GatedKind'",
        "my_layers:Gated": "is no kind: it has no matches",
        "my_layers:build": "is no kind: it is not a class",
    }.items():
        with pytest.raises(UserError, match=why):
            search(CONFIG | {"kinds": name}, dataset=digits)


def test_a_kind_of_no_layer_is_said(
    my_layers: ModuleType, digits: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    with caplog.at_level(logging.WARNING, "amc"):
        search(CONFIG | {"model": None}, model=model, dataset=digits, out=tmp_path)
    assert "no layer of the network is a my_kinds:GatedKind" in caplog.text
