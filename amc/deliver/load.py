"""An export, read back: an ordinary, trainable ``nn.Module``. Nothing is unpickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amc.errors import UserError
from amc.network.copying import copied, unwrapped
from amc.network.models import build_model, load_weights
from amc.registry import lookup
from amc.runs import names
from amc.search import SearchResult


def load(run: SearchResult | str | Path, model: nn.Module | None = None) -> nn.Module:
    """Rebuild an exported network.

    Args:
        run: a search's result, the directory of a run, or its ``export`` folder.
        model: a fresh copy of the original architecture, where it was given from Python and
            ``run`` is a directory.

    Returns:
        The network in the dtype that the original was given in.

    Raises:
        UserError: the folder holds no export, or the weights do not fit.
    """
    folder = run.run.path / names.EXPORT if isinstance(run, SearchResult) else Path(run)
    if (folder / names.EXPORT / names.STRATEGY).is_file():
        folder = folder / names.EXPORT
    description = read_description(folder)
    if isinstance(run, SearchResult):
        model = copied(run.problem.network.model)
    elif model is None:
        if description["model"] is None:
            raise UserError(
                f"the network of {str(run)!r} was given from Python: load it with "
                "amc.load(path, model=...)"
            )
        model = build_model(
            description["model"], description["classes"], description["input_shape"][0]
        )
    space = lookup("space", description["space"])
    rebuilt: nn.Module = space.rebuild(unwrapped(model), description["structure"])
    rebuilt = rebuilt.to(getattr(torch, description["dtype"]))
    load_weights(rebuilt, folder / names.WEIGHTS)
    return rebuilt.eval()


def read_description(folder: Path) -> dict[str, Any]:
    """strategy.json of an export.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        value: dict[str, Any] = json.loads((folder / names.STRATEGY).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{str(folder)!r} is not an export: it has no {names.STRATEGY} (`amc export RUN` "
            "writes one, in the format safetensors)"
        ) from None
    except ValueError as error:
        raise UserError(f"{str(folder / names.STRATEGY)!r} is damaged: {error}") from error
    older = {"weights": None, "finetuned": False, "dtype": "float32"}  # what they did not write
    return older | value
