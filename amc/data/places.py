"""The folders in which data and weights are looked for."""

from __future__ import annotations

import importlib.resources
import os
from pathlib import Path

from amc.errors import UserError


def data_folder(configured: str | Path | None, key: str = "data_dir") -> Path:
    """The configured folder, else that of the environment variable named after the key of the
    config (`AMC_DATA_DIR`), else ~/.cache/amc.
    """
    return Path(
        configured or os.environ.get(_variable(key)) or Path.home() / ".cache" / "amc"
    ).expanduser()


def find_file(name: str, configured: str | Path | None, key: str = "data_dir") -> Path:
    """A file by its path, by its name in the folder, or by its name among those of `amc.weights`.

    Args:
        name: or path.
        configured: the folder; with none, `data_folder` of the key.
        key: of the config, that names the folder.

    Raises:
        UserError: there is none.
    """
    path = Path(name).expanduser()  # an absolute one is itself in every folder
    folder = data_folder(configured, key)
    shipped = Path(str(importlib.resources.files("amc.weights")))
    for place in (path, folder / path, shipped / path):
        if place.is_file():
            return place
    raise UserError(
        f"the file {str(folder / path)!r} does not exist: give its whole path, or name its folder "
        f"as {key} or {_variable(key)}"
    )


def _variable(key: str) -> str:
    return f"AMC_{key.upper()}"
