"""What a run keeps of what it works on: enough to repeat it, and to tell whether it is the same."""

from __future__ import annotations

import hashlib
from typing import Any

from safetensors.torch import save

from amc.base import weights_file
from amc.files import sha256
from amc.network.rewriting import restored
from amc.problem import Problem
from amc.registry import lookup
from amc.runs import names
from amc.runs.directory import layers_csv
from amc.runs.policy import Policy
from amc.runs.provenance import surroundings
from amc.training.keeper import plain


def files_of(problem: Problem, from_python: bool, policy: Policy | None) -> dict[str, bytes]:
    """What a run keeps of what it works on: weights where they come from no file."""
    files = {names.LAYERS: layers_csv(problem.network.table)}
    if problem.device is not None:
        files[names.DEVICE] = problem.device.to_yaml().encode()
    if from_python or weights_file(problem.config) is None:
        files[names.BASE] = save(plain(restored(problem.network.model)))
    if policy is not None:
        files[names.POLICY] = policy.to_bytes()
    return files


def provenance_of(problem: Problem) -> dict[str, Any]:
    """What a reader needs to repeat the run."""
    config = problem.config
    weights = weights_file(config)
    sample = problem.dataset.train.fetch(problem.splits.heldout[:100]).numpy().tobytes()
    return {
        **surroundings(),
        "checksums": {
            "weights": sha256(weights) if weights else None,
            "heldout_indices": hashlib.sha256(problem.splits.heldout.tobytes()).hexdigest(),
            "heldout_sample": hashlib.sha256(sample).hexdigest(),
            "data": problem.data_sha256(),
        },
        "one_shot": getattr(lookup("agent", config.agent["name"]), "one_shot", False) is True,
        "input_shape": list(problem.dataset.input_shape),
        "classes": problem.dataset.classes,
        "left_alone": problem.space.left_alone,
        "prepared": problem.network.trusted.note,
        "prepared_steps": problem.network.trusted.steps,
        "uncounted": list(problem.network.table.rest.uncounted),
        "device_doubts": problem.doubts(),
    }
