"""Law 14: the same answer on every compute, from the first probe to the network that is handed out.
Without a GPU on the processor's twin, which takes the same path.
"""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from twin import STATE, is_installed, twin
from zoo import Mine, config_of, journal, taught

import amc
from amc.compute import HOST, Compute
from amc.data.datasets import Dataset
from amc.errors import UserError
from amc.evaluate.outcome import Candidate
from amc.network.builtin import CifarResNet
from amc.parallel.packing import packed, unpacked
from amc.problem import Problem
from amc.spaces.channel import ChannelSpace

SPACES = {
    "none": ["space.repair=none"],
    "sequential": ["space.repair=sequential"],
    "independent": ["space.repair=independent", "space.criterion=reconstruction"],
    "batchnorm": ["space.repair=none", "space.reestimate_batchnorm=true"],
    "uncoupled": ["space.coupled=false", "evaluate.racing=0.9"],
    "tucker": ["space.name=lowrank", "space.convolution=tucker"],
    "svd": ["space.name=lowrank", "space.convolution=svd"],
    "spatial": ["space.name=lowrank", "space.convolution=spatial"],
    "cp": ["space.name=lowrank", "space.convolution=cp"],
    "weights": ["space.name=lowrank", "space.repair=none"],
    "mixed": ["space.name=mixed"],
}


@pytest.fixture(scope="module")
def network(digits: Dataset) -> nn.Module:
    torch.manual_seed(0)
    return taught(CifarResNet(1, num_classes=3, in_channels=1, width=8), digits)


@pytest.mark.parametrize("space", SPACES)
def test_the_same_strategies_come_to_the_same(
    space: str, network: nn.Module, digits: Dataset, elsewhere: Compute
) -> None:
    found = []
    for name in ("cpu", elsewhere.name):
        config = config_of(f"compute={name}", *SPACES[space])
        problem = Problem.build(config, network, digits)
        assert (
            problem.compute.name == problem.network.place.type + name[3 if name == "cpu" else 4 :]
        )
        evaluator = problem.evaluator()
        some = [problem.space.uniform(ratio) for ratio in (0.4, 0.7)]
        found.append([evaluator(strategy) for strategy in some])
    for one, other in zip(*found, strict=True):
        assert one.failed is None and other.failed is None, (one.trace, other.trace)
        assert one.strategy == other.strategy and one.cost == other.cost
        assert one.repair_kept == other.repair_kept
        assert one.score.accuracy == pytest.approx(other.score.accuracy, abs=0.0101)  # an image
        assert one.score.kl == pytest.approx(other.score.kl, rel=1e-2, abs=1e-4)


def test_what_a_search_works_on_lies_there(
    network: nn.Module, digits: Dataset, elsewhere: Compute
) -> None:
    problem = Problem.build(config_of(f"compute={elsewhere.name}"), network, digits)
    evaluator = problem.evaluator()
    space = problem.space
    assert isinstance(space, ChannelSpace)
    assert space.calibration is not None and space.fresh is not None
    for tensor in (space.calibration, space.fresh, evaluator.images.pixels):
        assert tensor.device == elsewhere.device
    assert evaluator.images.pixels.dtype == torch.uint8
    strategy = space.uniform(0.5)
    assert next(space.apply(strategy).parameters()).device == elsewhere.device
    assert next(problem.applied(strategy, Path("x")).parameters()).device.type == "cpu"
    assert next(network.parameters()).device.type == "cpu", "the user's own is not modified"
    problem.memorised(evaluator)
    handed = problem.applied(strategy, Path("x"))
    assert problem.accuracy(handed, test=True) == problem.accuracy(space.apply(strategy), test=True)


