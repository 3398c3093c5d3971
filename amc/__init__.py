"""amc: AutoML model compression by reinforcement learning (He et al., ECCV 2018).

``import amc`` is light: what it hands on is imported when it is asked for. Not even `typing` is
imported before: it takes longer than the rest, and until then Ctrl-C is a traceback.
"""

import importlib
import sys
from types import ModuleType

TYPE_CHECKING = False  # type checkers know the name

__version__ = "0.1.0"

if TYPE_CHECKING:
    from amc.apply import apply as apply
    from amc.data.datasets import Dataset as Dataset
    from amc.deliver.export import export as export
    from amc.deliver.finetune import finetune as finetune
    from amc.deliver.load import load as load
    from amc.search import resume as resume
    from amc.search import search as search
    from amc.testing import check_space as check_space
    from amc.testing_kinds import check_kind as check_kind

_PUBLIC = {
    "Dataset": "amc.data.datasets",
    "apply": "amc.apply",
    "check_kind": "amc.testing_kinds",
    "check_space": "amc.testing",
    "export": "amc.deliver.export",
    "finetune": "amc.deliver.finetune",
    "load": "amc.deliver.load",
    "resume": "amc.search",
    "search": "amc.search",
}
"""Name -> the module that defines it."""


class _Package(ModuleType):
    """`amc.search` is the function, also after its module of the same name was imported."""

    def __getattr__(self, name: str):  # type: ignore[no-untyped-def]
        if name not in _PUBLIC:
            raise AttributeError(f"module 'amc' has no attribute {name!r}")
        return getattr(importlib.import_module(_PUBLIC[name]), name)

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _PUBLIC or not isinstance(value, ModuleType):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_PUBLIC})


sys.modules[__name__].__class__ = _Package

from amc import moved  # noqa: E402 - modules of version 0.1 are found by their old names

moved.install()
