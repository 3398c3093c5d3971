"""Code of a user's own, named ``module:attribute``: a space, an agent, a reward, a network, a kind
of layer.

It is imported only where the user has named it: on the command line, from Python (`allow`), with
``--trust`` (``trust=True``), or at an earlier time, from the same file of code. A name that merely
stands in a file (a config, a run, an export, a device profile) is a stranger's, and is refused with
a sentence that says what would have been imported. Before anything is called it is checked to be
what it should be.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import inspect
import json
import os
import sys
import sysconfig
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from amc.errors import UserError, first_line, kind_and_line, out_of_memory, unknown
from amc.files import refused, write_json

_INSTALLED = [Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib")]

CLASSES: dict[str, tuple[str, ...]] = {
    "space": ("Options", "find_decisions", "resize", "apply", "describe", "rebuild"),
    "agent": ("Options", "run", "state", "load_state", "episodes", "episodes_done", "phase_of"),
    "runtime": ("prepare",),
    "observation": ("__call__",),
    "kind": ("matches", "widths", "cut", "example"),
}
"""Kind -> what a class of that kind has."""
ARGUMENTS = {"reward": 4, "criterion": 3, "model": 0}
"""Kind -> how many arguments a function of that kind is called with."""

_SESSION = "this Python session"
_named: set[str] = set()  # by the user, in this process


def allow(values: Any) -> None:
    """The user names what stands in these values, however nested: it may be imported."""
    if isinstance(values, str):
        if ":" in values:
            _named.add(values)
    elif isinstance(values, Mapping):
        for value in values.values():
            allow(value)
    elif isinstance(values, Sequence) and not isinstance(values, bytes | bytearray):
        for value in values:
            allow(value)


def imported(path: str, kind: str) -> Any:
    """The object behind ``module:attribute``; modules are looked for in the current folder too.

    Raises:
        UserError: the user has not named it, there is no such thing, importing it fails, or it is
            not what a plug-in of that kind must be.
    """
    module_name, _, attribute = path.partition(":")
    origin = _origin(module_name, path, kind)
    mine = path in _named
    if not mine and (path, origin) not in _remembered():
        raise UserError(
            f"the {kind} {path!r} would import {module_name} ({origin}), code that is not part of "
            "amc and that you have not named yourself: if you trust it, say --trust (from Python: "
            "trust=True)"
        )
    module = _imported(module_name, path, kind)
    if not hasattr(module, attribute):
        public = [name for name in vars(module) if not name.startswith("_")]
        raise unknown(f"{kind} in {module_name}", attribute, public)
    found = getattr(module, attribute)
    _check(found, path, kind)
    if mine and origin != _SESSION:
        _remember(path, origin)
    return found


def _imported(name: str, path: str, kind: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module may raise anything, SystemExit too
        raise UserError(
            f"importing the {kind} {path!r} raised {type(error).__name__}: {first_line(error)}"
        ) from error


def _origin(name: str, path: str, kind: str) -> str:
    """The file of a module, found without importing anything, its parents neither.

    Raises:
        UserError: there is no such module, or it is a part of Python.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts):
        raise UserError(f"unknown {kind} {path!r}: {name!r} is no module's name")
    if parts[0] in sys.stdlib_module_names or parts[0] in sys.builtin_module_names:
        raise UserError(f"the {kind} {path!r} is a part of Python, not a {kind}")
    if name in sys.modules:
        file = getattr(sys.modules[name], "__file__", None)
        return _SESSION if file is None else str(Path(file).resolve())
    places: Sequence[str] | None = None
    spec: importlib.machinery.ModuleSpec | None = None
    for end in range(1, len(parts) + 1):
        spec = _spec(".".join(parts[:end]), places)
        if spec is None:
            raise UserError(
                f"unknown {kind} {path!r}: there is no module {name!r} here or installed"
            )
        places = list(spec.submodule_search_locations or ())
    assert spec is not None
    if not spec.origin or not spec.has_location:
        raise UserError(f"unknown {kind} {path!r}: {name!r} is not a file of Python")
    return str(Path(spec.origin).resolve())


