"""Commands on many runs: compare, pareto."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from amc.cli.console import Json, app, out, print_result, say
from amc.errors import UserError, shown
from amc.views import tables


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

    from amc.analysis import compare as comparing
    from amc.files import write_bytes
    from amc.views.pictures import plot_comparison

    found = comparing.compare(runs, comparing.measure_of(by))
    for name, table in comparing.tables(found).items():
        write_bytes(to / f"{name}.csv", table.to_csv(index=False).encode())
    plot_comparison(found, to / "compare.png")
    summary = {
        "warnings": found.warnings,
        "standings": [asdict(row) for row in found.standings()],
        "pairs": [asdict(pair) for pair in found.pairs()],
    }
    _warn(found.warnings)
    print_result(tables.standings(found), summary, as_json)
    if not as_json:
        say(
            "runs: seeds x evaluations; ±: 95% interval of the mean; behind: the first, over the "
            "seeds that both have where these are two or more; effect: Cliff's delta (+1: every "
            "run of the first is better); p: Wilcoxon's rank sum, exact"
        )
        say("written to ", (str(to), "bold"), " (compare.png shows the curves)")


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

    from amc.analysis import pareto as fronts
    from amc.files import write_bytes
    from amc.views.pictures import plot_pareto

    found = fronts.pareto(runs, x, _corner(reference))
    for name, table in fronts.tables(found).items():
        write_bytes(to / f"{name}.csv", table.to_csv(index=False).encode())
    plot_pareto(found, to / "pareto.png")
    rows = fronts.standings(found.curves())
    summary = {
        "warnings": found.warnings,
        "reference": found.reference,
        "front": [asdict(point) for point in found.front],
        "hypervolume": [asdict(row) for row in rows],
    }
    _warn(found.warnings)
    if len({point.run for point in found.points}) == 1 and not as_json:
        out.print(tables.picks(found))
    print_result(tables.hypervolumes(rows), summary, as_json)
    if not as_json:
        cost, accuracy = found.reference
        say(
            f"hypervolume: between the front and {cost:g} of the cost at {accuracy:.2%} accuracy; "
            "written to ",
            (str(to), "bold"),
            " (pareto.png shows the fronts)",
        )


def _warn(warnings: Sequence[str]) -> None:
    """On stderr, a line."""
    if warnings:
        logging.getLogger("amc").warning("warning: %s", "; ".join(warnings))


def _corner(text: str | None) -> tuple[float, float] | None:
    """A reference point from ``1,0.1``."""
    if text is None:
        return None
    try:
        cost, accuracy = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(
            f"--reference is {shown(text)}: a cost ratio and an accuracy, as 1,0.1, are expected"
        ) from None
    return cost, accuracy
