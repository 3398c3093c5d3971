"""The sections of a run's configuration: every key with a meaning and, where it can have one, a
default.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from amc.compute import AUTO, NAME
from amc.cost.budget import Budget
from amc.cost.cost import Cost, Metric
from amc.options import LARGEST_SEED, Options
from amc.training.settings import FinetuneConfig, TrainConfig

LARGEST_COUNT = 1_000_000_000  # of images


def _canonical_metric(name: Any) -> Any:
    return "macs" if name == "flops" else name


def _compute(name: Any) -> Any:
    if isinstance(name, str) and not NAME.fullmatch(name):
        raise PydanticCustomError("compute", "it must be auto, cpu, cuda, or cuda:1")
    return name


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


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
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="auto, fp32, bf16 or fp16; auto: half the precision where that is faster here, "
        "timed on the untouched network, and gives the same accuracy",
    )
    batch_size: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="images measured at once; none: what is fastest here, timed likewise",
    )
    racing: float | None = Field(
        None,
        ge=0.5,
        lt=1,
        description="stop measuring a strategy once it is worse than the best so far with this "
        "confidence (0.9, say: of those that are as good, at most a tenth are stopped); none: "
        "measure all on all images",
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
    dataset: str | None = Field(
        None,
        description="digits, cifar10, torchvision:NAME, npz:PATH or imagefolder:PATH; a PATH is "
        "looked for in the data directory, too",
    )
    space: dict[str, Any] = Field(
        default_factory=lambda: {"name": "channel"}, description="the action space and its options"
    )
    kinds: Annotated[tuple[str, ...], BeforeValidator(_as_list)] = Field(
        (), description="kinds of layer of your own, which surgery shall know: [module:Class]"
    )
    budget: BudgetConfig = Field(
        default_factory=BudgetConfig, description="what the compressed network may cost"
    )
    reward: str = Field("accuracy", description="a reward by name, or module:function")
    device: str | None = Field(
        None, description="a device profile's name or file; required by latency_ms"
    )
    compute: Annotated[str, BeforeValidator(_compute)] = Field(
        AUTO,
        description="what all this runs on: auto (a GPU where there is one), cpu, cuda, or cuda:1",
    )
    evaluate: EvaluateConfig = Field(
        default_factory=EvaluateConfig, description="how a strategy is measured"
    )
    agent: dict[str, Any] = Field(
        default_factory=lambda: {"name": "td3"}, description="the search algorithm and its options"
    )
    observation: str = Field(
        "amc",
        description="what the agent sees before each decision: amc, the paper's features; graph, "
        "the whole network; or module:Class",
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
        None,
        description="where data is, and decoded images are kept; else AMC_DATA_DIR, else "
        "~/.cache/amc",
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
