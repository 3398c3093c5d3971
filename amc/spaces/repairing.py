"""What spaces have in common whose networks are repaired by least squares: options, targets, the
sweep.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from amc.errors import UserError
from amc.network.trace import Network
from amc.options import Options
from amc.repair.factors import Factoring
from amc.repair.independent import reestimate_batchnorm
from amc.repair.regression import RIDGE
from amc.repair.rows import Sampler
from amc.repair.sequential import SequentialRepair, Targets
from amc.spaces.base import CompressionSpace
from amc.surgery.cut import Cuts

# Of activations in one sweep; calibration images beyond it are left out.
CALIBRATION_BYTES = 2 * 2**30


class RepairOptions(Options):
    """The options that these spaces share."""

    round_to: int = Field(1, ge=1, description="channels kept, and ranks, are multiples of this")
    min_ratio: float = Field(0.2, gt=0, le=1, description="the smallest keep ratio of a decision")
    repair: Literal["none", "independent", "sequential"] = Field(
        "sequential",
        description="least squares after the surgery; sequential uses the inputs of the network "
        "as compressed so far",
    )
    ridge: float = Field(
        RIDGE,
        ge=0,
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
            self.calibration = calibration[: max(64, CALIBRATION_BYTES // peak)]

    @cached_property
    def _sampler(self) -> Sampler:
        assert self.calibration is not None
        return Sampler(len(self.calibration))

    @cached_property
    def _targets(self) -> Targets:
        assert self.calibration is not None
        return Targets(self.network, self.calibration, self._sampler)

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