def _spec(name: str, places: Sequence[str] | None) -> importlib.machinery.ModuleSpec | None:
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        if find is None:
            continue
        try:
            spec = find(name, places, None)
        except KeyError:  # a folder in a folder, neither a package: it asks for the outer's module
            spec = find(name.rpartition(".")[2], places, None)
        if spec is not None:
            return spec  # type: ignore[no-any-return]
    return None


def _check(found: Any, path: str, kind: str) -> None:
    """Refuse what cannot be a plug-in of a kind, before it is called.

    Raises:
        UserError: saying what was expected.
    """
    if kind in CLASSES:
        lacking = [name for name in CLASSES[kind] if not hasattr(found, name)]
        if not isinstance(found, type) or lacking:
            what = "is not a class" if not isinstance(found, type) else f"has no {lacking[0]}"
            raise UserError(
                f"{path!r} is no {kind}: it {what} (a class with {', '.join(CLASSES[kind])} is "
                "expected)"
            )
    elif kind in ARGUMENTS:
        count = ARGUMENTS[kind]
        if not callable(found) or not _takes(found, count):
            expected = f"{count} arguments" if count else "no argument"
            raise UserError(f"{path!r} is no {kind}: it cannot be called with {expected}")


def _takes(function: Any, count: int) -> bool:
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # some functions written in C do not tell
        return True
    return True


def _memory() -> Path:
    """Where it is kept what the user has named: a list of (``module:attribute``, file)."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "amc" / "plugins.json"


def _remembered() -> set[tuple[str, str]]:
    try:
        found = json.loads(_memory().read_text(encoding="utf-8"))
        return {(str(path), str(origin)) for path, origin in found}
    except (OSError, ValueError, TypeError, RuntimeError, RecursionError):
        return set()  # none, or none that can be read: then the user is asked again


def _remember(path: str, origin: str) -> None:
    known = _remembered()
    if (path, origin) in known:
        return
    try:
        write_json(_memory(), sorted([*known, (path, origin)]))
    except (UserError, OSError, RuntimeError):  # a home that cannot be written
        return


@contextmanager
def users_code() -> Iterator[None]:
    """What a disk refuses, and what a user's code raises (a plug-in, a network's forward), is
    not a bug of amc's: one sentence; of code with its line, and the traceback in a file.

    Raises:
        UserError: then.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(refused(error, error.filename, "used")) from error
    except Exception as error:
        # the first frame is this one
        frames = list(traceback.walk_tb(error.__traceback__))[1:]
        theirs = [(frame, line) for frame, line in frames if _is_users(frame)]
        if out_of_memory(error) or not theirs:
            raise
        frame, line = theirs[-1]
        raise UserError(
            f"{frame.f_code.co_filename}, line {line}, raised {kind_and_line(error)}{_kept(error)}"
        ) from error


def _is_users(frame: FrameType) -> bool:
    """Whether code is of a plug-in that the user has named, or of a module of the user's own. (What
    a callback raises goes to whom it belongs.)
    """
    root = str(frame.f_globals.get("__name__", "")).split(".")[0]
    if root in {name.split(":")[0].split(".")[0] for name in _named} - {"amc"}:
        return True
    if root == "amc" or any(str(place) in frame.f_code.co_filename for place in _INSTALLED):
        return False
    kinds = type(frame.f_locals.get("self")).__mro__
    return any(kind.__module__ == "torch.nn.modules.module" for kind in kinds)


def _kept(error: Exception) -> str:
    """The traceback goes into a file, which is named; where it cannot, nothing is said."""
    with suppress(OSError):
        handle, name = tempfile.mkstemp(prefix="amc-", suffix=".txt", text=True)
        with os.fdopen(handle, "w") as file:
            file.write("".join(traceback.format_exception(error)))
        return f" (traceback: {name})"
    return ""
