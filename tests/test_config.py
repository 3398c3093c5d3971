"""Presets, overrides, and what is wrong with them said in one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from amc.config import describe, load_config, parse_config, presets, stored_config, to_yaml
from amc.errors import UserError
from amc.registry import KNOWN

DIGITS = "digits_resnet8_channel_macs50"
README = Path(__file__).parents[1] / "README.md"


@pytest.mark.parametrize("preset", presets())
def test_law_4_every_preset_loads(preset: str, tmp_path: Path) -> None:
    _, config = load_config(preset)
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert load_config(str(path))[1] == config, "the resolved config repeats the run"
    assert all(meaning for _, _, meaning in describe(config))


def test_law_4_readme_names_presets_that_exist() -> None:
    named = set(
        re.findall(
            r"\b[a-z0-9]+_[a-z0-9]+_[a-z0-9]+_(?:macs|params|memory|latency)[0-9]+\b",
            README.read_text(),
        )
    )
    assert named and named <= set(presets())


def test_numbers_with_exponents_are_numbers() -> None:
    _, config = load_config(DIGITS, ["agent.actor_lr=1e-3", "train.lr=5e-2"])
    assert (
        config.agent["actor_lr"] == 0.001 and config.train is not None and config.train.lr == 0.05
    )


def test_overrides() -> None:
    _, config = load_config(
        DIGITS,
        ["budget.limit=1000", "budget.metric=flops", "seed=3", "space.coupled=false", "train=null"],
    )
    assert (
        config.budget.limit == 1000
        and config.budget.ratio is None
        and config.budget.metric == "macs"
    )
    assert config.seed == 3 and config.space["coupled"] is False and config.train is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sede=1", "did you mean 'seed'"),
        ("space.roundto=1", "did you mean 'space.round_to'"),
        ("evaluate.imagse=1", "did you mean 'evaluate.images'"),
        ("train.epoch=1", "did you mean 'train.epochs'"),
        ("agent.sigm=1", "did you mean 'agent.sigma'"),
        ("seed=abc", "seed is 'abc'"),
        ("space.round_to=0", "space.round_to is 0"),
        ("budget.ratio=0", "must be above 0"),
        ("budget.ratio=1.5", "at most 1"),
        ("budget.metric=mac", "did you mean 'macs'"),
        ("budget.metric=latency_ms", "needs a device"),
        ("budget.ratio=null", "either ratio or limit"),
        ("space.name=chanel", "did you mean 'channel'"),
        ("agent.name=ddgp", "did you mean 'ddpg'"),
        ("reward=acuracy", "did you mean 'accuracy'"),
        ("reward=nosuch:thing", "no module 'nosuch'"),
        ("evaluate.precision=int8", "evaluate.precision is 'int8'"),
        ("seed", "not of the form key=value"),
    ],
)
def test_a_mistake_is_one_line(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(DIGITS, [override])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_presets_and_files() -> None:
    with pytest.raises(UserError, match="did you mean 'digits_resnet8_channel_macs50'"):
        load_config("digits_resnet8_chanel_macs50")
    with pytest.raises(UserError, match="does not exist"):
        load_config("nowhere.yaml")


def test_the_budget_is_filled_where_the_reward_counts_no_costs() -> None:
    base = {"budget": {"ratio": 0.5}}
    for reward in ("accuracy", "cross_entropy", "kl"):
        assert parse_config(base, [f"reward={reward}"]).budget.fill is True
    for reward in ("macs", "latency", "mnasnet"):
        assert parse_config(base, [f"reward={reward}"]).budget.fill is False
    assert parse_config(base, ["budget.fill=false"]).budget.fill is False
    assert parse_config(base, ["reward=macs", "budget.fill=true"]).budget.fill is True


def test_a_reward_named_as_a_plug_in_fills_the_budget_as_it_does_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = {"budget": {"ratio": 0.5}}
    for name in KNOWN["reward"].values():
        short = parse_config(base, [f"reward={name.partition(':')[2]}"]).budget.fill
        assert parse_config(base, [f"reward={name}"]).budget.fill is short, name
    (tmp_path / "counting.py").write_text(
        "from amc.evaluate.rewards import counts_costs\n"
        "def plain(score, cost, original, budget): return -score.kl\n"
        "@counts_costs\n"
        "def costly(score, cost, original, budget): return -score.kl * cost.macs\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert parse_config(base, ["reward=counting:plain"]).budget.fill is True
    found = parse_config(base, ["reward=counting:costly"])
    assert found.budget.fill is False
    assert parse_config(base, ["reward=counting:costly", "budget.fill=true"]).budget.fill is True
    stored = tmp_path / "config.yaml"
    for own in (found, parse_config(base, ["reward=counting:plain"])):
        stored.write_text(to_yaml(own))
        assert stored_config(stored) == own  # as it was resolved, and nothing is imported


def test_another_agent_searches_as_long() -> None:
    preset = load_config("digits_resnet8_channel_macs50")[1].agent
    other = load_config("digits_resnet8_channel_macs50", ["agent.name=sac"])[1].agent
    assert other["episodes"] == preset["episodes"] == 120
    own = load_config("amc_paper", ["agent.name=sac"])[1].agent
    assert other == {**own, "episodes": 120}, "its other options are its own defaults"
    once = load_config("digits_resnet8_channel_macs50", ["agent.name=uniform"])[1].agent
    assert once == {"name": "uniform"}


def test_a_run_of_an_earlier_version_may_name_options_that_are_gone(tmp_path: Path) -> None:
    overrides = ["agent={name: ddpnas, episodes: 7}"]
    config = load_config(DIGITS, overrides)[1]
    agent = {**config.agent, "epoch": 10, "prunings": 20, "rate": 0.3}
    space = {**config.space, "of_old": [1, 2]}
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config.model_copy(update={"agent": agent, "space": space})))
    assert stored_config(path) == config
    with pytest.raises(UserError, match=re.escape("unknown key 'space.of_old'")):
        load_config(str(path))  # what is begun anew has the options of today
    path.write_text(path.read_text().replace("episodes: 7", "episodes: seven"))
    with pytest.raises(UserError, match=re.escape("agent.episodes")):
        stored_config(path)
