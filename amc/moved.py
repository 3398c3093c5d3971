"""Modules of version 0.1 are found by their old names, with a warning, until version 1.0."""

from __future__ import annotations

import importlib
import sys
import warnings
from importlib.machinery import ModuleSpec
from types import ModuleType

TYPE_CHECKING = False  # `import amc` does not wait for typing, which importlib.abc imports

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.abc import Loader, MetaPathFinder
else:

    class MetaPathFinder:
        """As importlib asks for it, without its abstract base classes."""

    class Loader:
        """Likewise."""


MOVED = {
    "amc.card": "amc.views.card",
    "amc.compare": "amc.analysis.compare",
    "amc.cost.device": "amc.device.profile",
    "amc.cost.layer_times": "amc.device.layer_times",
    "amc.drawing": "amc.views.axes",
    "amc.evaluate.data": "amc.data.datasets",
    "amc.evaluate.images": "amc.data.images",
    "amc.evaluate.inference": "amc.evaluate.measure",
    "amc.export": "amc.deliver.export",
    "amc.finetune": "amc.deliver.finetune",
    "amc.formats": "amc.deliver.formats",
    "amc.pareto": "amc.analysis.pareto",
    "amc.plots": "amc.views.pictures",
    "amc.report": "amc.views.page",
    "amc.run": "amc.runs.directory",
    "amc.runtime": "amc.device.runtimes",
    "amc.surgery.reconstruct": "amc.repair.independent",
    "amc.surgery.regression": "amc.repair.regression",
    "amc.tables": "amc.views.tables",
}
"""Old name -> new name."""


class _Old(MetaPathFinder, Loader):
    """Finds a moved module, and loads the one that took its place."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = MOVED[spec.name]
        warnings.warn(f"{spec.name} is {new} now", DeprecationWarning, stacklevel=2)
        old, module = ModuleType(spec.name), importlib.import_module(new)
        # what was split off is still found by the old name
        old.__getattr__ = lambda name: _of(module, name)  # type: ignore[method-assign]
        return old

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: it was executed by its new name."""


def _of(module: ModuleType, name: str) -> object:
    """What a module or another of its room defines."""
    if hasattr(module, name) or name.startswith("__"):
        return getattr(module, name)
    room = module.__name__.rpartition(".")[0]
    for neighbour in SPLIT.get(module.__name__, ()):
        found = importlib.import_module(f"{room}.{neighbour}")
        if hasattr(found, name):
            return getattr(found, name)
    raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")


SPLIT = {
    "amc.data.datasets": ("splits", "places"),
    "amc.data.images": ("arrays", "folders", "loaders"),
    "amc.deliver.export": ("load", "evaluate"),
    "amc.evaluate.measure": ("prepare",),
    "amc.repair.independent": ("rows",),
}
"""New name -> the modules beside it that took a part of the old one."""


def install() -> None:
    """Let old names be found."""
    sys.meta_path.append(_Old())
