"""Where the state of a training and the weights that it gives are kept."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from amc.errors import UserError, first_line, short
from amc.files import write_bytes
from amc.reading import damaged
from amc.training.processes import Processes

BEST, LAST, STATE = "best.safetensors", "last.safetensors", "checkpoint/training.pt"


class Keeper(Protocol):
    """Keeps what a trainer hands it. All processes load, the first one saves."""

    def keep(self, model: nn.Module, best: bool) -> None:
        """The weights after an epoch; ``best``: the best so far."""

    def best(self) -> dict[str, Tensor]:
        """The best weights that were kept."""

    def save_state(self, state: dict[str, Any]) -> None:
        """All that is needed to go on; it replaces the last one."""

    def load_state(self) -> dict[str, Any] | None:
        """The last one, on the host; none where nothing was saved."""

    @property
    def source(self) -> str:
        """Where it lies, for people."""


class InFolder:
    """In files: weights as safetensors, the state in torch's format, read with ``weights_only``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, model: nn.Module, best: bool) -> None:
        content = save(plain(model))
        write_bytes(self.folder / LAST, content)
        if best:
            write_bytes(self.folder / BEST, content)

    def best(self) -> dict[str, Tensor]:
        path = self.folder / BEST
        if not path.is_file():
            raise UserError(f"{str(path)!r} is missing: the training in its folder has lost it")
        with damaged(path):
            found: dict[str, Tensor] = load(path.read_bytes())
        return found

    @property
    def source(self) -> str:
        return f"{self.folder / STATE} (delete it to start the training again)"

    def save_state(self, state: dict[str, Any]) -> None:
        buffer = io.BytesIO()  # torch.save hides a full disk behind an error of its own
        torch.save(_on_host(state), buffer)
        write_bytes(self.folder / STATE, buffer.getvalue())

    def load_state(self) -> dict[str, Any] | None:
        path = self.folder / STATE
        if not path.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        except Exception as error:
            raise UserError(f"{self.source!r} is damaged: {short(first_line(error))}") from error
        return state


class InMemory:
    """For short trainings: nothing is written, nothing can be taken up again."""

    def __init__(self, processes: Processes) -> None:
        if processes.size > 1:
            raise UserError("a training without a folder runs in one process")
        self._best: dict[str, Tensor] = {}

    def keep(self, model: nn.Module, best: bool) -> None:
        if best:
            self._best = {key: value.clone() for key, value in plain(model).items()}

    @property
    def source(self) -> str:
        return "memory"

    def best(self) -> dict[str, Tensor]:
        return self._best

    def save_state(self, state: dict[str, Any]) -> None:
        pass

    def load_state(self) -> dict[str, Any] | None:
        return None


def _on_host(value: Any) -> Any:
    """The same with its tensors on the host: a training may go on on another compute."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: _on_host(one) for key, one in value.items()}
    return [_on_host(one) for one in value] if isinstance(value, list | tuple) else value


def plain(model: nn.Module, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The state as safetensors takes it: whole tensors on the CPU, each in memory of its own, so
    what has two names in the network is there twice. With a ``dtype`` numbers are cast to it.
    """
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, value in model.state_dict().items():
        if isinstance(value, Tensor):
            own = value.detach().cpu().contiguous()
            own = own.to(dtype) if dtype is not None and own.is_floating_point() else own
            state[key] = own.clone() if own.untyped_storage().data_ptr() in seen else own
            seen.add(state[key].untyped_storage().data_ptr())
    return state
