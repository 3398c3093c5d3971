"""What is random in amc draws from generators of its own, or within `own_randomness`.

Torch, numpy and Python each have a state that everybody draws from: layers draw their first weights
from it, Stable-Baselines3 sets it, a user's plug-in may do either. An entry point of amc works with
states of its own, so that what comes out does not depend on the caller's, and leaves those as they
were.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def own_randomness(seed: int = 0, *generators: torch.Generator | None) -> Iterator[None]:
    """What is random inside draws from states that follow from a seed: the global ones are left as
    they were. Also a decorator.

    Args:
        seed: of these states.
        generators: whose states are left as they were, too.
    """
    own = [torch.default_generator, *filter(None, generators)]
    states = [generator.get_state() for generator in own]
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    python, numpy = random.getstate(), np.random.get_state()
    try:
        torch.default_generator.manual_seed(seed)
        if on_gpus is not None:
            torch.cuda.manual_seed_all(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        yield
    finally:
        for generator, state in zip(own, states, strict=True):
            generator.set_state(state)
        if on_gpus is not None:
            torch.cuda.set_rng_state_all(on_gpus)
        random.setstate(python)
        np.random.set_state(numpy)
