"""The command line: ``amc ls | show | search | resume | evaluate | finetune | export | compare |
sweep | pareto | report | profile | check``.

Exit status: 0 done; 2 for a mistake of the user's (one line on stderr); 1 for a failure; 130 for
Ctrl-C.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from amc import tables
from amc.errors import UserError
from amc.progress import Board, ConsoleReport

if TYPE_CHECKING:
    from amc.cost.device import DeviceProfile

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
    """Name what exists: presets, models, datasets, spaces, criteria, agents, rewards, devices."""
    from amc.config import presets
    from amc.cost.device import devices
    from amc.evaluate.data import DATASETS, PREFIXES
    from amc.network.models import BUILTIN
    from amc.registry import KNOWN

    rows = [
        ("presets", presets()),
        ("models", [*BUILTIN, "torchvision:NAME", "module:callable"]),
        ("datasets", [*DATASETS, *PREFIXES]),
        ("spaces", [*KNOWN["space"], "module:Class"]),
        ("criteria", [*KNOWN["criterion"], "module:function"]),
        ("agents", [*KNOWN["agent"], "module:Class"]),
        ("rewards", [*sorted(KNOWN["reward"]), "module:function"]),
        ("devices", [*devices(), "a file that `amc profile` wrote"]),
        ("runtimes", [*KNOWN["runtime"], "module:Class"]),
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
    report = ConsoleReport(err).listen()
    try:
        result = searching.search(config, out=to, name=name, report=report)
    except KeyboardInterrupt:
        report.close()
        raise _Interrupted(_how_to_resume(to / name)) from None
    _closing(result, as_json)


@app.command()
def resume(run: Path, as_json: Json = False) -> None:
    """Go on with a run that was stopped."""
    from amc import search as searching

    report = ConsoleReport(err).listen()
    try:
        result = searching.resume(run, report=report)
    except KeyboardInterrupt:
        report.close()
        raise _Interrupted(_how_to_resume(run)) from None
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
    table = tables.comparison()
    for key in ("search_accuracy", *(["test_accuracy"] if test else [])):
        own = key if key in result else f"finetuned_{key}"
        label = own.replace("finetuned", "fine-tuned").replace("_", " ")
        tables.add_accuracy(table, label, result[f"baseline_{key}"], result[own])
    tables.add_costs(table, result["baseline"], result)
    tables.add_measured(table, result["measured_latency_ms"])
    _print(table, result, as_json)


@app.command()
def finetune(
    run: Path,
    overrides: Overrides = None,
    to: Annotated[
        Path | None, typer.Option("--out", help="its folder; by default finetune in the run")
    ] = None,
    tensorboard: Annotated[bool, typer.Option(help="write events for TensorBoard")] = False,
    as_json: Json = False,
) -> None:
    """Train the best strategy of a run; with torchrun, on several GPUs. Ctrl-C loses nothing.

    KEY: epochs, lr, distill.soft, ... as `amc show PRESET` lists them under finetune.
    """
    from amc import finetune as finetuning

    report = ConsoleReport(err).listen()
    try:
        result = finetuning.finetune(
            run, overrides or [], to=to, report=report, tensorboard=tensorboard
        )
    except KeyboardInterrupt:
        report.close()
        where = "" if to is None else f" --out {to}"
        raise _Interrupted(f"stopped; go on with: amc finetune {run}{where}") from None
    if not result.first:  # of several processes one speaks
        return
    metrics = result.metrics
    _print(tables.finetuned(metrics), {"path": str(result.path), **metrics}, as_json)
    if not as_json:
        out.print(f"fine-tuned: [bold]{result.path}[/]", soft_wrap=True, highlight=False)
        where = "" if to is None else f" --finetuned {to}"
        out.print(f"next: amc export {run}{where}", soft_wrap=True, highlight=False)


@app.command()
def export(
    run: Path,
    formats: Annotated[
        str, typer.Option("--format", help="comma-separated: safetensors, onnx, pt2")
    ] = "safetensors,onnx,pt2",
    finetuned: Annotated[
        Path | None, typer.Option(help="of `amc finetune --out`; by default finetune in the run")
    ] = None,
) -> None:
    """Export the best strategy of a run, fine-tuned if it is: weights with strategy.json, ONNX, a
    torch.export program, metrics.json, and a model card.
    """
    from amc import export as exporting

    report = ConsoleReport(err)
    metrics = exporting.export(run, formats.split(","), finetuned=finetuned, report=report)
    table = tables.comparison()
    for stage in ("", "finetuned_"):
        if (accuracy := metrics[f"{stage}test_accuracy"]) is not None:
            label = f"{stage}test accuracy".replace("finetuned_", "fine-tuned ")
            tables.add_accuracy(table, label, metrics["baseline_test_accuracy"], accuracy)
    tables.add_costs(table, metrics["baseline"], metrics)
    tables.add_measured(table, metrics["measured_latency_ms"])
    out.print(table)
    out.print(
        f"exported to [bold]{run / 'export'}[/] (README.md is its model card)",
        soft_wrap=True,
        highlight=False,
    )


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...")],
    to: Annotated[Path, typer.Option("--out", help="the folder for csv and png")] = Path("compare"),
    by: Annotated[
        str, typer.Option(help="search_accuracy or reward, of the strategy with the highest reward")
    ] = "search_accuracy",
    as_json: Json = False,
) -> None:
    """Compare the runs of several agents and seeds on one problem: curves, a table, tests."""
    from dataclasses import asdict

    from amc import compare as comparing
    from amc.files import write_bytes
    from amc.plots import plot_comparison

    found = comparing.compare(runs, comparing.measure_of(by))
    for name, table in comparing.tables(found).items():
        write_bytes(to / f"{name}.csv", table.to_csv(index=False).encode())
    plot_comparison(found, to / "compare.png")
    summary = {
        "standings": [asdict(row) for row in found.standings()],
        "pairs": [asdict(pair) for pair in found.pairs()],
    }
    _print(tables.standings(found), summary, as_json)
    if not as_json:
        out.print(
            "runs: seeds x evaluations; ±: 95% interval of the mean; behind: the first, by seed; "
            "effect: Cliff's delta (+1: every run of the first is better); p: Wilcoxon's rank sum",
            highlight=False,
            soft_wrap=True,
        )
        out.print(f"written to [bold]{to}[/] (compare.png shows the curves)", highlight=False)


@app.command()
def sweep(
    preset: str,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE,VALUE...]...")
    ] = None,
    to: Annotated[Path, typer.Option("--out", help="the folder for runs")] = Path("runs"),
    jobs: Annotated[int | None, typer.Option(min=1, help="runs at a time")] = None,
    ray: Annotated[
        str | None, typer.Option(help="a Ray cluster's address; local: one on this machine")
    ] = None,
    gpus: Annotated[float, typer.Option(min=0, help="for each run, of Ray's")] = 0.0,
    as_json: Json = False,
) -> None:
    """Search all combinations of values, as budget.ratio=0.3,0.5 seed=0,1,2 agent=td3,random.

    What has ended is skipped, what was cut short goes on.
    """
    from functools import partial

    from amc import sweep as sweeping
    from amc.workers import LocalWorkers, RayWorkers, Workers

    make: Callable[[int, int], Workers] = LocalWorkers
    if ray is not None:
        make = partial(RayWorkers, address=None if ray == "local" else ray, gpus=gpus)
    board = Board(err, tables.sweep)
    try:
        found = sweeping.sweep(
            preset, overrides or [], out=to, jobs=jobs, workers=make, show=board.show
        )
    except KeyboardInterrupt:
        raise _Interrupted("stopped; the same command goes on") from None
    finally:
        board.close()
    rows = [
        {"run": str(one.path), "state": one.state, "search_accuracy": one.accuracy}
        for one in found.planned
    ]
    _print(tables.sweep(found), {"folder": str(found.folder), "runs": rows}, as_json)
    for one in found.failed:
        err.print(f"amc: {one.name}, seed {one.config.seed}: {one.error}", soft_wrap=True)
    if found.failed:
        raise typer.Exit(1)
    if not as_json:
        out.print(f"next: amc pareto {found.folder}", soft_wrap=True, highlight=False)


@app.command()
def pareto(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...")],
    x: Annotated[str, typer.Option(help="macs, params, memory_bytes or latency_ms")] = "macs",
    to: Annotated[Path, typer.Option("--out", help="the folder for csv and png")] = Path("pareto"),
    reference: Annotated[
        str | None,
        typer.Option(help="cost ratio and accuracy of the hypervolume's worst corner, as 1,0.1"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Pareto fronts of runs, or of all runs in a folder: what other budgets would have cost."""
    from dataclasses import asdict

    from amc import pareto as fronts
    from amc.files import write_bytes
    from amc.plots import plot_pareto

    found = fronts.pareto(runs, x, _corner(reference))
    for name, table in fronts.tables(found).items():
        write_bytes(to / f"{name}.csv", table.to_csv(index=False).encode())
    plot_pareto(found, to / "pareto.png")
    rows = fronts.standings(found.curves())
    summary = {
        "reference": found.reference,
        "front": [asdict(point) for point in found.front],
        "hypervolume": [asdict(row) for row in rows],
    }
    _print(tables.hypervolumes(rows), summary, as_json)
    if not as_json:
        cost, accuracy = found.reference
        out.print(
            f"hypervolume: between the front and {cost:g} of the cost at {accuracy:.2%} accuracy; "
            f"written to [bold]{to}[/] (pareto.png shows the fronts)",
            highlight=False,
            soft_wrap=True,
        )


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="or a folder of runs")],
) -> None:
    """Write one self-contained HTML page of a run, or of all runs in a folder."""
    from amc.report import report as write_report

    out.print(f"written: [bold]{write_report(run)}[/]", soft_wrap=True, highlight=False)


