"""The configuration of a run, from where it stands: typed and frozen (`amc.sections`).

`load_config` reads a preset or a YAML file and applies ``a.b=value`` overrides.
"""

from __future__ import annotations

import importlib.resources
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from pydantic import BaseModel, ValidationError

from amc.cost.cost import METRICS
from amc.errors import UserError, short, shown, unknown
from amc.evaluate.rewards import does_count_costs
from amc.options import key_of, types_in
from amc.overrides import apply_override
from amc.plugins import allow
from amc.reading import parse_yaml, read_text
from amc.registry import KNOWN, Kind, lookup
from amc.sections import Config
from amc.training.settings import FinetuneConfig

__all__ = [
    "Config",
    "config_of",
    "describe",
    "finetune_config",
    "load_config",
    "parse_config",
    "presets",
    "stored_config",
    "to_yaml",
]
T = TypeVar("T", bound=BaseModel)


def presets() -> list[str]:
    """The names of all presets."""
    folder = importlib.resources.files("amc.configs")
    return sorted(
        item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml")
    )


def load_config(
    source: str, overrides: Sequence[str] = (), trust: bool = False
) -> tuple[str, Config]:
    """The name and the configuration of a preset or a YAML file, with overrides ``a.b=value``
    applied.

    Args:
        source: a preset's name, or a file.
        overrides: what the user says on the command line.
        trust: import the code that the file names (`amc.plugins`).

    Raises:
        UserError: the preset, a key or a value is wrong, or the file names code that the user has
            not named.
    """
    if source.endswith((".yaml", ".yml")):
        path = Path(source)
        if not path.is_file():
            raise UserError(f"the config file {source!r} does not exist")
        name, text = path.stem, read_text(path)
        name = (
            path.parent.parent.name if path.stem == "config" and path.parent.parent.name else name
        )
    elif source in presets():
        name = source
        text = (
            importlib.resources.files("amc.configs")
            .joinpath(f"{source}.yaml")
            .read_text(encoding="utf-8")
        )
    else:
        raise unknown("preset", source, presets())
    values = parse_yaml(text, source)
    if trust:
        allow(values)
    return name, _parsed(values, overrides)


def config_of(source: str, overrides: Sequence[str] = (), trust: bool = False) -> Config:
    """The configuration of a run directory, a preset, a YAML file, or a bare model's name (the
    channel space in steps of 8, the blocks that runtimes compute in).

    Raises:
        UserError: it is none of these, a value is wrong, or a file names code that the user has
            not named.
    """
    if (Path(source) / "config.yaml").is_file():
        return load_config(str(Path(source) / "config.yaml"), overrides, trust)[1]
    if source in presets() or source.endswith((".yaml", ".yml")):
        return load_config(source, overrides, trust)[1]
    space = {"name": "channel", "round_to": 8}
    return parse_config({"model": source, "space": space, "budget": {"ratio": 1.0}}, overrides)


def parse_config(values: Any, overrides: Sequence[str] = ()) -> Config:
    """Validate a mapping that the user gives, with overrides applied; options of the space and the
    agent are filled in.

    Raises:
        UserError: naming the key, its value and what is expected.
    """
    allow(values)
    return _parsed(values, overrides)


def stored_config(path: Path) -> Config:
    """The configuration of a run, which was complete when it was written. Nothing that it names is
    imported; options of plug-ins are taken as they stand. Options that a space or an agent of amc
    had in the version that began the run, and has no more, are left out.

    Raises:
        UserError: it is damaged.
    """
    return _parsed(parse_yaml(read_text(path), path), stored=True)


def _parsed(values: Any, overrides: Sequence[str] = (), stored: bool = False) -> Config:
    if not isinstance(values, dict):
        raise UserError("a config must be a mapping of keys to values")
    for override in overrides:
        apply_override(values, override)
    config = _validated(Config, values, "")
    options = {kind: _options(kind, getattr(config, kind), stored) for kind in ("space", "agent")}
    config = config.model_copy(update=options)
    if config.device is None and config.budget.metric == "latency_ms":
        raise UserError(
            "budget.metric latency_ms needs a device: a profile's name (`amc ls` lists them), or a "
            "file that `amc profile` wrote"
        )
    _check_budget(config, stored)
    fill = _fills(config.reward, stored)
    if not stored:
        lookup("observation", config.observation)
        for name in config.kinds:
            lookup("kind", name)
    if config.budget.fill is None:
        budget = config.budget.model_copy(update={"fill": fill})
        config = config.model_copy(update={"budget": budget})
    return config


