"""The command line: ``amc ls | show | search | resume | evaluate | export | check``.

Exit status: 0 done; 2 for a mistake of the user's (one line on stderr); 1 for a failure; 130 for
Ctrl-C.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from amc.errors import UserError
from amc.progress import ConsoleReport

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
Json = Annotated[bool, typer.Option("--json", help="print one JSON object as the last line")]


@app.command("ls")
def list_names() -> None:
    """Name what exists: presets, models, datasets, spaces, criteria, agents, rewards."""
    from amc.config import presets
    from amc.evaluate.data import DATASETS
    from amc.network.models import BUILTIN
    from amc.registry import KNOWN

    rows = [
        ("presets", presets()),
        ("models", [*BUILTIN, "torchvision:NAME", "module:callable"]),
        ("datasets", [*DATASETS, "npz:PATH", "imagefolder:PATH"]),
        ("spaces", [*KNOWN["space"], "module:Class"]),
        ("criteria", [*KNOWN["criterion"], "module:function"]),
        ("agents", [*KNOWN["agent"], "module:Class"]),
        ("rewards", [*sorted(KNOWN["reward"]), "module:function"]),
    ]
    table = Table(show_header=False, box=None)
    for kind, names in rows:
        table.add_row(f"[bold]{kind}[/]", "\n".join(names))
    out.print(table)


@app.command()
def show(preset: str, overrides: Overrides = None) -> None:
    """Print the resolved config of a preset or file, with what each key means."""
    from amc.config import describe, load_config

    name, config = load_config(preset, overrides or [])
    table = Table(title=name, title_justify="left")
    for column in ("key", "value", "meaning"):
        table.add_column(column, overflow="fold")
    for key, value, meaning in describe(config):
        table.add_row(key, "none" if value is None else str(value), meaning)
    out.print(table)


@app.command()
def search(
    preset: str,
    overrides: Overrides = None,
    to: Annotated[Path, typer.Option("--out", help="the folder for runs")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """Search: one run of a preset or a config file. Ctrl-C loses nothing."""
    from amc import search as searching
    from amc.config import load_config

    name, config = load_config(preset, overrides or [])
    report = ConsoleReport(err)
    try:
        result = searching.search(config, out=to, name=name, report=report)
    except KeyboardInterrupt:
        report.close()
        raise _Interrupted(to / name) from None
    _closing(result, as_json)


@app.command()
def resume(run: Path, as_json: Json = False) -> None:
    """Go on with a run that was stopped."""
    from amc import search as searching

    report = ConsoleReport(err)
    try:
        result = searching.resume(run, report=report)
    except KeyboardInterrupt:
        report.close()
        raise _Interrupted(run) from None
    _closing(result, as_json)


@app.command()
def evaluate(
    path: Annotated[Path, typer.Argument(metavar="RUN|EXPORT")],
    test: Annotated[bool, typer.Option("--test", help="on the test images too")] = False,
    as_json: Json = False,
) -> None:
    """Measure the best strategy of a run, or an export, before fine-tuning."""
    from amc import export as exporting

    result = exporting.evaluate(path, test, ConsoleReport(err))
    table = Table("", "baseline", "compressed")
    for key in ("search_accuracy", *(["test_accuracy"] if test else [])):
        table.add_row(
            key.replace("_", " "), _percent(result[f"baseline_{key}"]), _percent(result[key])
        )
    _print(table, result, as_json)


@app.command()
def export(
    run: Path,
    formats: Annotated[
        str, typer.Option("--format", help="comma-separated: onnx, safetensors")
    ] = "onnx,safetensors",
) -> None:
    """Export the best strategy of a run: safetensors with strategy.json, ONNX, metrics.json."""
    from amc import export as exporting

    metrics = exporting.export(run, formats.split(","), report=ConsoleReport(err))
    out.print(_metrics_table(metrics))
    out.print(f"exported to [bold]{run / 'export'}[/]", soft_wrap=True, highlight=False)


@app.command()
def check(space: Annotated[str, typer.Argument(help="a space by name, or module:Class")]) -> None:
    """Check that an action space keeps the laws, on small networks of several kinds."""
    from amc.registry import lookup
    from amc.testing import check_space

    try:
        done = check_space(lookup("space", space))
    except AssertionError as error:
        err.print(f"[red]{space} does not conform[/]: {error}", highlight=False)
        raise typer.Exit(1) from None
    for line in done:
        out.print(f"[green]ok[/]  {line}", highlight=False)


class _Interrupted(Exception):
    """Ctrl-C, after the last episode was saved."""

    def __init__(self, path: Path) -> None:
        found = (
            [path]
            if (path / "config.yaml").is_file()
            else sorted(path.glob("s*"), key=lambda p: p.stat().st_mtime)
        )
        super().__init__(
            f"stopped; go on with: amc resume {found[-1]}"
            if found
            else "stopped before the search began"
        )


def _closing(result: Any, as_json: bool) -> None:
    best, run = result.best, result.run
    table = Table(
        "", "baseline", "compressed", "ratio", title=f"best strategy: episode {best['episode']}"
    )
    table.add_row(
        "search accuracy",
        _percent(best["baseline"]["search_accuracy"]),
        _percent(best["search_accuracy"]),
        "",
    )
    _cost_rows(table, best["baseline"], best)
    for layer, why in list(result.problem.space.left_alone.items())[:5]:
        err.print(f"left alone: {layer}: {why}", highlight=False, soft_wrap=True)
    if warning := run.provenance["warning"]:
        err.print(f"warning: {warning}", highlight=False, soft_wrap=True)
    profile = run.profile()
    summary = {"run": str(run.path), **best, "episode_profile": profile}
    _print(table, summary, as_json)
    if note := run.provenance["precision_note"]:
        err.print(f"precision: {note}", highlight=False, soft_wrap=True)
    if not as_json:
        total = sum(profile.values())
        parts = ", ".join(f"{part} {value / total:.0%}" for part, value in profile.items())
        out.print(f"an episode took {total:.2f} s: {parts}", highlight=False, soft_wrap=True)
        out.print(
            f"run: [bold]{run.path}[/] (search.png shows the search)",
            highlight=False,
            soft_wrap=True,
        )
        out.print(f"next: amc export {run.path}", highlight=False, soft_wrap=True)


def _metrics_table(metrics: dict[str, Any]) -> Table:
    table = Table("", "baseline", "compressed", "ratio")
    table.add_row(
        "test accuracy",
        _percent(metrics["baseline_test_accuracy"]),
        _percent(metrics["test_accuracy"]),
        "",
    )
    _cost_rows(table, metrics["baseline"], metrics)
    if latency := metrics["measured_latency_ms"]:
        before, after = latency["baseline"], latency["compressed"]
        label = f"latency on this CPU, ms ({latency['runtime']}, batch 1)"
        table.add_row(label, f"{before:.3f}", f"{after:.3f}", f"{after / before:.3f}")
    return table


def _cost_rows(table: Table, before: dict[str, Any], after: dict[str, Any]) -> None:
    for metric, label in (
        ("macs", "MACs"),
        ("params", "params"),
        ("memory_bytes", "memory, bytes"),
    ):
        ratio = after[metric] / before[metric]
        table.add_row(label, f"{before[metric]:,}", f"{after[metric]:,}", f"{ratio:.3f}")


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}%"


def _print(table: Table, result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        out.print(table)


def main() -> None:
    """The entry point of the command ``amc``."""
    try:
        app(standalone_mode=True)
    except UserError as error:
        err.print(f"amc: {error}", highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)
    except _Interrupted as error:
        err.print(f"amc: {error}", highlight=False, markup=False, soft_wrap=True)
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
