"""Episodes that give nothing finite, or in which a plug-in raises: journaled, told, never best."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from amc.agents.proposing import ProposingAgent
from torch import Tensor, nn
from zoo import Mine, config_of, journal

from amc.analysis.compare import compare
from amc.analysis.pareto import pareto
from amc.cost.budget import Budget
from amc.cost.cost import Cost
from amc.data.datasets import Dataset
from amc.errors import UserError
from amc.evaluate import evaluator
from amc.evaluate.rewards import Score, finite
from amc.runs.directory import Run
from amc.search import resume, search
from amc.views.page import report

SOURCE = """
import math
import numpy as np
import torch
from amc.agents.random import RandomAgent

calls = []
WAYS = {
    "nan": lambda: math.nan,
    "infinite": lambda: -math.inf,
    "numpy_nan": lambda: np.float32("nan"),
    "nothing": lambda: None,
    "text": lambda: "0.9",
    "array": lambda: np.zeros(2),
    "huge": lambda: 10**400,
    "raises": lambda: 1 / 0,
}

def odd(way, which):
    def reward(score, cost, original, budget):
        calls.append(way)
        return WAYS[way]() if which(score, cost, original) else score.accuracy - 1
    return reward

for way in WAYS:
    globals()[way + "_first"] = odd(way, lambda s, c, o: len(calls) == 1)
    globals()[way + "_often"] = odd(way, lambda s, c, o: c.macs % 2 == 0)
    globals()[way + "_always"] = odd(way, lambda s, c, o: True)

def float32(score, cost, original, budget):
    return np.float32(score.accuracy)

def tensor(score, cost, original, budget):
    return torch.tensor(score.accuracy)

class Tired(RandomAgent):
    def propose(self):
        if len(self.walks) > 3:
            raise RuntimeError("no more")
        return super().propose()[:2]
