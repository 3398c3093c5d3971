"""What an agent has learned on one network, applied to another: no search, one walk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from amc.config import load_config, presets
from amc.data.datasets import Dataset
from amc.progress import Report, silent
from amc.runs import names
from amc.runs.directory import Run
from amc.search import SearchResult, search


@dataclass(frozen=True)
class Applied:
    """A run that holds the uniform strategy and the policy's; its best is the better of the two."""

    result: SearchResult
    uniform: dict[str, Any]  # lines of the journal
    policy: list[dict[str, Any]]  # one; of a range of budgets one each


def apply(
    run: str | Path,
    model: str | nn.Module,
    overrides: Sequence[str] = (),
    *,
    dataset: Dataset | None = None,
    out: str | Path = "runs",
    report: Report = silent,
    trust: bool = False,
) -> Applied:
    """Walk a network once as the trained agent of a run says.

    Args:
        run: of a search by td3, ddpg or sac; best over a range of budgets, which its agent then
            knows of.
        model: a preset, a YAML file, or another network in the place of the run's, by name or as it
            is: its space, budget, data and measuring are then those of the run.
        overrides: ``key=value`` of the configuration, as weights and budget.ratio.
        dataset: your own data, instead of the config's.
        out: the folder for runs.
        report: of progress.
        trust: import the code that the run, or the YAML file, names (`amc.plugins`).

    Raises:
        UserError: the run has no policy, or it does not fit.
    """
    Run.open(Path(run))  # before anything else is looked at
    agent = f"agent={{name: policy, pretrained: {json.dumps(str(run))}}}"
    named = isinstance(model, str)
    if isinstance(model, str) and (model in presets() or model.endswith((".yaml", ".yml"))):
        _, config = load_config(model, [agent, *overrides], trust)
    else:
        other = [f"model={json.dumps(model) if named else 'null'}", "weights=null", "train=null"]
        source = str(Path(run) / names.CONFIG)
        _, config = load_config(source, [*other, agent, *overrides], trust)
    own = None if isinstance(model, str) else model
    result = search(config, model=own, dataset=dataset, out=out, report=report, trust=trust)
    first, *rest = result.run.lines()
    return Applied(result, first, rest)
