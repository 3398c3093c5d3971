"""What runs must have in common to be put beside each other, and what should be.

Weights and images are told by the checksums of provenance.json. What a run does not say (an earlier
version's) is not asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from amc.errors import UserError, shown
from amc.runs.directory import Run


@dataclass(frozen=True)
class Fact:
    """Something that is known of a run."""

    name: str
    value: Any
    among: Hashable = None  # runs of which this is the same must agree in the value


def must_agree(runs: Sequence[Run], facts: Sequence[Sequence[Fact]], why: str) -> None:
    """Refuse runs that cannot be put beside each other.

    Args:
        runs: some.
        facts: of each run; two that do not know the same ones agree in what both know.
        why: the end of the message.

    Raises:
        UserError: two differ.
    """
    known: dict[tuple[str, Hashable], tuple[Run, Any]] = {}
    for run, own in zip(runs, facts, strict=True):
        for fact in own:
            other, value = known.setdefault((fact.name, fact.among), (run, fact.value))
            if fact.value != value:
                raise UserError(
                    f"{str(run.path)!r} and {str(other.path)!r} differ in {fact.name} "
                    f"({shown(fact.value)} and {shown(value)}): {why}"
                )


def network_and_data(run: Run) -> list[Fact]:
    """The base network's weights, and the data.

    Weights that stand in no file and were not given from Python follow from the seed, so runs of
    other seeds may have others. Held-out images differ with the seed too, where no file names them
    (`heldout_images`); those of the same indices must be the same images.
    """
    config, provenance = run.config, run.provenance
    sums = provenance["checksums"]
    drawn = config.model is not None and config.weights is None
    facts = [
        Fact(
            "the base network's weights",
            provenance["base_sha256"] or sums["weights"],
            ("seed", config.seed) if drawn else None,
        ),
        Fact("the number of classes", provenance["classes"]),
        Fact("the data", sums["data"]),
        Fact("the pixels of the held-out images", sums["heldout_sample"], sums["heldout_indices"]),
    ]
    return [fact for fact in facts if fact.value is not None]


def heldout_images(run: Run) -> list[Fact]:
    """Which images a run measures on: drawn by its seed, or those of a file."""
    indices = run.provenance["checksums"]["heldout_indices"]
    if indices is None:
        return []
    among = ("seed", run.config.seed) if run.config.heldout is None else None
    return [Fact("the held-out images", indices, among)]


def doubts(runs: Sequence[Run]) -> tuple[str, ...]:
    """What should be the same in all runs, but may differ: precision, processor, GPU. A sentence
    each.
    """
    ways: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
        (
            "precisions",
            lambda provenance: provenance["precision"],
            "a part of what differs in accuracy may come of that",
        ),
        (
            "processors",
            lambda provenance: provenance["machine"].get("processor"),
            "seconds are not of one machine, and rounding differs",
        ),
        (
            "computes",
            lambda provenance: provenance["hardware"] or provenance["compute"],
            "seconds are not of one machine, and rounding differs",
        ),
    ]
    everyone = [run.provenance for run in runs]
    found = []
    for name, of, what in ways:
        values = list(dict.fromkeys(str(of(one)) for one in everyone if of(one) is not None))
        if len(values) > 1:
            found.append(f"the runs are of different {name} ({', '.join(values)}): {what}")
    return tuple(found)
