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
    shipped = Path(str(importlib.resources.files("amc.weights")))
    places = *_places(name, configured, key), shipped / Path(name).expanduser()
    for place in places:
        if place.is_file():
            return place
    raise UserError(
        f"the file {str(places[1])!r} does not exist: give its whole path, or name its folder "
        f"as {key} or {_variable(key)}"
    )


def find_folder(name: str, configured: str | Path | None, key: str = "data_dir") -> Path:
    """A folder by its path, or by its name in the folder of a key: the arguments are those of
    `find_file`. Where there is none, the second, which is not there.
    """
    places = _places(name, configured, key)
    return next((place for place in places if place.is_dir()), places[1])


def _places(name: str, configured: str | Path | None, key: str) -> tuple[Path, Path]:
    """Where a file or a folder may be."""
    path = Path(name).expanduser()  # an absolute one is itself in every folder
    return path, data_folder(configured, key) / path


def _variable(key: str) -> str:
    return f"AMC_{key.upper()}"
