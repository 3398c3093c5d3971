"""An export, read back: an ordinary, trainable ``nn.Module``. Nothing is unpickled, nothing of a
stranger's is imported unasked, and nothing is built that does not fit the weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from amc.errors import UserError
from amc.files import check_same
from amc.network.checkpoints import shapes_of
from amc.network.copying import copied, unwrapped
from amc.network.models import build_model, is_known, load_weights
from amc.network.rewriting import rewrite
from amc.plugins import allow, users_code
from amc.randomness import own_randomness
from amc.reading import damaged, read_json
from amc.registry import KNOWN, lookup
from amc.runs import names
from amc.runs.records import Record, Width
from amc.search import SearchResult


class Description(Record):
    """strategy.json: what makes the structure of an exported network."""

    schema_: Annotated[int, Field(alias="schema", ge=1)]
    model: str | None
    weights: str | None = None  # exports of version 0.1 know of none but the search's
    classes: Width
    input_shape: Annotated[list[Width], Field(min_length=3, max_length=3)]
    mean: list[float]
    std: list[float]
    dtype: Literal["float16", "bfloat16", "float32", "float64"] = "float32"
    space: str
    strategy: dict[str, int]
    structure: dict[str, Any]
    rewritten: dict[str, str] = Field(default_factory=dict)  # `amc.network.rewriting`
    finetuned: bool = False
    run: str | None = None
    weights_sha256: str | None = None


@users_code()
@own_randomness()
def load(
    run: SearchResult | str | Path, model: nn.Module | None = None, *, trust: bool = False
) -> nn.Module:
    """Rebuild an exported network.

    Args:
        run: a search's result, the directory of a run, or its ``export`` folder.
        model: a fresh copy of the original architecture, where it was given from Python and
            ``run`` is a directory.
        trust: import the code that an export names which you have not made yourself
            (`amc.plugins`).

    Returns:
        The network in the dtype that the original was given in.

    Raises:
        UserError: the folder holds no export, it is damaged or not what was written, it names code
            that the user has not named, or the weights do not fit.
    """
    folder = run.run.path / names.EXPORT if isinstance(run, SearchResult) else Path(run)
    if (folder / names.EXPORT / names.STRATEGY).is_file():
        folder = folder / names.EXPORT
    description = read_description(folder)
    if trust:
        allow([description.model, description.space])
    if isinstance(run, SearchResult):
        model = copied(run.problem.network.model).cpu()
    elif model is None:
        model = _original(description, folder)
    rebuilt = _rebuilt(unwrapped(model), description, folder)
    load_weights(rebuilt, folder / names.WEIGHTS)
    return rebuilt.eval()


def read_description(folder: Path) -> Description:
    """strategy.json of an export.

    Raises:
        UserError: it is missing or damaged, or the weights beside it are not those it was written
            with.
    """
    path = folder / names.STRATEGY
    if not path.is_file():
        raise UserError(
            f"{str(folder)!r} is not an export: it has no {names.STRATEGY} (`amc export RUN` "
            "writes one, in the format safetensors)"
        )
    description = read_json(path, Description)
    check_same(folder / names.WEIGHTS, description.weights_sha256)
    return description


def _original(description: Description, folder: Path) -> nn.Module:
    """The architecture before compression. One of ours is first built without memory, to see that
    what becomes of it fits the weights.
    """
    name = description.model
    if name is None:
        raise UserError(
            f"the network of {str(folder)!r} was given from Python: load it with "
            "amc.load(path, model=...)"
        )
    build = name, description.classes, description.input_shape[0]
    if is_known(name) and description.space in KNOWN["space"]:
        with torch.device("meta"):
            paper = build_model(*build)
            paper = _rebuilt(paper, description, folder)
        found = {key: tuple(value.shape) for key, value in paper.state_dict().items()}
        weights = shapes_of(folder / names.WEIGHTS)
        if wrong := sorted(key for key in found if found[key] != weights.get(key)):
            raise UserError(
                f"{str(folder / names.STRATEGY)!r} does not fit the weights beside it: "
                f"{wrong[0]} would be {found[wrong[0]]}, it is {weights.get(wrong[0])}"
            )
    return build_model(*build)


def _rebuilt(model: nn.Module, description: Description, folder: Path) -> nn.Module:
    space = lookup("space", description.space)
    with damaged(folder / names.STRATEGY):
        own = copied(model)
        rewrite(own, description.rewritten)
        rebuilt: nn.Module = space.rebuild(own, description.structure)
    return rebuilt.to(getattr(torch, description.dtype))
