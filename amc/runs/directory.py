"""The run directory: one search, one resolved config, one seed.

The journal ``episodes.jsonl`` is the only source of truth: everything else is derived from it or
can be. Whatever else is written is written aside first and then renamed, so a run killed at any
moment is whole. One process at a time writes it (`amc.runs.lock`).
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from amc.config import stored_config, to_yaml
from amc.cost.cost import METRICS, Cost
from amc.errors import UserError
from amc.evaluate.outcome import Outcome
from amc.files import on_disk, sha256, write_bytes, write_json
from amc.network.layers import LayerSpec, LayerTable
from amc.reading import read_csv, read_json
from amc.runs import names
from amc.runs.journal import Journal
from amc.runs.records import Best, LayerRow, Provenance
from amc.sections import Config

SCHEMA = (
    3  # 1: searches of version 0.1; 2: raced by Student's t, learned from what was not executed
)


class Run:
    """A run directory that exists."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(
        cls,
        path: Path,
        config: Config,
        provenance: dict[str, Any],
        files: Mapping[str, bytes] | None = None,
    ) -> Run:
        """A new directory with its config, its provenance and other files. The config comes last: a
        directory that has one is a whole run, which can be gone on with.

        Raises:
            UserError: the directory exists and is not empty.
        """
        with on_disk(path):
            path.mkdir(parents=True, exist_ok=True)
            there = {found.name for found in path.iterdir()} - set(names.LOCKS)
        if there:
            raise UserError(
                f"the run directory {str(path)!r} exists and is not empty: nothing is overwritten"
            )
        text = to_yaml(config).encode()
        facts = {"schema": SCHEMA, "config_sha256": hashlib.sha256(text).hexdigest(), **provenance}
        for name, content in (files or {}).items():
            write_bytes(path / name, content)
        write_json(path / names.PROVENANCE, facts)
        write_bytes(path / names.CONFIG, text)
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> Run:
        """A directory that a search has made.

        Raises:
            UserError: it is not one, or its config was changed.
        """
        missing = [name for name in (names.CONFIG, names.PROVENANCE) if not (path / name).is_file()]
        if missing:
            begun = (path / names.PROVENANCE).is_file()  # it comes before the config
            why = ", so its search was stopped before it began: start it again" if begun else ""
            raise UserError(f"{str(path)!r} is not a run directory: it has no {missing[0]}{why}")
        run = cls(path)
        if run.provenance["config_sha256"] is None:
            raise UserError(f"{str(path)!r} is not a run directory, but a fine-tuning's")
        if sha256(path / names.CONFIG) != run.provenance["config_sha256"]:
            raise UserError(
                f"{str(path / 'config.yaml')!r} was changed after the run started: start a new "
                "run with "
                f"`amc search {path / 'config.yaml'}`"
            )
        return run

    @classmethod
    def is_at(cls, path: Path) -> bool:
        """Whether a folder is a run's, whatever has become of its files."""
        files = (path / names.CONFIG).is_file() and (path / names.PROVENANCE).is_file()
        return files and cls(path).provenance["config_sha256"] is not None

    @cached_property
    def config(self) -> Config:
        return stored_config(self.path / names.CONFIG)

    @property
    def provenance(self) -> dict[str, Any]:
        return read_json(self.path / names.PROVENANCE, Provenance).as_dict()

    def update_provenance(self, **facts: Any) -> None:
        write_json(self.path / names.PROVENANCE, {**self.provenance, **facts})

    @property
    def has_ended(self) -> bool:
        """Whether the search has come to its end."""
        return (self.path / names.BEST).is_file()

    @property
    def has_best(self) -> bool:
        """Whether there is a best episode: of all, or of those before the search was stopped."""
        return self.has_ended or self._leader(self.lines()) is not None

    @property
    def best(self) -> dict[str, Any]:
        """best.json; of a search that was stopped, or goes on just now, the best one so far.

        Raises:
            UserError: the search has no episode yet.
        """
        lines = self.lines()
        if not self.has_ended:
            return self._best_of(lines)
        best = read_json(self.path / names.BEST, Best)
        if best.episode >= len(lines):
            raise UserError(
                f"{str(self.path / names.BEST)!r} is of episode {best.episode}, but the journal "
                f"has {len(lines)}: it was cut, or is another run's"
            )
        return best.as_dict()

    def chosen(self, episode: int | None = None) -> dict[str, Any]:
        """An episode as best.json has it; none: the best one.

        Raises:
            UserError: there is no such episode.
        """
        best = self.best
        if episode is None:
            if not self.has_ended:
                logging.getLogger("amc").warning(
                    "warning: the search in %s has not ended (`amc resume` goes on with it): the "
                    "best of its %d episodes so far",
                    self.path,
                    len(self.lines()),
                )
            return best
        lines = self.lines()
        if not 0 <= episode < len(lines):
            raise UserError(
                f"{str(self.path)!r} has no episode {episode}: they go from 0 to {len(lines) - 1}"
            )
        return _beside(lines[episode], best["baseline"])

    def folder(self, episode: int | None = None) -> Path:
        """Where lies what comes of an episode, of the best one in the run itself."""
        return self.path if episode is None else self.path / f"episode_{episode}"

    # the journal

    @property
    def journal(self) -> Journal:
        return Journal(self.path / names.JOURNAL)

    def lines(self) -> list[dict[str, Any]]:
        """`Journal.lines`."""
        return self.journal.lines()

    def append(self, episode: int, phase: str, outcome: Outcome) -> None:
        """`Journal.append`."""
        self.journal.append(episode, phase, outcome)

    def repair(self) -> str:
        """`Journal.repair`; what was derived from a damaged one goes."""
        if not self.journal.is_damaged:
            return ""
        with on_disk(self.path):
            (self.path / names.BEST).unlink(missing_ok=True)
        return self.journal.repair()

    # what is derived

    def layers(self) -> list[LayerRow]:
        """The rows of layers.csv.

        Raises:
            UserError: it is missing or damaged.
        """
        return read_csv(self.path / names.LAYERS, LayerRow)

    def write_best(self) -> dict[str, Any]:
        """best.json, of a search that has ended."""
        best = self._best_of(self.lines())
        write_json(self.path / names.BEST, best)
        return best

    def _best_of(self, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
        leader = self._leader(lines)
        reasons = [line["failed"] for line in lines]
        if leader is None and reasons and all(reasons):
            raise UserError(
                f"none of the {len(reasons)} episodes of {str(self.path)!r} could be measured (the "
                f"last: {reasons[-1]})"
            )
        if leader is None:
            raise UserError(
                f"the search in {str(self.path)!r} has no result yet: `amc resume {self.path}` "
                "goes on with it, where nothing else does"
            )
        return _beside(leader, self.provenance["baseline"])

    def _leader(self, lines: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        """Of the episodes within the budget that were measured on all images the one with the
        highest reward, the earliest of equals.
        """
        if self.provenance["baseline"] is None:  # stopped early, or of version 0.1
            return None
        candidates = [line for line in lines if Outcome.from_line(line).can_be_best]
        return max(candidates, key=lambda line: line["reward"], default=None)

    def profile(self) -> dict[str, float]:
        """Mean seconds an episode spends in each part: apply, repair, evaluate, agent."""
        lines = [line["profile"] for line in self.lines() if line.get("profile")]
        parts = dict.fromkeys(part for line in lines for part in line)
        return {part: sum(line.get(part, 0.0) for line in lines) / len(lines) for part in parts}

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        buffer = io.BytesIO()  # torch.save hides a full disk behind an error of its own
        torch.save(state, buffer)
        write_bytes(self.path / names.CHECKPOINT, buffer.getvalue())

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The last checkpoint; None where there is none or it is damaged (the journal is enough to
        go on).
        """
        try:
            state: dict[str, Any] = torch.load(self.path / names.CHECKPOINT, weights_only=True)
        except Exception:
            return None
        return state


def layers_csv(table: LayerTable) -> bytes:
    """The layer table with its costs, as layers.csv has it."""
    columns = [field.name for field in fields(LayerSpec) if field.name != "growth"]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*columns, "macs", "params"])
    for layer in table:
        cells = [getattr(layer, name) for name in columns]
        cells = ["x".join(map(str, cell)) if isinstance(cell, tuple) else cell for cell in cells]
        writer.writerow([*cells, layer.macs, layer.params])
    blank = ["rest", "rest", *[""] * (len(columns) - 2)]
    writer.writerow([*blank, table.rest.macs, table.rest.params])
    return text.getvalue().encode()


def claim(path: Path) -> Path:
    """A new directory of that name, or of the first of ``name-2``, ``name-3``, ... that is free.
    Of several processes that ask at once each gets its own.
    """
    more = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    with on_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for free in itertools.chain([path], more):
            with contextlib.suppress(FileExistsError):
                free.mkdir()
                return free
    raise AssertionError("numbers do not end")


def _beside(line: dict[str, Any], baseline: dict[str, Any]) -> dict[str, Any]:
    """An episode line beside the untouched network."""
    original = Cost(**{name: baseline[name] for name in METRICS})
    ratios = Outcome.from_line(line).cost.ratios(original)
    return {**line, "baseline": baseline, "cost_ratios": ratios}


def runs_in(path: Path) -> list[Run]:
    """The run in a folder, or all runs below it, by path.

    Raises:
        UserError: the folder does not exist, or holds none.
    """
    if (path / names.CONFIG).is_file():
        return [Run.open(path)]
    found = sorted(journal.parent for journal in path.rglob(names.JOURNAL))
    if not found:
        raise UserError(f"{str(path)!r} holds no run that has begun")
    return [Run.open(folder) for folder in found]
