"""Files that may come from anyone: read within bounds, and into a typed model before anything is
done with them. Whatever is wrong with one is a sentence that names it.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from amc.errors import UserError, first_line, kind_and_line, short, shown

T = TypeVar("T", bound=BaseModel)
LARGEST = 64 << 20  # bytes of a text file
DEEPEST = 40  # levels of YAML
NODES = 1_000_000  # of YAML, with aliases written out


@contextmanager
def damaged(source: str | Path) -> Iterator[None]:
    """Whatever goes wrong inside is the fault of what was read: one sentence. (For what is made of
    a file whose parts are each as they should be, but do not go together.)
    """
    try:
        yield
    except (UserError, MemoryError, OSError):
        raise
    except Exception as error:
        raise UserError(f"{str(source)!r} is damaged: {kind_and_line(error)}") from error


def read_text(path: Path) -> str:
    """A text file.

    Raises:
        UserError: it cannot be read, is too large, or is no text.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read: {error.strerror or error}") from error
    if len(content) > LARGEST:
        raise UserError(
            f"{str(path)!r} is larger than {LARGEST >> 20} MB: it is none of amc's files"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{str(path)!r} is damaged: {first_line(error)}") from error


def parse_json(text: str | bytes, source: str | Path) -> Any:
    """What JSON says.

    Raises:
        UserError: it is not valid; ``source`` is named.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise UserError(f"{str(source)!r} is damaged: it is nested too deep") from error
    except ValueError as error:
        raise UserError(f"{str(source)!r} is damaged: {first_line(error)}") from error


def read_json(path: Path, model: type[T]) -> T:
    """A JSON file as a typed model.

    Raises:
        UserError: it cannot be read, or is not what it should be; the first wrong key is named.
    """
    return typed(model, parse_json(read_text(path), path), path)


def typed(model: type[T], value: Any, source: str | Path) -> T:
    """A value as a typed model.

    Raises:
        UserError: it is not what it should be; ``source`` and the first wrong key are named.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        is_key = first["type"] in ("missing", "extra_forbidden") or not where
        said = f"{short(where)}: " if where else ""
        value = "" if is_key else f" (it is {shown(first['input'])})"
        raise UserError(
            f"{str(source)!r} is damaged: {said}{first['msg'].lower()}{value}"
        ) from None


def read_csv(path: Path, model: type[T]) -> list[T]:
    """The rows of a csv file with a header, empty cells left out.

    Raises:
        UserError: it cannot be read, or a row is not what it should be; the row is named.
    """
    text = read_text(path)
    rows: list[T] = []
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""))
        for row in reader:
            cells = {key: cell for key, cell in row.items() if key and cell not in (None, "")}
            rows.append(typed(model, cells, f"{path}, row {reader.line_num}"))
    except csv.Error as error:
        raise UserError(f"{str(path)!r} is damaged: {first_line(error)}") from error
    return rows


_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # profiles are long


class _Loader(_Safe):  # type: ignore[misc]
    """Plain YAML in which a key stands once."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool | None):
                raise yaml.YAMLError(f"a key is a {type(key).__name__}")
            if key in seen:
                raise yaml.YAMLError(f"the key {shown(key)} stands twice")
            seen.add(key)
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


def parse_yaml(text: str, source: str | Path) -> Any:
    """What YAML says: plain values only.

    Raises:
        UserError: it is not valid, names a key twice, is nested too deep, or is far larger when its
            aliases are written out; ``source`` is named.
    """
    try:
        _bounded(text)
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}"
        reason = getattr(error, "problem", None) or first_line(error)
        raise UserError(
            f"{str(source)!r}{where} is not valid YAML: {short(str(reason))}"
        ) from error


def _bounded(text: str) -> None:
    """Count the nodes with all aliases written out, without building any.

    Raises:
        YAMLError: they are too many, or too deep.
    """
    open_nodes: list[list[Any]] = [["", 0]]  # anchor, nodes within
    sizes: dict[str, int] = {}
    for event in yaml.parse(text, Loader=_Loader):
        size = 0
        if isinstance(event, yaml.AliasEvent):
            size = sizes.get(event.anchor or "", NODES + 1)  # within itself: without end
        elif isinstance(event, yaml.ScalarEvent):
            size = 1
            sizes[event.anchor or ""] = size
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append([event.anchor or "", 1])
            if len(open_nodes) > DEEPEST:
                raise yaml.YAMLError(f"it is nested more than {DEEPEST} levels deep")
            continue
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
            sizes[anchor] = size
        open_nodes[-1][1] += size
        if open_nodes[-1][1] > NODES:
            raise yaml.YAMLError(f"it has more than {NODES:,} values, or an alias within itself")
