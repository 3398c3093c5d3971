"""Six checks of what amc says and does with one network, each against plain PyTorch: README.md
beside this file says what they compare.
"""

from __future__ import annotations

import copy
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from amc.errors import UserError
from amc.evaluate.prepare import check_alike, confirmed, trust
from amc.network.trace import Network
from amc.spaces.channel import ChannelSpace
from amc.surgery.cut import cut, masking

SAME = 1e-4  # of the largest output: what is measured against the network
CLEAR, EXACT = 1e-5, 1e-8  # cut against mask, in float32 and in float64
WORSE = 1.01  # what repair may add to the error
TOUCHED = 0.1  # of the MACs: less is only partly


def decided(space: ChannelSpace) -> float:
    """The part of the MACs that is of layers, or of the rest, which some decision shrinks."""
    table, least = space.network.table, space.resize(space.smallest)
    rows = [(one.macs, other.macs) for one, other in zip(table, least, strict=True)]
    rows.append((table.rest.macs, least.rest.macs))
    return sum(whole for whole, left in rows if left < whole) / table.macs


@dataclass
class Findings:
    """What the checks have found of one network so far; None where no check has come to it."""

    params: int | None = None
    macs: int | None = None
    bind_seconds: float | None = None
    seconds: float | None = None
    decisions: int | None = None
    macs_decided: float | None = None
    macs_touched: float | None = None
    params_touched: float | None = None
    varies: float | None = None  # how much outputs differ between images, as a part of their norm
    params_said: int | None = None
    macs_said: int | None = None
    prepared_diff: float | None = None
    prepared_small_diff: float | None = None
    cut_smallest_diff: float | None = None
    cut_uniform_diff: float | None = None
    error_unrepaired: float | None = None
    error_repaired: float | None = None
    smallest_macs: int | None = None
    smallest_macs_said: int | None = None
    smallest_params: int | None = None
    smallest_params_said: int | None = None
    uniform_macs: int | None = None
    uniform_macs_said: int | None = None
    uniform_params: int | None = None
    uniform_params_said: int | None = None
    refused: list[str] = field(default_factory=list)
    raised: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def verdict(self) -> tuple[str, str]:
        """Of a network whose checks have ended, and the reason in one line."""
        for name, reasons in (
            ("wrong", self.wrong),
            ("traceback", self.raised),
            ("refused", self.refused),
        ):
            if reasons:
                return name, "; ".join(dict.fromkeys(reasons))
        if not self.decisions:
            return "partly", "nothing can be decided"
        assert self.macs_touched is not None
        if self.macs_touched < TOUCHED:
            return "partly", f"decisions touch {self.macs_touched:.1%} of the MACs"
        return "right", ""


Tell = Callable[[str, Findings], None]
"""Called with the stage that begins and what has been found before."""


