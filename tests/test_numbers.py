"""Every number of a user's is within bounds that are named, or refused in a short sentence."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import amc.agents
import numpy as np
import pytest
import torch
from annotated_types import Ge, Gt, Le, Lt
from pydantic import Field, ValidationError

import amc.spaces
from amc.analysis.pareto import pareto
from amc.cli.checking import _shape
from amc.cli.comparing import _corner
from amc.config import load_config, parse_config
from amc.errors import UserError, shown, unknown, whole_number
from amc.options import Options, numeric

DIGITS = "digits_resnet8_channel_macs50"
REASONS = {"ratio": "parse_config checks it whole: above 0, at most 1, and a range ascends"}


def option_models() -> Iterator[type[Options]]:
    for package in (amc.agents, amc.spaces):
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
    waiting = [Options]
    while waiting:
        model = waiting.pop()
        waiting += model.__subclasses__()
        if model.__module__.startswith("amc."):
            yield model


def test_every_number_has_both_bounds() -> None:
    unbounded, numbers = [], 0
    for model in option_models():
        for name, field in model.model_fields.items():
            if not numeric(field.annotation) or name in REASONS:
                continue
            numbers += 1
            kinds = [type(bound) for bound in field.metadata]
            if not ({Ge, Gt} & {*kinds} and {Le, Lt} & {*kinds}):
                unbounded.append(f"{model.__name__}.{name}")
    assert numbers > 40 and not unbounded
    assert all(model.model_config.get("allow_inf_nan") is False for model in option_models())


HUGE = "9" * 400
REFUSED = [
    ("budget.limit=.inf", "budget.limit is inf: input should be a finite number"),
    ("budget.limit=.nan", "budget.limit is nan: input should be a finite number"),
    ("budget.limit=1e400", "budget.limit is '1e400': input should be a finite number"),
    ("budget.limit=-1", "budget.limit is -1: input should be greater than 0"),
    ("budget.limit=1e+30", "less than or equal to 1000000000000000000"),
    ("budget.limit=true", "budget.limit is True: input should be a number"),
    ("budget.ratio=.nan", "budget.ratio is nan: input should be a finite number"),
    ("budget.ratio=-.inf", "budget.ratio is -inf"),
    ("budget.ratio=true", "budget.ratio is True: input should be a number"),
    ("budget.ratio=[0.2, .nan]", "budget.ratio"),
    ("budget.ratio=2", "budget.ratio is 2.0: it must be above 0 and at most 1"),
    ("seed=4294967296", "seed is 4294967296: input should be less than or equal to 4294967295"),
    (f"seed={HUGE}", "less than or equal to 4294967295"),
    ("seed=-1", "greater than or equal to 0"),
    ("seed=true", "seed is True: input should be a number"),
    ("seed=1.5", "seed is 1.5"),
    ("finetune.seed=5000000000", "less than or equal to 4294967295"),
    ("image_size=100000", "less than or equal to 4096"),
    ("train.lr=.inf", "train.lr is inf: input should be a finite number"),
    ("train.epochs=1000000000", "less than or equal to 100000"),
    ("train.batch_size=0", "greater than or equal to 1"),
    ("finetune.distill.temperature=1e-300", "finetune.distill.temperature is "),
    ("finetune.distill.hint=.inf", "finetune.distill.hint is inf"),
    ("evaluate.images=true", "evaluate.images is True: input should be a number"),
    ("evaluate.racing=.nan", "evaluate.racing is nan"),
    ("space.ridge=.inf", "space.ridge is inf"),
    ("space.round_to=10000000", "less than or equal to 100000"),
    ("agent.hidden=10000000", "less than or equal to 4096"),
    ("agent.replay=10000000000", "less than or equal to 1000000"),
    ("agent.envs=100000", "less than or equal to 1024"),
    ("agent.warmup_spread=.inf", "agent.warmup_spread is inf"),
    ("agent={name: sac, entropy: auto_x}", "agent.entropy is 'auto_x': input should be auto"),
    ("agent={name: sac, entropy: -1}", "agent.entropy is -1: input should be auto"),
    ("agent={name: genetic, spread: .nan}", "agent.spread is nan"),
    (f"model={'x' * 5000}", "unknown model"),
    (f"space.name={'x' * 5000}", "unknown space"),
    (f"{'k' * 5000}=1", "unknown key"),
]


@pytest.mark.parametrize(("override", "message"), REFUSED)
def test_a_number_that_makes_no_sense_is_refused(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        _, config = load_config(DIGITS, [override])
        if override.startswith("model="):
            from amc.network.models import build_model

            build_model(str(config.model), 10, 1)
    text = str(caught.value)
    assert message in text and "\n" not in text
    assert len(text.partition("(known")[0]) < 200


def test_the_largest_seed_and_an_entropy_are_taken() -> None:
    _, config = load_config(DIGITS, ["seed=4294967295", "agent={name: sac, entropy: 0.1}"])
    assert config.seed == 2**32 - 1 and config.agent["entropy"] == "0.1"
    values = {"budget": {"ratio": np.float64(0.5)}, "seed": 3}
    assert parse_config(values).budget.ratio == 0.5


@pytest.mark.parametrize("text", ["1", "1,2,3", "a,b", "", "," * 10**5])
def test_a_reference_point_is_two_numbers(text: str) -> None:
    with pytest.raises(UserError, match=r"^--reference is '.{0,60}: a cost ratio and an accuracy"):
        _corner(text)
    assert _corner("1,0.1") == (1.0, 0.1) and _corner(None) is None


@pytest.mark.parametrize(
    "text", ["nan,0.1", "1,nan", "inf,0.1", "-1,0.1", "0,0.1", "1,-0.1", "1,1.5", "1e9,0.1"]
)
def test_a_reference_point_makes_sense(text: str) -> None:
    with pytest.raises(UserError, match=r"^the reference point is \(.*\): a cost ratio above 0"):
        pareto([], reference=_corner(text))
    with pytest.raises(UserError, match="no finished run"):
        pareto([], reference=(1000.0, 1.0))


@pytest.mark.parametrize(
    "text", ["3x²x224", "3x224", "0x8x8", "3x-1x8", "3x99999x99999", "3xnanx8", "9" * 5000]
)
def test_an_input_is_of_numbers_that_make_sense(text: str) -> None:
    with pytest.raises(UserError, match=r"^--input is '.*': channels x height x width"):
        _shape(text)
    assert _shape("3x224x224") == (3, 224, 224)


def test_values_are_shown_in_few_letters() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    for value in ("x" * 10**6, 10**10000, list(range(10**5)), torch.zeros(100, 100), Broken()):
        assert 0 < len(shown(value)) <= 60 and "\n" not in shown(value)
    assert shown("a b") == "'a b'" and shown(1.5) == "1.5"
    assert len(str(unknown("model", "x" * 10**6, ["y"]))) < 120


@pytest.mark.parametrize("value", [0, -1, 10**9, 2.0, 1.5, "2", None, True, float("nan")])
def test_arguments_of_functions_are_whole_numbers_within_bounds(value: Any) -> None:
    with pytest.raises(UserError, match=r"^jobs is .{1,60}: it must be a whole number from 1 to 9"):
        whole_number(value, "jobs", 1, 99)
    assert whole_number(np.int64(3), "jobs", 1, 99) == 3
    with pytest.raises(UserError, match="jobs is a number of 33216 bits"):
        whole_number(10**9999, "jobs", 1, 99)


def test_options_of_ones_own_are_finite_numbers_too() -> None:
    class Own(Options):
        count: int | None = Field(None, description="")
        flag: bool = True

    assert Own(flag=True).flag and Own(count=3).count == 3
    for values in ({"count": True}, {"count": float("nan")}):
        with pytest.raises(ValidationError):
            Own(**values)