def _fills(name: str, stored: bool) -> bool:
    """Whether the whole budget is used with a reward, where nothing else is said."""
    if stored and name not in KNOWN["reward"]:
        return False  # of a version that kept no answer: such rewards were bounded only
    return not does_count_costs(lookup("reward", name))


def _check_budget(config: Config, stored: bool) -> None:
    ratio = config.budget.ratio
    if (ratio is None) == (config.budget.limit is None):
        raise UserError("budget needs either ratio or limit")
    ratios = ratio if isinstance(ratio, tuple) else (ratio,)
    if any(one is not None and (not 0 < one <= 1 or math.isnan(one)) for one in ratios):
        given = shown(list(ratio) if isinstance(ratio, tuple) else ratio)
        raise UserError(f"budget.ratio is {given}: it must be above 0 and at most 1")
    if isinstance(ratio, tuple) and ratio[0] >= ratio[1]:
        raise UserError(f"budget.ratio is {list(ratio)}: a range must ascend")
    agent = str(config.agent["name"])
    if len(ratios) < 2 or (stored and agent not in KNOWN["agent"]):
        return
    if not getattr(lookup("agent", agent), "conditioned", False):
        raise UserError(
            f"agent {agent!r} searches one budget: budget.ratio {list(ratios)} needs one that can "
            "have another in every episode, as td3, ddpg, sac and random"
        )


def finetune_config(config: Config, overrides: Sequence[str] = ()) -> FinetuneConfig:
    """The section ``finetune`` of a run's configuration, with overrides ``a.b=value`` applied.

    Raises:
        UserError: naming the key, its value and what is expected.
    """
    values = config.finetune.model_dump()
    for override in overrides:
        apply_override(values, override)
    return _validated(FinetuneConfig, values, "")


def _options(kind: str, values: Mapping[str, Any], stored: bool) -> dict[str, Any]:
    """The named plug-in's options with their defaults filled in."""
    default = Config.model_fields[kind].get_default(call_default_factory=True)
    values = {**default, **values}
    name, of = values["name"], cast("Kind", kind)
    if not isinstance(name, str):
        raise UserError(f"{kind}.name is {shown(name)}: a name is expected")
    if stored and name not in KNOWN[of] and ":" in name:
        return values
    found = lookup(of, name)
    known = found.Options.model_fields
    rest = {
        key: value
        for key, value in values.items()
        if key != "name" and not (stored and name in KNOWN[of] and key not in known)
    }
    return {"name": name, **_validated(found.Options, rest, f"{kind}.").model_dump()}


def _validated(model: type[T], values: Mapping[str, Any], prefix: str) -> T:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        path = [short(part) for part in key_of(model, first["loc"])]
        where = prefix + ".".join(path)
        if first["type"] == "extra_forbidden":
            raise unknown("key", where, _siblings(model, path[:-1], prefix)) from None
        if where == "budget.metric":
            raise unknown("budget.metric", str(first["input"]), [*METRICS, "flops"]) from None
        if not path:  # what is wrong is several keys together
            reason = first["msg"].removeprefix("Value error, ")
            raise UserError(f"{prefix.rstrip('.') or 'the config'}: {reason}") from None
        raise UserError(f"{where} is {shown(first['input'])}: {first['msg'].lower()}") from None


def _siblings(model: type[BaseModel], path: Sequence[str], prefix: str) -> list[str]:
    """The keys that exist beside an unknown one."""
    for part in path:
        types = types_in(model.model_fields[part].annotation)
        model = next(found for found in types if issubclass(found, BaseModel))
    start = prefix + "".join(f"{part}." for part in path)
    return [start + name for name in model.model_fields]


def to_yaml(config: BaseModel) -> str:
    """A resolved configuration, or a section of one; `load_config` reads the whole one back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def describe(config: BaseModel) -> list[tuple[str, Any, str]]:
    """(key, value, meaning) of every key, sections flattened."""
    rows: list[tuple[str, Any, str]] = []
    for name, info in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            rows += [(f"{name}.{key}", *rest) for key, *rest in describe(value)]
        elif name in ("space", "agent"):
            fields = lookup(name, value["name"]).Options.model_fields  # type: ignore[arg-type]
            rows.append((f"{name}.name", value["name"], info.description or ""))
            rows += [
                (f"{name}.{key}", value[key], field.description or "")
                for key, field in fields.items()
            ]
        else:
            rows.append((name, value, info.description or ""))
    return rows
