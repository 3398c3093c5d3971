"""What amc draws depends on its seeds alone, and the caller's random states stay as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from zoo import Mine, config_of, taught

import amc
from amc.config import load_config
from amc.data.datasets import Dataset
from amc.deliver.evaluate import evaluate
from amc.problem import Problem
from amc.randomness import own_randomness
from amc.runs.directory import Run
from amc.surgery.factor import factorise
from amc.testing import check_bound_space
from amc.training.distill import Distillation
from amc.training.settings import DistillConfig

AGENTS = ["td3", "ddpg", "sac", "random", "genetic", "tpe", "ddpnas", "greedy", "deep"]
DRAWING = """
import random
import numpy as np
import torch
from amc.agents.proposing import ProposingAgent

class Drawing(ProposingAgent):
    def propose(self):
        drawn = random.random(), np.random.rand(), torch.rand(1).item()
        return [np.full(self.steps, sum(drawn) / 3)]
"""


def set_states(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def states() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), kind, keys.tolist(), rest, random.getstate()  # type: ignore[union-attr]


@contextmanager
def left_alone() -> Iterator[None]:
    before = states()
    yield
    assert states() == before


def found(run: Run) -> list[tuple[Any, ...]]:
    return [(line["strategy"], line["reward"], line["phase"]) for line in run.lines()]


@pytest.mark.parametrize("agent", AGENTS)
def test_a_search_neither_depends_on_the_callers_states_nor_changes_them(
    digits: Dataset, tmp_path: Path, agent: str
) -> None:
    own = [] if agent == "deep" else ["agent.episodes=7"]
    own += ["agent.warmup_episodes=3"] if agent in ("td3", "ddpg", "sac") else []
    torch.manual_seed(0)
    model, journals = Mine(), []
    for seed in (1, 2):
        set_states(seed)
        with left_alone():
            config = config_of(f"agent={{name: {agent}}}", "reward=kl", *own)
            run = amc.search(config, model=model, dataset=digits, out=tmp_path / str(seed)).run
        journals.append(found(run))
    assert journals[0] == journals[1]


def test_a_plug_in_that_draws_from_them_neither(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "drawing.py").write_text(DRAWING)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.manual_seed(0)
    model, journals = Mine(), []
    for seed in (1, 2):
        set_states(seed)
        with left_alone():
            config = config_of("agent={name: 'drawing:Drawing', episodes: 4}")
            run = amc.search(config, model=model, dataset=digits, out=tmp_path / str(seed)).run
        journals.append(found(run))
    assert journals[0] == journals[1]


def test_nor_does_what_is_done_with_a_run(digits: Dataset, tmp_path: Path) -> None:
    """Resumed, evaluated, exported, loaded, and fine-tuned with hints, whose convolutions begin
    with random weights.
    """
    torch.manual_seed(0)
    model = taught(Mine(), digits)
    results = []
    for seed in (1, 2):
        set_states(seed)
        config = config_of("agent={name: td3, episodes: 5, warmup_episodes: 3}", "reward=kl")
        out = tmp_path / str(seed)
        with left_alone():
            run = amc.search(config, model=model, dataset=digits, out=out).run
        (run.path / "best.json").unlink()
        journal = run.path / "episodes.jsonl"
        journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:4]))
        (run.path / "checkpoint.pt").unlink(missing_ok=True)
        options: dict[str, Any] = {"model": model, "dataset": digits}
        settings = ["epochs=1", "augment=none", "distill.hint=0.5", "distill.layers=[b]"]
        with left_alone():
            result = amc.resume(run.path, **options)
        with left_alone():
            tuned = amc.finetune(run.path, settings, **options)
        with left_alone():
            amc.export(run.path, ["safetensors", "onnx"], **options)
        with left_alone():
            amc.load(result)
        losses = pd.read_csv(tuned.path / "log.csv")["train_loss"].tolist()
        results.append((found(result.run), losses))
    assert results[0] == results[1]


def test_evaluate_and_the_check_of_a_space_leave_them(digits: Dataset, tmp_path: Path) -> None:
    preset = "digits_resnet8_lowrank_macs50"
    config = load_config(preset, ["agent.name=deep", "train.epochs=1", "allow_untrained=true"])[1]
    with left_alone():
        run = amc.search(config, out=tmp_path).run
    with left_alone():
        evaluate(run.path)
    problem = Problem.build(config_of("space={name: lowrank}"), Mine(), digits)
    with left_alone():
        check_bound_space(problem.space)


def test_the_convolutions_of_a_hint_follow_from_a_seed() -> None:
    student, teacher = (
        nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.Flatten())
        for width in (4, 6)
    )

    def weights(state: int, seed: int) -> Tensor:
        set_states(state)
        with left_alone():
            config = DistillConfig(hint=1.0, layers=("0",))
            made = Distillation(student, teacher.eval(), (1, 8, 8), config, seed=seed)
        (regressor,) = made.regressors.values()
        return regressor.weight.detach().clone()

    assert torch.equal(weights(1, 0), weights(2, 0))
    assert not torch.equal(weights(1, 0), weights(1, 1))


def test_factors_of_a_layer_leave_them() -> None:
    layer = nn.Conv2d(4, 6, 3)
    with left_alone():
        factorise(layer, "svd", (2,))


def test_states_of_our_own() -> None:
    generator = torch.Generator().manual_seed(5)
    before = generator.get_state()
    draws = []
    for state in (1, 2):
        set_states(state)
        with left_alone(), own_randomness(3, generator, None):
            torch.rand(1, generator=generator)
            draws.append((torch.rand(1).item(), np.random.rand(), random.random()))
        assert torch.equal(generator.get_state(), before)
    assert draws[0] == draws[1]
    with pytest.raises(ZeroDivisionError), left_alone(), own_randomness():
        raise ZeroDivisionError