@app.command()
def profile(
    source: Annotated[str, typer.Argument(metavar="MODEL|PRESET|RUN")],
    overrides: Overrides = None,
    device: Annotated[
        str | None, typer.Option(help="measure the layers, into the device profile NAME.yaml")
    ] = None,
    runtime: Annotated[str, typer.Option(help="`amc ls` names them")] = "onnxruntime",
    threads: Annotated[int, typer.Option(min=1, help="that the runtime may use")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="images at once")] = 1,
    shape: Annotated[str | None, typer.Option("--input", help="of an image, as 3x224x224")] = None,
    emit: Annotated[
        Path | None, typer.Option("--emit-bench", help="write the layers as ONNX into this folder")
    ] = None,
    times: Annotated[
        Path | None, typer.Option("--import-csv", help="their times, measured elsewhere")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print a network's layers, costs and latency; with --device, measure a device profile.

    Ctrl-C loses nothing: the same command goes on.
    """
    from amc.config import config_of
    from amc.files import write_bytes
    from amc.problem import untrained_space
    from amc.profiling.bench import emit_bench, import_csv
    from amc.profiling.survey import measure_profile, profile_path, time_of
    from amc.runtime import make_runtime

    if times is not None:
        path = profile_path(device or times.resolve().parent.name)
        found = import_csv(times, path.stem, runtime, threads)
        write_bytes(path, found.to_yaml().encode())
        return _print_profile(found, path, as_json)
    report = ConsoleReport(err).listen()
    space = untrained_space(config_of(source, overrides or []), _shape(shape), report)
    if emit is not None:
        count = emit_bench(space, emit, batch, report=report)
        return out.print(f"{count} ONNX files; what to do with them: {emit / 'README.md'}")
    if device is None:
        ms = time_of(make_runtime(runtime, threads), space.network, batch)
        costs = {**space.cost({}).as_dict(), "latency_ms": ms}
        return _print(tables.layers(space.network.table, ms), costs, as_json)
    path = profile_path(device)
    try:
        found = measure_profile(space, make_runtime(runtime, threads), path, batch, report=report)
    except KeyboardInterrupt:
        report.close()
        raise _Interrupted("stopped; the same command goes on") from None
    return _print_profile(found, path, as_json)


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
    """Ctrl-C, after what was done is saved; the message says how to go on."""


def _how_to_resume(path: Path) -> str:
    """For a run, or a folder of runs of which the latest was stopped."""
    is_run = (path / "config.yaml").is_file()
    runs = [path] if is_run else sorted(path.glob("s*"), key=lambda p: p.stat().st_mtime)
    if not runs:
        return "stopped before the search began"
    return f"stopped; go on with: amc resume {runs[-1]}"


def _shape(text: str | None) -> tuple[int, ...] | None:
    """An image's shape from ``3x224x224``."""
    if text is None:
        return None
    sizes = text.split("x")
    if len(sizes) != 3 or not all(size.isdigit() and int(size) for size in sizes):
        raise UserError(
            f"--input is {text!r}: channels x height x width, as 3x224x224, is expected"
        )
    return tuple(int(size) for size in sizes)


def _corner(text: str | None) -> tuple[float, float] | None:
    """A reference point from ``1,0.1``."""
    if text is None:
        return None
    try:
        cost, accuracy = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(
            f"--reference is {text!r}: a cost ratio and an accuracy, as 1,0.1, are expected"
        ) from None
    return cost, accuracy


def _closing(result: Any, as_json: bool) -> None:
    from amc.profiling.reach import structure_of

    best, run, problem = result.best, result.run, result.problem
    table = tables.comparison(f"best strategy: episode {best['episode']}")
    accuracies = best["baseline"]["search_accuracy"], best["search_accuracy"]
    tables.add_accuracy(table, "search accuracy", *accuracies)
    tables.add_costs(table, best["baseline"], best)
    latency = problem.measured_latency(structure_of(problem.space, best["strategy"]))
    tables.add_measured(table, latency)
    for layer, why in list(problem.space.left_alone.items())[:5]:
        err.print(f"left alone: {layer}: {why}", highlight=False, soft_wrap=True)
    if warning := run.provenance["warning"]:
        err.print(f"warning: {warning}", highlight=False, soft_wrap=True)
    profile = run.profile()
    summary = {"run": str(run.path), **best, "measured_latency_ms": latency}
    summary["episode_profile"] = profile
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


def _print_profile(profile: DeviceProfile, path: Path, as_json: bool) -> None:
    from amc.plots import plot_profile

    picture = path.with_suffix(".png")
    plot_profile(profile, picture)
    fits = {name: fit.model_dump(mode="json") for name, fit in profile.networks.items()}
    _print(tables.fidelity(profile), {"device": str(path), "networks": fits}, as_json)
    if not as_json:
        out.print(f"device profile: [bold]{path}[/] ({picture})", highlight=False, soft_wrap=True)


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
