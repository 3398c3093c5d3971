"""Inputs that are wrong in one thing each: numbers, data, networks, plug-ins, paths, budgets."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import ground
import victims
from doors import Answer, Call, Victim
from rows import Row

NUMBERS: tuple[Any, ...] = (
    *(math.inf, -math.inf, math.nan, -1, 0, 1e30, 10**30, -(10**30), 1e-30, 2**31, 2**63, 10**9),
    *(0.5, -0.0, "text", "", [1], [], {}, None, True, "\x00", [math.nan, 0.5], 1.5, "1e9"),
)
OF_KEYS = 200  # numbers that are tried, of all pairs
COUNTS = ("agent.episodes", "train.epochs", "finetune.epochs")  # a large one takes long, rightly
AGENTS = ("td3", "ddpg", "sac", "random", "genetic", "tpe", "ddpnas", "greedy", "uniform", "vbmf")
SPACES = ("channel", "lowrank", "mixed")


@dataclass(frozen=True)
class Input:
    """One wrong input."""

    group: str
    what: str
    call: Call
    allowed: tuple[str, ...] = ("refused", "accepted")
    named_ratio: bool = False  # it is refused with the smallest ratio, which must be accepted


def keys() -> list[tuple[str, str, str]]:
    """Every key of the configuration, and the agent and space that it belongs to."""
    from amc.config import describe, load_config

    found: dict[str, tuple[str, str]] = {}
    for agent, space in [(a, "channel") for a in AGENTS] + [("td3", s) for s in SPACES]:
        overrides = [f"agent.name={agent}", f"space.name={space}"]
        for key, _, _ in describe(load_config("digits_resnet8_channel_macs50", overrides)[1]):
            found.setdefault(key, (agent, space))
    return [(key, *names) for key, names in found.items()]


def searching(folder: Path, trust: bool = False, **changes: Any) -> Call:
    """A search with some keys changed, as ``a__b=value``."""
    config: dict[str, Any] = ground.config(folder, weights_dir=str(folder))
    for name, value in changes.items():
        *parents, last = name.split("__")
        place = config
        for parent in parents:
            if not isinstance(place.get(parent), dict):
                place[parent] = {}
            place = place[parent]
        place[last] = value
    if config["space"] and config["space"].get("name") == "lowrank":
        del config["space"]["coupled"]  # which it does not know
    options = (("out", str(folder / "out")), ("name", "input"))
    return Call("search", (config,), options, trust)


def numbers(folder: Path, random: Random, count: int) -> Iterator[Input]:
    """Bad values of keys, drawn from all pairs."""
    pairs = [(key, value) for key in keys() for value in NUMBERS]
    for (key, agent, space), value in random.sample(pairs, count):
        shown = f"{key}={value!r}"[:80]
        if key in COUNTS and isinstance(value, int | float) and value > 1000:
            call = Call("cli", ("show", "digits_resnet8_channel_macs50", f"{key}={value}"))
        elif key.startswith("finetune."):
            settings = nest(key.removeprefix("finetune."), value)
            call = Call("finetune", (str(folder / "run"), settings), (("to", str(folder / "out")),))
        else:
            call = searching(folder, agent__name=agent, space__name=space)
            config = dict(call.arguments[0])
            if agent in ("uniform", "vbmf"):
                config["agent"] = {"name": agent}
            call = replace(call, arguments=(merged(config, nest(key, value)),))
        yield Input("numbers", f"{shown} ({agent}, {space})", call)


def nest(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value  # type: ignore[no-any-return]


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    both = {**old, **new}
    for key in old.keys() & new.keys():
        if isinstance(old[key], dict) and isinstance(new[key], dict) and new[key]:
            both[key] = merged(old[key], new[key])
    return both


def given(folder: Path) -> Iterator[Input]:
    """Data and networks from Python."""
    for kind, names in (("data", victims.DATA), ("network", victims.NETWORKS)):
        for name in names:
            yield Input(kind, name, Call("given", (kind, name, str(folder))))


def plug_ins(folder: Path) -> Iterator[Input]:
    for kind, names, key in (
        ("reward", victims.REWARDS, "reward"),
        ("criterion", victims.CRITERIA, "space__criterion"),
        ("space", victims.SPACES, "space__name"),
        ("agent", victims.AGENTS, "agent__name"),
    ):
        for name in names:
            call = searching(folder, trust=True, **{key: f"bad:{name}"})
            yield Input("plug-in", f"{kind} {name}", call)


def budgets(folder: Path) -> Iterator[Input]:
    """Budgets that cannot be reached, in every metric and space."""
    for space in SPACES:
        for metric in ("macs", "params", "memory_bytes"):
            call = searching(folder, space__name=space, budget__metric=metric, budget__ratio=1e-6)
            yield Input("budget", f"{metric} in {space}", call, ("refused",), named_ratio=True)
    call = searching(folder, budget__metric="latency_ms", budget__ratio=1e-6, space__coupled=True)
    config = call.arguments[0] | {"device": "xeon_onnxruntime_1thread"}
    yield Input("budget", "latency", replace(call, arguments=(config,)), ("refused",), True)


NAMES = ("[bold]x[/bold]", "[/]", "../../x", "a b", "é" * 100, "x" * 300, "\x00", "", " ", "-x")


def paths(folder: Path) -> Iterator[Input]:
    """Names of files and folders, where each is expected."""
    config = str(folder / "tiny.yaml")
    for name in (*NAMES, "\ud800", "a\nb", "~", "/dev/null/x", "/proc/x", str(folder / "tiny.npz")):
        out = f"{folder}/out/{name}" if not name.startswith(("/", "-")) else name
        for what in (("search", config, "--out", out), ("report", out)):
            yield Input("path", f"{what[0]} {name!r}"[:80], Call("cli", what))
        call = searching(folder, dataset=f"npz:{name}")
        yield Input("path", f"npz:{name!r}"[:80], call, ("refused", "accepted"))
        call = searching(folder, weights=name, train=None)
        yield Input("path", f"weights {name!r}"[:80], call, ("refused",))
    for name in NAMES:
        yield Input("path", f"name {name!r}"[:80], named(folder, name))


def named(folder: Path, name: str) -> Call:
    call = searching(folder)
    return replace(call, options=(("out", str(folder / "out")), ("name", name)))


def commands(folder: Path) -> Iterator[Input]:
    """Arguments of commands."""
    config, run = str(folder / "tiny.yaml"), str(folder / "run")
    out = str(folder / "out")
    preset = "digits_resnet8_channel_macs50"
    lines: tuple[tuple[str, ...], ...] = (
        *((("show", preset, text)) for text in OVERRIDES),
        *((("profile", "digits:resnet8", "--input", size)) for size in SIZES),
        *((("pareto", run, "--out", out, "--reference", corner)) for corner in CORNERS),
        *((("export", run, "--format", form)) for form in ("", ",", "onnx,x", "pt2,pt2", "[red]")),
        *((("finetune", run, "--out", out, text)) for text in ("lr", "lr=", "=", "x=1", "lr=[")),
        ("pareto", run, "--x", "money"),
        ("pareto", run, "--x", "latency_ms", "--out", out),
        ("compare", run, run, "--out", out),
        ("compare", run, "--by", "money", "--out", out),
        ("compare", run, "--out", config),
        ("compare", str(folder)),
        ("finetune", run, "--episode", "99"),
        ("finetune", run, "--episode", "-1"),
        ("export", run, "--episode", "99"),
        ("export", run, "--finetuned", out),
        ("evaluate", str(folder)),
        ("evaluate", config),
        ("resume", str(folder)),
        ("resume", run, "--jobs", "0"),
        ("resume", run, "--jobs", "100000000000000000000"),
        ("profile", "torchvision:nothing"),
        ("profile", run, "--batch", "1000000000000"),
        ("profile", run, "--threads", "1000000000"),
        ("profile", "digits:resnet8", "--import-csv", config, "--device", f"{out}/x"),
        ("profile", "digits:resnet8", "--emit-bench", config),
        ("check", "nothing:x"),
        ("check", "channels"),
        ("check", "json:loads"),
        ("sweep", config, "seed=0,0", "--out", out),
        ("sweep", config, "seed=0,x", "--out", out),
        ("sweep", config, "seed", "--out", out),
        ("sweep", config, "model=[,]", "--out", out),
        ("sweep", "nothing"),
        ("search", "nothing"),
        ("search", "nothing.yaml"),
        ("search", str(folder / "tiny.npz")),
        ("search", str(folder)),
        ("report", str(folder / "base" / "export")),
    )
    for line in lines:
        yield Input("command", " ".join(line)[-80:], Call("cli", line))


OVERRIDES = (
    *("a", "=1", "a..b=1", ".=1", "budget.ratio", "seed=[", "a.b.c.d=1", "space={}", "agent=[]"),
    *("space=null", "train=3", "evaluate=null", "budget=null", "seed=!!python/name:os.abort x"),
    *("agent=~", "space.name=[1]", "agent.name={}", "model=[1]", "seed=2026-99-99", "=" * 1000),
    *("budget.ratio=[0.5]", "budget.ratio=[0.5,0.2]", "budget.ratio=[.nan,1]", "space.keep=[[1]]"),
    *("space.keep='['", "reward=1", "reward=:", "reward=a:", "reward=:a", "reward=a:b:c"),
    *(f"seed={'[' * 5000}", f"seed={'9' * 5000}", "finetune=[]", "seed=*a", "seed=&a 1"),
)
SIZES = ("0x0x0", "1x1x1", "3x8", "x", "1x99999x99999", "-1x8x8", "1x8x8x8", "٣x8x8", "²x8x8")
CORNERS = ("nan,nan", "inf,1", "1", "1,2,3", "a,b", "-1,-1", "0,0", "1e999,0.1")


def table(folder: Path, seed: int) -> list[Input]:
    """All inputs, in an order of chance; numbers of keys are a sample."""
    random = Random(seed)
    fixed = [*given(folder), *plug_ins(folder), *budgets(folder), *paths(folder), *commands(folder)]
    found = fixed + list(numbers(folder, random, OF_KEYS))
    random.shuffle(found)
    return found


def attack(folder: Path, seed: int, which: range) -> Iterator[Row]:
    import yaml

    ground.prepared(folder)
    victims.plant(folder)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(ground.config(folder, episodes=1)))
    inputs = table(folder, seed)
    victim = Victim(folder)
    try:
        for number in which:
            if number >= len(inputs):
                break
            shutil.rmtree(folder / "out", ignore_errors=True)
            ground.fresh(folder)
            yield tried(victim, number, inputs[number])
    finally:
        victim.stop()


def tried(victim: Victim, number: int, given: Input) -> Row:
    found = wary(victim.ask(given.call))
    if given.named_ratio and found.verdict == "refused":
        found = reachable(victim, given, found)
    return Row(
        attack="inputs",
        number=number,
        what=given.group,
        how=given.what,
        verdict=found.verdict,
        right=found.verdict in given.allowed,
        seconds=found.seconds,
        memory_mb=found.memory_mb,
        detail=found.detail,
    )


def wary(found: Answer) -> Answer:
    """A best strategy whose reward or accuracy is no number is no right answer."""
    if found.verdict != "accepted" or not isinstance(found.value, dict):
        return found
    for key in ("reward", "search_accuracy", "finetuned_test_accuracy"):
        value = found.value.get(key, 0.0)
        if type(value) not in (int, float) or not math.isfinite(value):
            return replace(found, verdict="no number", detail=f"{key} of the best is {value!r}")
    return found


def reachable(victim: Victim, given: Input, refused: Answer) -> Answer:
    """The smallest ratio that a refusal names must be reachable."""
    ratio = re.search(r"\(ratio ([\d.e-]+)\)", refused.detail)
    if ratio is None:
        return replace(refused, verdict="unnamed")
    config = given.call.arguments[0]
    budget = config["budget"] | {"ratio": float(ratio.group(1))}
    call = replace(given.call, arguments=(config | {"budget": budget},))
    again = victim.ask(call)
    if again.verdict == "accepted":
        return refused
    return replace(again, verdict="unreachable", detail=f"at {ratio.group(1)}: {again.detail}")