def test_a_search_is_the_same_and_goes_on_the_same(
    digits: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Probing, walks, repair, journal; stopped and resumed; trained, exported and loaded."""
    model = taught(Mine(), digits)
    config = config_of("agent.name=random", "agent.episodes=4")
    here = amc.search(config, model=model, dataset=digits, out=tmp_path / "cpu")
    with twin():
        there = amc.search(config, model=model, dataset=digits, out=tmp_path / "twin")
        assert there.run.provenance["compute"] == "twin:0"
        expected = journal(here.run.path)
        assert journal(there.run.path) == expected
        lines = (there.run.path / "episodes.jsonl").read_text().splitlines(keepends=True)
        (there.run.path / "episodes.jsonl").write_text("".join(lines[:3]))
        amc.resume(there.run.path, model=model, dataset=digits)
        assert journal(there.run.path) == expected
        tuned = amc.finetune(
            there.run.path, {"epochs": 1, "precision": "fp32"}, model=model, dataset=digits
        )
        assert next(tuned.model.parameters()).device.type == "cpu"
        metrics = amc.export(there.run.path, model=model, dataset=digits)
        assert 0 <= metrics["test_accuracy"] <= 1
        (there.run.path / "episodes.jsonl").write_text("".join(lines[:3]))
    with caplog.at_level(logging.WARNING):
        amc.resume(there.run.path, model=model, dataset=digits)
    assert "was begun on twin:0 and goes on on cpu" in caplog.text
    assert journal(there.run.path) == expected
    loaded = amc.load(there.run.path / "export", model=model)
    assert next(loaded.parameters()).device.type == "cpu"


class Homely(nn.Module):
    """Makes a tensor on the processor, wherever it is."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Mine()
        self.offset = torch.ones(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.offset


def test_a_network_that_runs_on_the_processor_only(
    digits: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    with twin(), caplog.at_level(logging.WARNING):
        problem = Problem.build(config_of(), Homely(), digits)
        assert problem.compute == HOST and problem.network.place.type == "cpu"
        assert "does not run on twin:0" in caplog.text and "on the processor" in caplog.text
        with pytest.raises(UserError, match=r"does not run on twin:0 .* take compute=cpu"):
            Problem.build(config_of("compute=twin"), Homely(), digits)
    with pytest.raises(UserError, match="compute is twin, but torch finds no accelerator"):
        Problem.build(config_of("compute=twin"), Mine(), digits)
    with pytest.raises(UserError, match="compute"):
        config_of("compute=GPU one")


@pytest.mark.parametrize(
    "repair, limit, key, fewer, said",
    [
        ("none", 8 * 64 * 4 * 100, "batch_size", 75, "from now on batches of 75 images"),
        ("sequential", 2_000_000, "calibration_images", 75, "from now on 75 calibration images"),
    ],
)
def test_where_memory_does_not_suffice_a_search_goes_on_with_less(
    repair: str,
    limit: int,
    key: str,
    fewer: int,
    said: str,
    network: nn.Module,
    digits: Dataset,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Said once, journaled, and kept on resume, where there may be more room."""
    some = ["evaluate.images=150", "evaluate.calibration_images=150", "evaluate.batch_size=150"]
    config = config_of(*some, "agent=random", "agent.episodes=2", f"space.repair={repair}")
    with twin():
        STATE.bytes = limit  # of one tensor
        with caplog.at_level(logging.WARNING):
            run = amc.search(config, model=network, dataset=digits, out=tmp_path).run
        assert run.provenance[key] == fewer and caplog.text.count(said) == 1
        assert all(line["failed"] is None for line in run.lines())
        lines = journal(run.path)
        (run.path / "episodes.jsonl").write_text("")
        STATE.bytes = float("inf")
        amc.resume(run.path, model=network, dataset=digits)
        assert journal(run.path) == lines


def test_images_for_which_there_is_no_room_stay_on_the_host(
    network: nn.Module, digits: Dataset
) -> None:
    with twin():
        problem = Problem.build(config_of("space.repair=none"), network, digits)
        expected = problem.evaluator()(problem.space.uniform(0.5)).score
        module = torch.get_device_module("twin")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "mem_get_info", lambda device: (100.0, 100.0))
            evaluator = problem.evaluator()
        assert evaluator.images.pixels.device.type == "cpu"
        assert evaluator(problem.space.uniform(0.5)).score == expected


def test_what_measures_beside_it_takes_the_next_one(network: nn.Module, digits: Dataset) -> None:
    with twin():
        problem = Problem.build(config_of("compute=auto"), network, digits)
        evaluator = problem.evaluator()
        strategy = problem.space.uniform(0.5)
        expected, content = evaluator(strategy).score, packed(evaluator)
        for compute in (evaluator.images.compute.of_worker(1), HOST):
            copy = unpacked(content, compute)
            assert copy.space.network.place == copy.images.pixels.device == compute.device
            measured = copy.measure(Candidate(strategy, problem.budget)).outcome
            assert measured.score.kl == pytest.approx(expected.kl, abs=1e-6)


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_the_precision_agrees(precision: str, network: nn.Module, digits: Dataset) -> None:
    if is_installed() or not torch.cuda.is_available():
        pytest.skip("needs a GPU, in a process without the processor's twin: pytest -m cuda")
    scores = []
    for name, how in (("cpu", "fp32"), ("cuda", precision)):
        config = config_of(f"compute={name}", f"evaluate.precision={how}", "evaluate.images=200")
        problem = Problem.build(config, network, digits)
        scores.append(problem.evaluator()(problem.space.uniform(0.5)).score)
    assert scores[0].accuracy == pytest.approx(scores[1].accuracy, abs=0.0101)
