"""Which images of its dataset a ``DataLoader`` draws."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from amc.errors import UserError
from amc.network.layers import IntArray
from amc.randomness import own_randomness

DRAWS = 100  # of an image; a sampler that draws more on average is taken to be endless


def drawn(loader: DataLoader[Any], count: int, whose: str) -> IntArray:
    """The images that a loader can draw, each once, in the order of its dataset. How often and in
    which order it draws them, and whether it drops the last batch, plays no part.

    Args:
        loader: with a sampler or a batch sampler of any kind; a sampler with weights draws all
            images whose weight is above 0.
        count: the images of its dataset.
        whose: they are, for messages.

    Raises:
        UserError: the sampler draws what is not there, or others each time.
    """
    batches = loader.batch_sampler
    own = batches is not None and type(batches) is not BatchSampler
    sampler: Any = batches if own else getattr(batches, "sampler", loader.sampler)
    kind = type(sampler)  # one of a class derived from these may draw otherwise
    if kind in (SequentialSampler, RandomSampler):
        chosen = np.arange(len(sampler.data_source))
    elif kind is SubsetRandomSampler:
        chosen = _numbers(sampler.indices, count, whose)
    elif kind is WeightedRandomSampler:
        chosen = np.flatnonzero(np.asarray(sampler.weights) > 0)
    else:
        inner = getattr(sampler, "sampler", None)
        with own_randomness(0, _generator_of(sampler), _generator_of(inner)):
            chosen, again = (_numbers(_flat(sampler), count, whose) for _ in range(2))
        if not np.array_equal(chosen, again):
            raise UserError(
                f"the sampler {kind.__name__} of {whose} draws other images each time: choose them "
                "once, with torch.utils.data.Subset"
            )
    if len(chosen) and chosen[-1] >= count:
        raise UserError(f"the sampler of {whose} draws image {chosen[-1]} of {count} (from 0)")
    return chosen


def in_common(train: tuple[Any, IntArray], test: tuple[Any, IntArray]) -> int:
    """How many images two parts share, of (dataset, indices): known where they are of one dataset,
    or subsets of one.
    """
    (first, ours), (second, theirs) = _root(*train), _root(*test)
    return len(np.intersect1d(ours, theirs)) if first is second else 0


def _generator_of(sampler: object) -> torch.Generator | None:
    generator = getattr(sampler, "generator", None)
    return generator if isinstance(generator, torch.Generator) else None


def _flat(sampler: Iterable[Any]) -> Iterator[Any]:
    for item in sampler:
        if isinstance(item, (list, tuple)):
            yield from item
        else:
            yield item


def _numbers(items: Iterable[Any], count: int, whose: str) -> IntArray:
    """Different indices in ascending order."""
    most = DRAWS * max(count, 1)
    try:
        numbers = [int(item) for item in islice(items, most + 1)]
    except (TypeError, ValueError):
        raise UserError(
            f"the sampler of {whose} does not draw whole numbers: the images of its dataset must "
            "be asked for by number"
        ) from None
    if len(numbers) > most:
        raise UserError(
            f"the sampler of {whose} draws more than {most} of {count} images: it must come to an "
            "end; torch.utils.data.Subset chooses images without a sampler"
        )
    if numbers and min(numbers) < 0:
        raise UserError(f"the sampler of {whose} draws image {min(numbers)}: numbers begin at 0")
    return np.unique(np.array(numbers, dtype=np.int64))


def _root(dataset: Any, indices: IntArray) -> tuple[Any, IntArray]:
    """The dataset that subsets are of, and the indices into it."""
    while isinstance(dataset, Subset):
        dataset, indices = dataset.dataset, np.asarray(dataset.indices)[indices]
    return dataset, indices