"""
WAYS = "nan", "infinite", "numpy_nan", "nothing", "text", "array", "huge", "raises"
RANDOM = "agent={name: random, episodes: 12}"


def mine() -> Mine:
    torch.manual_seed(0)
    return Mine()


@pytest.fixture(autouse=True)
def _odd_rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd_rewards.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "odd_rewards", raising=False)


@pytest.mark.parametrize("way", WAYS)
def test_a_failed_first_episode_is_not_best(digits: Dataset, tmp_path: Path, way: str) -> None:
    # scaled to the whole budget, a later strategy may be the first one again
    config = config_of(RANDOM, f"reward=odd_rewards:{way}_first", "budget.fill=false")
    run = search(config, model=mine(), dataset=digits, out=tmp_path).run
    first, *others = run.lines()
    assert first["reward"] is None and first["search_accuracy"] is None and first["failed"]
    assert all(line["failed"] is None and math.isfinite(line["reward"]) for line in others)
    assert run.best["reward"] == max(line["reward"] for line in others)
    for made in (run.path / "search.png", report(run.path)):
        assert made.stat().st_size > 1000
    assert all(point.episode for point in pareto([run.path]).points)
    curve = compare([run.path]).curves[0]
    assert np.isnan(curve.best[0]) and np.isfinite(curve.best[1:]).all()


@pytest.mark.parametrize("agent", ["random", "td3", "genetic", "tpe", "greedy", "ddpnas"])
def test_searches_in_which_many_fail_resume_exactly(
    digits: Dataset, tmp_path: Path, agent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(f"agent={agent}", "agent.episodes=10", "reward=odd_rewards:raises_often")
    straight = search(config, model=mine(), dataset=digits, out=tmp_path / "a").run
    lines = straight.lines()
    failed = [line for line in lines if line["failed"]]
    assert 0 < len(failed) < len(lines)
    for line in failed:
        assert line["failed"].startswith("ZeroDivisionError: division by zero (errors/episode_")
        text = (straight.path / line["failed"].split("(")[1].rstrip(")")).read_text()
        assert "Traceback" in text and "odd_rewards.py" in text

    count = 0
    append = Run.append

    def stopping(self, *arguments) -> None:  # type: ignore[no-untyped-def]
        nonlocal count
        append(self, *arguments)
        count += 1
        if count % 3 == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "append", stopping)
    with pytest.raises(KeyboardInterrupt):
        search(config, model=mine(), dataset=digits, out=tmp_path / "b")
    (path,) = (tmp_path / "b").glob("*/s*")
    for number in range(10):
        if number % 2:
            (path / "checkpoint" / "agent.pt").unlink(missing_ok=True)  # all is walked again
        try:
            resume(path, model=mine(), dataset=digits)
            break
        except KeyboardInterrupt:
            continue
    assert journal(path) == journal(straight.path)


@pytest.mark.parametrize("way", ["nan", "raises"])
def test_where_all_fail_the_search_is_refused(digits: Dataset, tmp_path: Path, way: str) -> None:
    config = config_of(RANDOM, f"reward=odd_rewards:{way}_always")
    with pytest.raises(UserError, match=r"3 strategies in a row have failed, and so do those next"):
        search(config, model=mine(), dataset=digits, out=tmp_path)
    (path,) = tmp_path.glob("*/s*")
    assert len(Run.open(path).lines()) == 3
    with pytest.raises(UserError, match=r"none of the 3 episodes .* could be measured"):
        Run.open(path).best  # noqa: B018


def test_small_networks_that_fail_do_not_stop_a_search(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are nearly as they were do not: only how far the agent goes is wrong."""
    config = config_of(RANDOM, "budget.ratio=0.4")
    undisturbed = search(config, model=mine(), dataset=digits, out=tmp_path / "a").run.lines()
    middle = sorted(line["strategy"]["b"] for line in undisturbed)[len(undisturbed) // 2]
    real = evaluator.logits

    def fragile(model: nn.Module, *arguments) -> Tensor:  # type: ignore[no-untyped-def]
        kernels = [value for value in model.state_dict().values() if value.dim() == 4]
        width = next(len(value) for value in kernels if value.shape[1] > 1)
        return real(model, *arguments) * (math.nan if width < middle else 1.0)

    monkeypatch.setattr(evaluator, "logits", fragile)
    lines = search(config, model=mine(), dataset=digits, out=tmp_path / "b").run.lines()
    assert len(lines) == len(undisturbed)
    for line in lines:
        failed = line["strategy"]["b"] < middle
        assert line["failed"] == ("the network gives NaN or infinity" if failed else None)
    assert {line["failed"] is None for line in lines} == {True, False}


def test_what_the_agent_is_told(digits: Dataset, tmp_path: Path) -> None:
    """Worse than everything before it, and a finite number."""
    told: list[float] = []

    class Listening(ProposingAgent):
        def propose(self):  # type: ignore[no-untyped-def]
            told[:] = [walk.reward for walk in self.walks]
            return [self.generator.uniform(0.2, 1.0, self.steps)]

    sys.modules["listening"] = type(sys)("listening")
    sys.modules["listening"].Listening = Listening  # type: ignore[attr-defined]
    config = config_of(
        "agent={name: listening:Listening, episodes: 12}", "reward=odd_rewards:nan_often"
    )
    lines = search(config, model=mine(), dataset=digits, out=tmp_path).run.lines()[1:]
    assert any(line["failed"] for line in lines[1:-1])
    for number, (line, reward) in enumerate(zip(lines, told, strict=False)):
        before = [other["reward"] for other in lines[:number] if not other["failed"]]
        if line["failed"]:
            assert math.isfinite(reward) and all(reward < other for other in before)
        else:
            assert reward == line["reward"]


@pytest.mark.parametrize("kind", ["float32", "tensor"])
def test_numbers_of_other_libraries_are_rewards(digits: Dataset, tmp_path: Path, kind: str) -> None:
    config = config_of(RANDOM, f"reward=odd_rewards:{kind}")
    run = search(config, model=mine(), dataset=digits, out=tmp_path).run
    assert all(type(line["reward"]) is float and not line["failed"] for line in run.lines())


def test_finite() -> None:
    for value in (1, 1.5, True, np.int8(3), np.float16(2), torch.tensor(1.0), np.array(0.5)):
        assert finite(value) == float(value)
    for value in (None, "1", b"1", [], {}, np.zeros(2), torch.zeros(2), 1j, object()):
        with pytest.raises(ArithmeticError, match="not a finite number"):
            finite(value)


def test_an_agent_that_raises(digits: Dataset, tmp_path: Path) -> None:
    config = config_of("agent={name: odd_rewards:Tired, episodes: 9}")
    with pytest.raises(UserError, match=r"odd_rewards\.py, line \d+, raised Runt") as caught:
        search(config, model=mine(), dataset=digits, out=tmp_path)
    (path,) = tmp_path.glob("*/s*")
    file = Path(str(caught.value).rpartition("traceback: ")[2].rstrip(")"))
    assert "in propose" in file.read_text()
    file.unlink()
    assert len(Run.open(path).lines()) == 5 and Run.open(path).best


def test_an_untouched_network_that_is_not_finite(digits: Dataset, tmp_path: Path) -> None:
    class Overflows(Mine):
        def forward(self, x: Tensor) -> Tensor:
            return torch.exp(1e4 * super().forward(x).abs())

    with pytest.raises(UserError, match=r"gives NaN or infinity|cannot be|not finite"):
        search(config_of(RANDOM), model=Overflows(), dataset=digits, out=tmp_path)
    assert not list(tmp_path.glob("*/s*")), "before there is a run"


def test_a_failed_line_is_read_back() -> None:
    cost = Cost(1, 2, 3)
    good = evaluator.Outcome({"a": 1}, (0.5,), Score(0.5, 1.0, 0.1), cost, -0.5, True, 1.0)
    bad = good.having_failed(ValueError("why"))
    line = json.loads(json.dumps(bad.as_line(), allow_nan=False))
    back = evaluator.Outcome.from_line(line)
    assert back.failed == "ValueError: why" and math.isnan(back.reward) and not back.can_be_best
    assert Budget("macs", 5).allows(back.cost)
    for error in (MemoryError(), OSError(28, "full"), UserError("mine")):
        with pytest.raises(type(error)):
            good.having_failed(error)
