"""What all commands share: the application, its consoles, and how a result is printed."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="AutoML model compression by reinforcement learning: a smaller network within a budget.",
)
# What is printed stands as it is: brackets and colons in a path are neither markup nor emoji.
out = Console(markup=False, emoji=False)
err = Console(markup=False, emoji=False, stderr=True)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="overrides, as budget.ratio=0.3"),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="import the code (module:attribute) that a file, a run or an export names which you "
        "have not made yourself",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object as the last line")]


class Interrupted(Exception):
    """Ctrl-C, after what was done is saved; the message says how to go on."""


def say(*parts: str | tuple[str, str], to: Console = out) -> None:
    """One line, of text and (text, style), however long it is."""
    to.print(Text.assemble(*parts), highlight=False, soft_wrap=True)


def quoted(path: Path) -> str:
    """A path as a shell takes it."""
    return shlex.quote(str(path))


def print_result(table: Table, result: dict[str, Any], as_json: bool) -> None:
    """A table for people, or one line of JSON."""
    if as_json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        out.print(table)
