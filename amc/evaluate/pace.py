"""In which precision, and by how many images at a time, networks are measured: what is fastest for
the untouched network on the compute that is there.

It is chosen once, by the clock, written down, and kept when a run goes on: outcomes depend on it in
their last digits. Where measuring is no work to speak of there is nothing to choose, so that small
searches are the same each time, on a busy machine too.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from amc.compute import Frugal
from amc.errors import UserError, out_of_memory
from amc.evaluate.measure import AGREEMENT, ImageSet, logits, score
from amc.evaluate.prepare import fuses_bf16, prepared, refuse_infinite
from amc.network.trace import Network

Chosen = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WORTH = 2e10  # multiply-accumulates of all images below which nothing is timed
GAIN = 1.1  # times faster that something must be, to be taken instead of what is usual
ROUNDS = 3  # of timing all in turn; the shortest time of each counts
LARGER = (2.5,)  # times the usual batch that are tried, too
LARGER_ELSEWHERE = (4, 16, 64)  # on an accelerator


@dataclass(frozen=True)
class Pace:
    """How networks are measured."""

    precision: Chosen = "fp32"
    batch_size: int = 1  # images
    note: str = ""  # why not otherwise

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]


def choose(
    network: Network, images: ImageSet, precision: str = "auto", batch_size: int | None = None
) -> tuple[Pace, Tensor]:
    """The pace, and the untouched network's outputs in float32 (n, classes).

    Args:
        network: untouched.
        images: that strategies are measured on.
        precision: auto, or the one to take.
        batch_size: the one to take; None: what is fastest.

    Raises:
        UserError: the outputs are not finite, or a precision was asked for that changes them.
    """
    usual = batch_size or network.table.activations.batch_size()
    fits = Frugal(min(usual, len(images.labels)))
    reference = fits(images.compute, lambda size: _outputs(network, images, size))
    refuse_infinite(network, reference, "held-out images")
    dtypes = precisions(images) if precision == "auto" else [precision]
    paces = [Pace(one, fits.size) for one in dtypes]  # type: ignore[arg-type]
    note = ""
    while True:
        fast = fastest(network, images, paces, batch_size)
        why = _differs(network, images, reference, fast)
        if not why:
            return replace(fast, note=note and f"{note}: using {fast.precision}"), reference
        if precision != "auto":
            raise UserError(f"evaluate.precision is {precision}, but {why}")
        note = f"{note}; {why}" if note else why
        paces = [pace for pace in paces if pace.precision != fast.precision]


def fastest(
    network: Network,
    images: ImageSet,
    paces: list[Pace],
    batch_size: int | None,
) -> Pace:
    """The one with which the untouched network runs fastest; the first, where no other is faster by
    `GAIN`.

    Args:
        network: untouched.
        images: that strategies are measured on.
        paces: to choose from; each is tried with larger batches too, where none is asked for.
        batch_size: that is asked for.
    """
    if network.table.macs * len(images.labels) < WORTH:
        return paces[0]
    tried = paces if batch_size is not None else with_larger(paces, images)
    if len(tried) == 1:
        return tried[0]
    most = max(pace.batch_size for pace in tried)
    best = {pace: seconds(network, images[:most], pace) for pace in tried}
    for _ in range(ROUNDS - 1):
        for pace in tried:
            if best[pace] < 2 * min(best.values()):  # the others have no chance
                best[pace] = min(best[pace], seconds(network, images[:most], pace))
    quickest = min(tried, key=lambda pace: best[pace])
    return quickest if best[paces[0]] > GAIN * best[quickest] else paces[0]


def with_larger(paces: list[Pace], images: ImageSet) -> list[Pace]:
    """Each of these with its own batch and with larger ones, of as many images as there are."""
    times = 1, *(LARGER_ELSEWHERE if images.compute.is_accelerator else LARGER)
    count = len(images.labels)
    sizes = {min(int(paces[0].batch_size * more), count) for more in times}
    return [replace(pace, batch_size=size) for pace in paces for size in sorted(sizes)]


def seconds(network: Network, images: ImageSet, pace: Pace) -> float:
    """Seconds that the untouched network takes; infinite where it does not run so."""
    try:
        model: Any = prepared(network.model, network, pace.dtype)
        logits(model, images[: pace.batch_size], pace.batch_size)  # first calls prepare
        images.compute.wait()
        start = time.perf_counter()
        logits(model, images, pace.batch_size)
        images.compute.wait()
        return time.perf_counter() - start
    except Exception as error:
        if not out_of_memory(error) and pace.dtype == torch.float32:
            raise
        model = None
    images.compute.clear()
    return float("inf")


def _outputs(network: Network, images: ImageSet, size: int, pace: Pace | None = None) -> Tensor:
    dtype = torch.float32 if pace is None else pace.dtype
    return logits(prepared(network.model, network, dtype), images, size)


def precisions(images: ImageSet) -> list[Chosen]:
    """Those worth trying. Of 16 bits fp16 is the more exact one, and GPUs take the same time for
    both; oneDNN has bf16 only, where the processor has AVX-512.
    """
    if images.compute.is_accelerator:
        return ["fp32", "fp16", "bf16"]
    return ["fp32", "bf16"] if fuses_bf16() else ["fp32"]


def _differs(network: Network, images: ImageSet, reference: Tensor, pace: Pace) -> str:
    """Why a precision cannot be taken; empty where it can."""
    if pace.precision == "fp32":
        return ""
    outputs = _outputs(network, images, pace.batch_size, pace)
    accuracies = [score(one, images.labels).accuracy for one in (outputs, reference)]
    points = 100 * abs(accuracies[0] - accuracies[1])
    if bool(torch.isfinite(outputs).all()) and points <= 100 * AGREEMENT:
        return ""
    return f"{pace.precision} differs from fp32 by {points:.2f} points on the untouched network"
