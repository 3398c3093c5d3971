"""How a network is trained: the sections ``train`` and ``finetune`` of a config."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from amc.evaluate.prepare import Precision
from amc.options import LARGEST_SEED, Options

Augment = Literal["auto", "none", "shift", "crop"]


def _augment(value: Any) -> Any:
    return {True: "auto", False: "none"}[value] if isinstance(value, bool) else value


class TrainConfig(Options):
    """SGD with Nesterov momentum; the learning rate rises linearly, then falls in one cosine."""

    epochs: int = Field(30, ge=1, le=100_000, description="passes over the training images")
    batch_size: int = Field(
        128, ge=1, le=1_000_000, description="images an update, over all processes"
    )
    lr: float = Field(0.1, gt=0, le=1000, description="peak learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="Nesterov's")
    weight_decay: float = Field(
        5e-4, ge=0, le=10, description="on weights of convolutions and linear layers"
    )
    warmup: float = Field(
        0.05, ge=0, lt=1, description="the part of the updates in which the learning rate rises"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="of the labels' cross-entropy")
    clip: float | None = Field(
        None, gt=0, le=1e9, description="the largest norm that a gradient may have"
    )
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of an average of the weights, which is then the result"
    )
    augment: Annotated[Augment, BeforeValidator(_augment)] = Field(
        "auto",
        description="none; shift: by up to an eighth, and mirrored (CIFAR); crop: a random part, "
        "resized, and mirrored (ImageNet); auto: shift up to 64 pixels, crop above",
    )
    precision: Precision = Field(
        "auto", description="auto, fp32 or bf16; auto: bf16 where the device has units for it"
    )


class DistillConfig(Options):
    """What the uncompressed network teaches; all can be combined."""

    soft: float = Field(
        0.0, ge=0, le=1, description="weight of its softened outputs; the labels have the rest"
    )
    temperature: float = Field(4.0, ge=0.01, le=10_000, description="that softens the outputs")
    hint: float = Field(0.0, ge=0, le=1e6, description="weight of its features (FitNets)")
    attention: float = Field(0.0, ge=0, le=1e6, description="weight of its attention maps")
    fsp: float = Field(0.0, ge=0, le=1e6, description="weight of the flow between its layers (FSP)")
    layers: tuple[str, ...] | None = Field(
        None, description="modules whose outputs are features; none: the last of each resolution"
    )


class FinetuneConfig(TrainConfig):
    """Training of the compressed network, which begins with its repaired weights."""

    lr: float = Field(0.01, gt=0, le=1000, description="peak learning rate")
    distill: DistillConfig = Field(
        default_factory=DistillConfig, description="what the uncompressed network teaches"
    )
    weights: str | None = Field(
        None,
        description="other weights of the uncompressed network than those of the search: the "
        "strategy is applied to these, and these teach",
    )
    hold_out: bool = Field(
        True,
        description="keep the held-out images from training, and take the epoch that is best on "
        "them; false: train on all training images, and take the last epoch",
    )
    seed: int | None = Field(
        None, ge=0, le=LARGEST_SEED, description="of order and augmentation; none: the run's"
    )
