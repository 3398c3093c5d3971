"""What the files of a run say, each as a typed model: what does not fit is refused before use.

More keys than these may stand in a file; they are kept as they are.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Part = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=2**60)]
Amount = Annotated[float, Field(ge=0, le=1e18)]
Size = Annotated[int, Field(ge=1, le=2**60)]
Width = Annotated[int, Field(ge=1, le=2**20)]


class Record(BaseModel):
    """A part of a file."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    def as_dict(self) -> dict[str, Any]:
        """As it stands in the file."""
        return self.model_dump(by_alias=True)


class Costs(Record):
    """What a network costs (`amc.cost.cost.Cost`)."""

    macs: Count
    params: Count
    memory_bytes: Count
    latency_ms: Amount | None = None


class Baseline(Costs):
    """The untouched network."""

    macs: Size
    params: Size
    memory_bytes: Size
    latency_ms: Annotated[float, Field(gt=0, le=1e9)] | None = None
    search_accuracy: Part


class Episode(Costs):
    """A line of the journal: `amc.evaluate.outcome.Outcome`, its number and its phase."""

    episode: Count
    phase: str
    ratios: list[Part]
    strategy: dict[str, int]
    search_accuracy: Part | None
    cross_entropy: float | None
    kl: float | None
    reward: float | None
    feasible: bool
    seconds: Amount
    profile: dict[str, Amount] = {}
    stopped_after: Count | None = None
    repair_kept: bool = True
    failed: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if len(self.ratios) != len(self.strategy):
            raise ValueError("there is not one ratio for each decision")
        scores = (self.search_accuracy, self.cross_entropy, self.kl, self.reward)
        if self.failed is None and None in scores:
            raise ValueError("an episode that has not failed has all its scores")
        return self


class Best(Episode):
    """best.json."""

    search_accuracy: Part
    cross_entropy: float
    kl: float
    reward: float
    baseline: Baseline
    cost_ratios: dict[str, Amount | None]


class Checksums(Record):
    """SHA-256 of what a run has worked on; none: there is no such file, or an earlier version's."""

    weights: str | None = None  # of the file of the base network's weights
    heldout_indices: str | None = None
    heldout_sample: str | None = None  # of the first held-out images' pixels
    data: str | None = None  # `amc.problem.Problem.data_sha256`


class Provenance(Record):
    """provenance.json, as far as it is read again."""

    schema_: Annotated[int, Field(alias="schema", ge=1)] = 1
    config_sha256: str | None = None  # none: of a fine-tuning
    amc: str = "unknown"
    command: Annotated[list[str], Field(min_length=1)] = ["amc"]
    git_commit: str | None = None
    packages: dict[str, str] = {}
    python: str = "unknown"
    machine: dict[str, str | int | None] = {}
    started: str = "unknown"
    checksums: Checksums = Checksums()
    classes: Width | None = None
    one_shot: bool = False  # whether the agent is one; of those with a name: `registry.ONE_SHOT`
    precision: str | None = None
    precision_note: str | None = None
    compute: str | None = None  # none: of a version that knew the processor only
    hardware: str | None = None  # of an accelerator; empty: the processor
    batch_size: Width | None = None
    calibration_images: Count | None = None
    warning: str | None = None
    prepared_steps: Count | None = None
    device_doubts: list[str] = []
    baseline: Baseline | None = None  # none: stopped early, or of version 0.1
    base_sha256: str | None = None
    policy_sha256: str | None = None
    episode: Count | None = None  # of a fine-tuning


class LayerRow(Record):
    """A row of layers.csv, as far as it is read again."""

    model_config = ConfigDict(strict=False)

    name: str
    out_channels: Count | None = None
    macs: Count
    params: Count


class Before(Record):
    """before.json of a fine-tuning."""

    baseline_search_accuracy: Part
    search_accuracy: Part
    baseline_test_accuracy: Part
    test_accuracy: Part


class Tested(Record):
    """metrics.json of an export or a fine-tuning, as far as it is read again."""

    baseline_test_accuracy: Part
    test_accuracy: Part
    search_accuracy: Part
    finetuned_test_accuracy: Part | None
    weights_sha256: str | None = None  # of a fine-tuning


class EpochRow(Record):
    """A row of a fine-tuning's log.csv."""

    model_config = ConfigDict(strict=False)

    epoch: Count
    lr: Amount
    train_loss: float
    train_accuracy: Part
    heldout_accuracy: Part | None = None
    seconds: Amount
