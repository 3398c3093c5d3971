"""What all commands share: the application, its consoles, and how a result is printed."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="AutoML model compression by reinforcement learning: a smaller network within a budget.",
)
out = Console()
err = Console(stderr=True)

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


def print_result(table: Table, result: dict[str, Any], as_json: bool) -> None:
    """A table for people, or one line of JSON."""
    if as_json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        out.print(table)
