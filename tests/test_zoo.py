"""The checks of experiments/zoo judge truthfully, and hold for a few of its networks."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import Mine

FOLDER = Path(__file__).parents[1] / "experiments" / "zoo"


@pytest.fixture(scope="module")
def zoo() -> Iterator[Any]:
    """The modules of the experiment, which is no package; on one thread, as it runs itself."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    sys.path.insert(0, str(FOLDER))
    names = ("checks", "networks", "peer", "run")
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        torch.set_num_threads(threads)
        sys.path.remove(str(FOLDER))
        for name in names:
            sys.modules.pop(name, None)


def verdict_of(zoo: Any, model: nn.Module, channels: int = 1) -> tuple[str, str]:
    calibration, fresh = (zoo.networks.images(count, 32, count)[:, :channels] for count in (96, 8))
    return zoo.checks.Examination(model, calibration, fresh).run().verdict()


@pytest.mark.parametrize("name", ["timm/resnet10t", "timm/convnext_atto"])
def test_a_network_of_the_zoo(zoo: Any, name: str) -> None:
    model = zoo.networks.build(name)
    assert zoo.networks.smallest_size(model) == 32
    assert verdict_of(zoo, model, channels=3) == ("right", "")


def test_all_names_exist_and_are_told_apart(zoo: Any) -> None:
    names = zoo.networks.names()
    assert len(set(names)) == len(names) and len(zoo.networks.TIMM) == 40
    assert all(map(zoo.networks.timm.is_model, zoo.networks.TIMM))


def test_every_build_is_the_same_and_no_parameter_is_constant(zoo: Any) -> None:
    first, second = (zoo.networks.build("timm/mixer_s32_224").state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert all(len(value.unique()) > 1 for value in first.values() if value.numel() > 1)


def brightened(model: nn.Module) -> nn.Module:
    """Another network: its outputs are larger by a thousandth."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.get_parameter("head.weight").mul_(1.001)
    return changed


def test_a_wrong_cut_is_seen(zoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = zoo.checks.cut
    monkeypatch.setattr(zoo.checks, "cut", lambda model, cuts: brightened(cut(model, cuts)))
    verdict, reason = verdict_of(zoo, Mine())
    assert verdict == "wrong" and "cut is not mask (smallest)" in reason


def test_another_network_that_is_measured_is_seen(
    zoo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo.checks, "confirmed", lambda model, *others: brightened(model))
    verdict, reason = verdict_of(zoo, Mine())
    assert verdict == "wrong" and "the network as measured is not the network" in reason


@pytest.mark.parametrize("what", ["macs", "params"])
def test_a_wrong_count_is_seen(zoo: Any, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    count: Callable[..., int] = getattr(zoo.checks, what)
    monkeypatch.setattr(zoo.checks, what, lambda *arguments: count(*arguments) + 1)
    verdict, reason = verdict_of(zoo, Mine())
    assert verdict == "wrong" and "(whole) said" in reason and "(smallest) said" in reason


def test_repair_that_harms_is_seen(zoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def apply(space: Any, strategy: Any) -> nn.Module:
        smaller = zoo.checks.cut(space.network.model, space.cuts(strategy))
        with torch.no_grad():
            smaller.get_parameter("head.weight").mul_(-10)
        return smaller

    monkeypatch.setattr(zoo.checks.ChannelSpace, "apply", apply)
    verdict, reason = verdict_of(zoo, Mine())
    assert verdict == "wrong" and "repair harms" in reason


def test_a_fault_a_refusal_and_nothing_to_decide_are_told_apart(
    zoo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    assert verdict_of(zoo, Nothing())[0] == "refused"
    assert verdict_of(zoo, nn.Sequential(nn.Flatten(), nn.Linear(1024, 10)))[0] == "partly"
    monkeypatch.setattr(zoo.checks, "cut", lambda model, cuts: 1 // 0)
    verdict, reason = verdict_of(zoo, Mine())
    assert verdict == "traceback" and reason.startswith("cut: ZeroDivisionError")


def test_torch_pruning_is_judged_by_its_mask(zoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    images, prune = zoo.networks.images(2, 32, 11), zoo.peer.prune
    model = zoo.networks.build("timm/convnext_atto")
    found = zoo.peer.examine(copy.deepcopy(model), images, 10)
    assert found.verdict == "right" and found.params_ratio < 0.3
    assert "normalisations" in found.reason

    def another(model: nn.Module, image: Tensor, classes: int) -> Any:
        left = prune(model, image, classes)
        next(iter(left.values())).outputs.pop()  # a channel that is there is said to be gone
        return left

    monkeypatch.setattr(zoo.peer, "prune", another)
    assert zoo.peer.examine(model, images, 10).verdict == "wrong"
    monkeypatch.setattr(zoo.peer, "prune", lambda *_: 1 // 0)
    assert zoo.peer.examine(model, images, 10).verdict == "traceback"


def test_rows_are_taken_up_and_counted(zoo: Any, tmp_path: Path) -> None:
    run, path = zoo.run, tmp_path / "zoo.csv"
    row = {"source": "timm", "tp_verdict": "right"}
    rows = {
        "timm/a": row | {"network": "a", "verdict": "right"},
        "timm/b": row | {"network": "b", "verdict": "slow"},
    }
    run.write(path, rows)
    known = run.read(path)
    assert list(run.wanted(["timm/a", "timm/c"], "", "", known)) == ["timm/c"]
    assert list(run.wanted(["timm/a", "timm/c"], "", "m/a", known)) == ["timm/a"]
    text = run.table(known)
    assert "| timm, 2 | amc | 1 | 0 | 0 | 0 | 1 | 0 |" in text and "Slow: timm/b." in text


SAID = 'print(\'{"stage": "cut", "wrong": ["a fault"]}\', flush=True);'
STARTED = 'print(\'{"stage": "cut"}\', flush=True);'


@pytest.mark.parametrize(
    ("code", "verdict", "reason"),
    [
        (SAID + "import time; time.sleep(60)", "wrong", "a fault; longer than 3 s in cut"),
        (SAID + "import os; os.abort()", "wrong", "a fault; status -6 in cut"),
        (STARTED + "import time; time.sleep(60)", "slow", "longer than 3 s in cut"),
        (STARTED + "raise KeyError(3)", "traceback", "status 1 in cut: KeyError: 3"),
        (STARTED + "raise MemoryError", "slow", "more than 1 GB in cut"),
    ],
)
def test_a_process_that_hangs_or_dies_is_told(
    zoo: Any, monkeypatch: pytest.MonkeyPatch, code: str, verdict: str, reason: str
) -> None:
    monkeypatch.setattr(zoo.run, "__file__", "-c")
    facts = zoo.run.Trial([code], zoo.run.Limits(3.0, 1.0)).run(zoo.run.Event()).facts
    assert facts["verdict"] == verdict and facts["reason"].startswith(reason)
