"""What spaces have in common whose networks are repaired by least squares: options, targets, the
sweep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from amc.errors import UserError, first_line
from amc.network.copying import copied
from amc.network.layers import evaluating
from amc.network.trace import Network, trace
from amc.repair.factors import Factoring, factorise_layers
from amc.repair.independent import reestimate_batchnorm
from amc.repair.regression import RIDGE
from amc.repair.rows import Sampler
from amc.repair.sequential import SequentialRepair, Targets
from amc.spaces.base import CompressionSpace, Decision, SpaceOptions
from amc.spaces.settling import miscount, settle
from amc.surgery.cut import Cuts
from amc.surgery.factor import Plan

# Of activations in one sweep; calibration images beyond it are left out.
CALIBRATION_BYTES = 2 * 2**30

# Fresh images that judge repair: more would be seen in the time of an episode.
JUDGES = 16

# An error of a factorised network at which nobody asks whether it would be less without repair.
GOOD = 0.3


class RepairOptions(SpaceOptions):
    """The options that these spaces share."""

    round_to: int = Field(
        1, ge=1, le=100_000, description="channels kept, and ranks, are multiples of this"
    )
    min_ratio: float = Field(0.2, gt=0, le=1, description="the smallest keep ratio of a decision")
    repair: Literal["none", "independent", "sequential"] = Field(
        "sequential",
        description="least squares after the surgery; sequential uses the inputs of the network "
        "as compressed so far",
    )
    ridge: float = Field(
        RIDGE,
        ge=0,
        le=1000,
        description="how strongly repair pulls towards the weights as they were, as a part of the "
        "mean diagonal of the Gram matrix",
    )
    reestimate_batchnorm: bool = Field(
        False, description="re-estimate BatchNorm statistics on the calibration images"
    )


class RepairingSpace(CompressionSpace):
    """A space that may repair its networks with calibration images."""

    Options = RepairOptions
    options: RepairOptions

    def __init__(
        self,
        network: Network,
        options: Mapping[str, Any] | None = None,
        calibration: Tensor | None = None,
    ) -> None:
        super().__init__(network, options, calibration)
        if calibration is None and self.options.repair != "none":
            raise UserError("repair needs calibration images")
        if calibration is not None and self.options.repair == "sequential":
            peak = network.table.activations.peak_bytes()
            few = max(64, CALIBRATION_BYTES // peak)
            if few < len(calibration):  # a copy: the others need not stay in memory
                self.calibration = calibration[:few].clone()

    def recalibrate(self, count: int) -> None:
        if self.calibration is not None and count < len(self.calibration):
            super().recalibrate(count)
            for seen in ("_sampler", "_targets", "_grams"):  # of more images
                self.__dict__.pop(seen, None)

    @cached_property
    def _sampler(self) -> Sampler:
        assert self.calibration is not None
        return Sampler(len(self.calibration), parts=self.network.parts)

    @cached_property
    def _targets(self) -> Targets:
        assert self.calibration is not None
        return Targets(self.network, self.calibration, self._sampler)

    def _settled(self, decisions: Sequence[Decision]) -> list[Decision]:
        """The decisions with which paper is metal; of the others ``left_alone`` has the reason."""

        def why(strategy: dict[str, int], counted: bool) -> str | None:
            self.__dict__["decisions"] = tuple(decisions)  # `resize` and `describe` ask for them
            try:
                return self._why_wrong(strategy, counted)
            except Exception as error:
                return f"it cannot be made smaller: {first_line(error)}"
            finally:
                del self.__dict__["decisions"]

        found, gone = settle(decisions, why)
        by_name = {decision.name: decision for decision in decisions}
        for name, reason in gone.items():
            self.left_alone.update(dict.fromkeys(by_name[name].layers, reason))
        return found

    def _why_wrong(self, strategy: dict[str, int], counted: bool) -> str | None:
        """Why a strategy does not make the network that it is said to make; with its costs, where
        they are ``counted``.
        """
        if not counted:
            return None
        smaller = self.rebuild(self.network.model, self.describe(strategy))
        return miscount(self, strategy, trace(smaller, self.network.input_shape))

    def _repaired(self, model: nn.Module, cuts: Cuts, plan: Plan) -> nn.Module:
        """A network that was cut, factorised and repaired as the options say; without the repair
        where it takes the outputs on fresh images further from the original's.

        Args:
            model: cut; it may be modified.
            cuts: what it has lost.
            plan: how its layers are factorised.
        """
        self.repair_kept = True
        with self.clock("repair"):
            if self.options.repair == "none" or self.fresh is None:
                self._repair(model, cuts, factorise_layers(model, plan, self._refits))
                return model
            if plan:
                return self._better(model, cuts, plan)
            before = self._error(model)
            state = {key: value.clone() for key, value in model.state_dict().items()}
            self._repair(model, cuts)
            self.repair_kept = self._error(model) <= before
            if not self.repair_kept:
                model.load_state_dict(state)
            return model

    def _better(self, model: nn.Module, cuts: Cuts, plan: Plan) -> nn.Module:
        """Factors fitted to data, or those of the weights where they are better."""
        plain = copied(model)
        self._repair(model, cuts, factorise_layers(model, plan, self._refits))
        error = self._error(model)
        if error < GOOD:  # factors of the weights take long to find
            return model
        factorise_layers(plain, plan, refitted=False)
        self.repair_kept = error <= self._error(plain)
        return model if self.repair_kept else plain

    @property
    def _refits(self) -> bool:
        return self.options.repair != "none"

    def _error(self, model: nn.Module) -> float:
        """How far a network's outputs on fresh images are from the original's, as a part of what
        varies between images.
        """
        assert self.fresh is not None
        with evaluating(model):
            outputs = model(self.fresh[:JUDGES])
        varying = (self._wanted - self._wanted.mean(0)).norm().clamp_min(1e-30)
        return float((outputs - self._wanted).norm() / varying)

    @cached_property
    def _wanted(self) -> Tensor:
        """The original's outputs on fresh images."""
        assert self.fresh is not None
        with evaluating(self.network.model):
            outputs: Tensor = self.network.model(self.fresh[:JUDGES])
        return outputs

    def _repair(
        self, model: nn.Module, cuts: Cuts, factorings: Mapping[str, Factoring] | None = None
    ) -> None:
        """Repair a network that was cut and factorised, in place, as the options say."""
        if self.calibration is None:
            return
        if self.options.repair == "sequential":
            sweep = SequentialRepair(model, self._targets, cuts, factorings, self.options.ridge)
            sweep.run(self.calibration)
        if self.options.reestimate_batchnorm:
            size = self.network.table.activations.batch_size()
            reestimate_batchnorm(model, self.calibration, size)