class Examination:
    """One network on its way through the checks. A check that fails stops no other."""

    def __init__(
        self, model: nn.Module, calibration: Tensor, fresh: Tensor, name: str = "network"
    ) -> None:
        """Not yet examined.

        Args:
            model: the user's own module.
            calibration: images that repair may use, normalised (n, C, H, W); by the last third of
                them a problem judges repair and preparing.
            fresh: others.
            name: what it is called in messages.
        """
        self.model, self.name = model.eval(), name
        judged = len(calibration) // 3
        self.calibration, self.judging = calibration[:-judged], calibration[-judged:]
        self.fresh, self.few = fresh, fresh[:4]
        self.shape = tuple(fresh.shape[1:])
        self.found = Findings()

    def run(self, tell: Tell = lambda stage, found: None) -> Findings:
        checks = (self.bind, self.count, self.prepare, self.cut, self.repair, self.recount)
        start = time.perf_counter()
        for check in checks:
            tell(check.__name__, self.found)
            try:
                with torch.no_grad():
                    check()
            except UserError as error:
                self.found.refused.append(str(error))
            except Exception as error:
                self.found.raised.append(f"{check.__name__}: {told(error)}")
            self.found.seconds = time.perf_counter() - start
            if self.found.decisions is None:  # not bound
                break
        return self.found

    def bind(self) -> None:
        start = time.perf_counter()
        self.network = Network.of(self.model, self.shape, self.name)
        options = {"repair": "sequential", "min_ratio": 0.3}
        check_alike(self.network, self.judging, self.model)
        self.space = ChannelSpace(self.network, options, self.calibration)
        self.space.fresh = self.judging
        self.found.decisions = len(self.space.decisions)
        self.found.macs_decided = decided(self.space)
        if full := [why for why in self.space.left_alone.values() if "allocate memory" in why]:
            raise MemoryError(full[0])
        self.found.bind_seconds = time.perf_counter() - start

    def count(self) -> None:
        said = self.space.cost({})
        self.found.macs, self.found.params = macs(self.model, self.few), params(self.model)
        self.found.macs_said, self.found.params_said = said.macs, said.params
        self._same_count("whole", self.found.macs, said.macs, self.found.params, said.params)

    def prepare(self) -> None:
        """What is measured gives the outputs of the user's own module."""
        outputs = self.model(self.few)
        self.found.prepared_diff = difference(self._measured(self.network.model), outputs)
        self._equal("the network as measured is not the network", self.found.prepared_diff, SAME)
        small = self._measured(self.compressed)
        self.found.prepared_small_diff = difference(small, self.compressed(self.few))
        self._equal("compressed as measured is another", self.found.prepared_small_diff, SAME)

    def cut(self) -> None:
        """The smaller network is the whole one in which the cut channels are ignored."""
        for size, strategy in self.strategies.items():
            cuts = self.space.cuts(strategy)
            smaller = cut(self.network.model, cuts).eval()

            def masked(model: nn.Module, images: Tensor, cuts: object = cuts) -> Tensor:
                with masking(model, cuts):
                    return model(images)

            differs, holds = compare(smaller, self.network.model, self.few, masked)
            setattr(self.found, f"cut_{size}_diff", differs)
            if not holds:
                self.found.wrong.append(f"cut is not mask ({size}): {differs:.2g}")

    def repair(self) -> None:
        """On images that repair has not seen, it is no further from the original."""
        outputs = self.model(self.fresh)
        self.found.varies = float((outputs - outputs.mean(0)).norm() / outputs.norm())
        plain = cut(self.network.model, self.space.cuts(self.strategies["uniform"])).eval()
        before, after = (
            error(plain(self.fresh), outputs),
            error(self.compressed(self.fresh), outputs),
        )
        self.found.error_unrepaired, self.found.error_repaired = before, after
        if not after <= before * WORSE:
            self.found.wrong.append(f"repair harms: the error {before:.3g} becomes {after:.3g}")

    def recount(self) -> None:
        """What is said of the smaller networks is what they are."""
        smallest = cut(self.network.model, self.space.cuts(self.strategies["smallest"])).eval()
        for size, smaller in (("smallest", smallest), ("uniform", self.compressed)):
            said = self.space.cost(self.strategies[size])
            counted, held = macs(smaller, self.few), params(smaller)
            for key, value in (
                ("macs", counted),
                ("macs_said", said.macs),
                ("params", held),
                ("params_said", said.params),
            ):
                setattr(self.found, f"{size}_{key}", value)
            self._same_count(size, counted, said.macs, held, said.params)
        whole, left = macs(self.model, self.few), macs(smallest, self.few)
        self.found.macs_touched = 1 - left / whole
        self.found.params_touched = 1 - params(smallest) / params(self.model)

    @cached_property
    def strategies(self) -> dict[str, dict[str, int]]:
        return {"smallest": self.space.smallest, "uniform": self.space.uniform(0.5)}

    @cached_property
    def compressed(self) -> nn.Module:
        """What a user would get of the uniform strategy."""
        return self.space.apply(self.strategies["uniform"]).eval()

    def _measured(self, model: nn.Module) -> Tensor:
        """The outputs as a search measures them."""
        if self.network.trusted.steps is None:
            trust(self.network, self.judging)
        outputs: Tensor = confirmed(model, self.network, self.judging)(self.few)
        return outputs

    def _equal(self, otherwise: str, differs: float, tolerance: float) -> None:
        if not differs <= tolerance:
            self.found.wrong.append(f"{otherwise}: {differs:.2g}")

    def _same_count(
        self, size: str, macs: int, macs_said: int, params: int, params_said: int
    ) -> None:
        for what, real, said in (("MACs", macs, macs_said), ("parameters", params, params_said)):
            if real != said:
                self.found.wrong.append(f"{what} ({size}) said {said:,}, are {real:,}")


def macs(model: nn.Module, images: Tensor) -> int:
    """Multiply-accumulates of one image."""
    model = copy.deepcopy(model).requires_grad_(False)  # PyTorch's counter stumbles over some else
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images[:1])
    return counter.get_total_flops() // 2


def params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def difference(outputs: Tensor, expected: Tensor) -> float:
    """The largest, as a part of the largest output; inf where the shapes differ."""
    if outputs.shape != expected.shape:
        return float("inf")
    return float((outputs - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def error(outputs: Tensor, expected: Tensor) -> float:
    """Relative to what varies between images (n, classes)."""
    return float((outputs - expected).norm() / (expected - expected.mean(0)).norm())


def compare(
    smaller: nn.Module,
    whole: nn.Module,
    images: Tensor,
    masked: Callable[[nn.Module, Tensor], Tensor],
) -> tuple[float, bool]:
    """How far a smaller network is from ``masked(whole, images)``, and whether that is none: in
    float32 if that is clear, else in float64 (in a network that runs in float32 only: `SAME`).
    """
    differs = difference(smaller(images), masked(whole, images))
    if differs <= CLEAR:
        return differs, True
    exact = copy.deepcopy(whole).double()
    try:
        expected = masked(exact, images.double())
    except RuntimeError:
        return differs, differs <= SAME
    differs = difference(copy.deepcopy(smaller).double()(images.double()), expected)
    return differs, differs <= EXACT


def told(error: BaseException) -> str:
    """An exception in one line, with the last place in amc or torch_pruning on its way."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/amc/" in f.filename or "/torch_pruning/" in f.filename][-1:]
    place = f" ({own[0].filename.rsplit('/', 1)[-1]}:{own[0].lineno})" if own else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}{place}"
