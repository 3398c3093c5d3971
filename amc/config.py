"""The configuration of a run: typed, frozen, every key with a meaning and, where it can have one, a
default.

`load_config` reads a preset or a YAML file and applies ``a.b=value`` overrides.
"""

from __future__ import annotations

import importlib.resources
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import yaml
from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from amc.cost.budget import Budget
from amc.cost.cost import METRICS, Cost, Metric
from amc.errors import UserError, short, shown, unknown
from amc.evaluate.prepare import Precision
from amc.evaluate.rewards import COSTLESS
from amc.options import LARGEST_SEED, Options, key_of, types_of
from amc.overrides import apply_override
from amc.plugins import allow
from amc.reading import parse_yaml, read_text
from amc.registry import KNOWN, Kind, lookup
from amc.training.settings import FinetuneConfig, TrainConfig

T = TypeVar("T", bound=BaseModel)
LARGEST_COUNT = 1_000_000_000  # of images


def _canonical_metric(name: Any) -> Any:
    return "macs" if name == "flops" else name


class BudgetConfig(Options):
    """What the compressed network may cost."""

    metric: Annotated[Metric, BeforeValidator(_canonical_metric)] = Field(
        "macs", description="macs (alias flops), params, memory_bytes, or latency_ms on the device"
    )
    ratio: float | tuple[float, float] | None = Field(
        None,
        description="the limit as a part of the original's cost, above 0 and at most 1; two of "
        "them, [0.2, 0.8]: every episode has a budget of its own between them",
    )
    limit: float | None = Field(
        None, gt=0, le=1e18, description="the limit as an absolute value, instead of ratio"
    )
    fill: bool | None = Field(
        None,
        description="scale each episode's keep ratios by a common factor, so that it uses the "
        "whole budget; false: only bound them one by one, as in the paper; none: scale where the "
        "reward does not count costs itself",
    )

    @property
    def is_range(self) -> bool:
        """Whether every episode has a budget of its own."""
        return isinstance(self.ratio, tuple)

    @property
    def label(self) -> str:
        """The limit, for people."""
        if isinstance(self.ratio, tuple):
            return "{:g} to {:g}".format(*self.ratio)
        return f"{self.ratio or self.limit:g}"

    def of(self, original: Cost) -> Budget:
        return Budget.of(self.metric, original, self.ratio, self.limit, bool(self.fill))


class EvaluateConfig(Options):
    """How a strategy is measured."""

    images: int | None = Field(
        None,
        ge=1,
        le=LARGEST_COUNT,
        description="held-out training images the search measures on; none: 5,000, or a fifth of "
        "the training images where that is less",
    )
    calibration_images: int | None = Field(
        None,
        ge=1,
        le=LARGEST_COUNT,
        description="other training images that repair may use; none: 1,000, or a fifth of the "
        "training images where that is less",
    )
    precision: Precision = Field(
        "auto",
        description="auto, fp32 or bf16; auto: bf16 where the processor has units and it agrees",
    )
    racing: float | None = Field(
        None,
        ge=0.5,
        lt=1,
        description="stop measuring a strategy once it is worse than the best so far with this "
        "confidence (0.9, say); none: measure all on all images",
    )


class Config(Options):
    """One run."""

    model: str | None = Field(
        None, description="a built-in network, torchvision:NAME, or module:callable"
    )
    weights: str | None = Field(
        None,
        description="a file, looked for in the weights directory; DEFAULT: torchvision's; none: "
        "see train",
    )
    dataset: str | None = Field(None, description="digits, cifar10, npz:PATH or imagefolder:PATH")
    space: dict[str, Any] = Field(
        default_factory=lambda: {"name": "channel"}, description="the action space and its options"
    )
    budget: BudgetConfig = Field(
        default_factory=BudgetConfig, description="what the compressed network may cost"
    )
    reward: str = Field("accuracy", description="a reward by name, or module:function")
    device: str | None = Field(
        None, description="a device profile's name or file; required by latency_ms"
    )
    evaluate: EvaluateConfig = Field(
        default_factory=EvaluateConfig, description="how a strategy is measured"
    )
    agent: dict[str, Any] = Field(
        default_factory=lambda: {"name": "td3"}, description="the search algorithm and its options"
    )
    train: TrainConfig | None = Field(
        None, description="train the base network first, on all but the held-out images"
    )
    finetune: FinetuneConfig = Field(
        default_factory=FinetuneConfig, description="how `amc finetune` trains the result"
    )
    heldout: str | None = Field(
        None,
        description="a .npy file of held-out indices, looked for in the data directory; none: "
        "drawn",
    )
    image_size: int = Field(
        224, ge=8, le=4096, description="height and width of imagefolder images"
    )
    data_dir: str | None = Field(
        None, description="where data is; else AMC_DATA_DIR, else ~/.cache/amc"
    )
    weights_dir: str | None = Field(
        None, description="where weights are; else AMC_WEIGHTS_DIR, else ~/.cache/amc"
    )
    allow_untrained: bool = Field(
        False,
        description="search a base network that is no better than guessing: what it finds says "
        "nothing of a trained one",
    )
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="of everything random")


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
    imported; options of plug-ins are taken as they stand.

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
    if not stored:
        lookup("reward", config.reward)
    if config.budget.fill is None:
        fill = config.reward in COSTLESS
        budget = config.budget.model_copy(update={"fill": fill})
        config = config.model_copy(update={"budget": budget})
    return config


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
    rest = {key: value for key, value in values.items() if key != "name"}
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
        types = types_of(model.model_fields[part].annotation)
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
