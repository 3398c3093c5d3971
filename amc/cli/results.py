"""Commands on a run that has ended: evaluate, finetune, export, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from amc.cli.console import (
    Interrupted,
    Json,
    Overrides,
    Trust,
    app,
    err,
    out,
    print_result,
    quoted,
    say,
)
from amc.progress import ConsoleReport
from amc.views import tables

Episode = Annotated[
    int | None,
    typer.Option(
        min=0, max=10**9, help="whose strategy it is, as `amc pareto` names them; else the best"
    ),
]


@app.command()
def evaluate(
    path: Annotated[Path, typer.Argument(metavar="RUN|EXPORT|FINETUNE")],
    test: Annotated[bool, typer.Option("--test", help="on the test images too")] = False,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Measure the best strategy of a run before fine-tuning, or an export, or a fine-tuning."""
    from amc.deliver import evaluate as evaluation

    result = evaluation.evaluate(path, test, ConsoleReport(err), trust)
    table = tables.comparison()
    for key in ("search_accuracy", *(["test_accuracy"] if test else [])):
        own = key if key in result else f"finetuned_{key}"
        label = own.replace("finetuned", "fine-tuned").replace("_", " ")
        tables.add_accuracy(table, label, result[f"baseline_{key}"], result[own])
    tables.add_costs(table, result["baseline"], result)
    tables.add_measured(table, result["measured_latency_ms"])
    print_result(table, result, as_json)


@app.command()
def finetune(
    run: Path,
    overrides: Overrides = None,
    episode: Episode = None,
    to: Annotated[
        Path | None, typer.Option("--out", help="its folder; by default finetune in the run")
    ] = None,
    tensorboard: Annotated[bool, typer.Option(help="write events for TensorBoard")] = False,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Train the best strategy of a run; with torchrun, on several GPUs. The same command goes on
    after Ctrl-C.

    KEY: epochs, lr, distill.soft, ... as `amc show PRESET` lists them under finetune.
    """
    import amc

    begin = amc.finetune  # what it imports is there before Ctrl-C is listened for
    report = ConsoleReport(err).listen()
    try:
        result = begin(
            run,
            overrides or [],
            episode=episode,
            to=to,
            report=report,
            tensorboard=tensorboard,
            trust=trust,
        )
    except KeyboardInterrupt:
        report.close()
        where = _of(episode) + ("" if to is None else f" --out {quoted(to)}")
        raise Interrupted(f"stopped; go on with: amc finetune {quoted(run)}{where}") from None
    if not result.first:  # of several processes one speaks
        return
    metrics = result.metrics
    print_result(tables.finetuned(metrics), {"path": str(result.path), **metrics}, as_json)
    if not as_json:
        say("fine-tuned: ", (str(result.path), "bold"))
        where = _of(episode) + ("" if to is None else f" --finetuned {quoted(to)}")
        say(f"next: amc export {quoted(run)}{where}")


@app.command()
def export(
    run: Path,
    formats: Annotated[
        str, typer.Option("--format", help="comma-separated: safetensors, onnx, pt2")
    ] = "safetensors,onnx,pt2",
    episode: Episode = None,
    finetuned: Annotated[
        Path | None, typer.Option(help="of `amc finetune --out`; by default finetune in the run")
    ] = None,
    trust: Trust = False,
) -> None:
    """Export the best strategy of a run, fine-tuned if it is: weights with strategy.json, ONNX, a
    torch.export program, metrics.json, and a model card.
    """
    import amc
    from amc.runs.directory import Run

    begin = amc.export
    report = ConsoleReport(err).listen()
    metrics = begin(
        run, formats.split(","), episode=episode, finetuned=finetuned, report=report, trust=trust
    )
    table = tables.comparison()
    for stage in ("", "finetuned_"):
        if (accuracy := metrics[f"{stage}test_accuracy"]) is not None:
            label = f"{stage}test accuracy".replace("finetuned_", "fine-tuned ")
            tables.add_accuracy(table, label, metrics["baseline_test_accuracy"], accuracy)
    tables.add_costs(table, metrics["baseline"], metrics)
    tables.add_measured(table, metrics["measured_latency_ms"])
    out.print(table)
    folder = Run(run).folder(episode) / "export"
    say("exported to ", (str(folder), "bold"), " (README.md is its model card)")


def _of(episode: int | None) -> str:
    return "" if episode is None else f" --episode {episode}"


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="or a folder of runs")],
) -> None:
    """Write one self-contained HTML page of a run, or of all runs in a folder."""
    from amc.views.page import report as write_report

    say("written: ", (str(write_report(run)), "bold"))
