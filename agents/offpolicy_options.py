"""The options of every agent that learns from a replay buffer."""

from __future__ import annotations

from typing import Any, Self

from amc.agents.proposing import EpisodeOptions
from amc.agents.starting import Start
from pydantic import Field, model_validator


class OffPolicyOptions(EpisodeOptions):
    """The options of every agent that learns from a replay buffer; the preset `amc_paper` has the
    paper's.
    """

    episodes: int = Field(
        400, ge=1, le=1_000_000, description="episodes of the search, warm-up included"
    )
    warmup_episodes: int = Field(
        40,
        ge=0,
        le=1_000_000,
        description="episodes with random keep ratios, before any update",
    )
    warmup_spread: float | None = Field(
        0.15,
        gt=0,
        le=10,
        description="none: every keep ratio of the warm-up is uniform; a number: normal with this "
        "standard deviation around the strategy that the agent starts from, without one around a "
        "ratio that is drawn for the episode",
    )
    start: Start = Field(
        "auto",
        description="the strategy that is the actor's first output, and with warmup_spread the "
        "middle of the warm-up: uniform within the budget; sensitivity: what that agent finds "
        "from single decisions, which are measured first and count as episodes; auto: sensitivity "
        "where that takes at most a third of the episodes, else uniform; none: no strategy",
    )
    sensitivities: bool = Field(
        False,
        description="with start sensitivity: what each decision alone has lost is part of what the "
        "agent sees",
    )
    pretrained: str | None = Field(
        None,
        description="a run, also of another network, whose actor and critic the agent begins with "
        "instead of at `start` (with start sensitivity the actor learns that besides); its warm-up "
        "is drawn around what the policy does",
    )
    actor_lr: float = Field(1e-3, gt=0, le=10, description="learning rate of the actor (Adam)")
    critic_lr: float = Field(1e-3, gt=0, le=10, description="learning rate of the critic (Adam)")
    batch_size: int = Field(64, ge=1, le=100_000, description="transitions an update")
    tau: float = Field(0.01, gt=0, le=1, description="soft update of the target networks")
    gamma: float = Field(1.0, gt=0, le=1, description="discount")
    replay: int = Field(2000, ge=1, le=1_000_000, description="transitions in the replay buffer")
    envs: int = Field(
        1,
        ge=1,
        le=1024,
        description="episodes that are walked in step, and measured side by side; the updates of "
        "all of them come after the last step",
    )
    hidden: int = Field(
        300,
        ge=1,
        le=4096,
        description="units in each of the two hidden layers of actor and critic",
    )
    baseline_decay: float = Field(
        0.95, ge=0, lt=1, description="of the moving average of rewards that is subtracted"
    )
    imitate: int = Field(
        10,
        ge=0,
        le=10_000,
        description="after each episode the actor also learns the actions of so many best episodes "
        "so far; 0: of none",
    )

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_versions(cls, values: Any) -> Any:
        if isinstance(values, dict) and "centred" in values:
            values = {"start": "uniform" if values["centred"] else "none", **values}
            del values["centred"]
        return values

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.episodes % self.envs:
            raise ValueError(f"{self.episodes} episodes are no multiple of {self.envs} envs")
        if self.sensitivities and self.start != "sensitivity":
            raise ValueError(f"agent.sensitivities needs agent.start sensitivity, not {self.start}")
        return self
