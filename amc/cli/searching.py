"""Commands that search: ls, show, search, resume, apply, sweep."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

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
from amc.errors import UserError
from amc.progress import Board, ConsoleReport
from amc.runs import names
from amc.views import tables

if TYPE_CHECKING:  # the command line starts without torch
    from amc.sweep import Sweep

SideBySide = Annotated[
    int,
    typer.Option(
        min=1,
        max=1024,
        help="strategies measured side by side, where the agent proposes several (td3, ddpg and "
        "sac: agent.envs of them)",
    ),
]
Ray = Annotated[
    str | None, typer.Option(help="a Ray cluster's address; local: one on this machine")
]


@app.command("ls")
def list_names() -> None:
    """Name what exists: presets, models, datasets, spaces, criteria, agents, rewards, devices."""
    from amc.config import presets
    from amc.data.datasets import DATASETS, PREFIXES
    from amc.device.profile import devices
    from amc.network.models import BUILTIN
    from amc.registry import KNOWN

    rows = [
        ("presets", presets()),
        ("models", [*BUILTIN, "torchvision:NAME", "module:callable"]),
        ("datasets", [*DATASETS, *PREFIXES]),
        ("spaces", [*KNOWN["space"], "module:Class"]),
        ("criteria", [*KNOWN["criterion"], "module:function"]),
        ("kinds of layer", ["module:Class"]),
        ("agents", [*KNOWN["agent"], "module:Class"]),
        ("rewards", [*sorted(KNOWN["reward"]), "module:function"]),
        ("observations", [*KNOWN["observation"], "module:Class"]),
        ("devices", [*devices(), "a file that `amc profile` wrote"]),
        ("runtimes", [*KNOWN["runtime"], "module:Class"]),
    ]
    table = Table(show_header=False, box=None)
    for kind, known in rows:
        table.add_row(Text(kind, "bold"), "\n".join(known))
    out.print(table)


@app.command()
def show(preset: str, overrides: Overrides = None, trust: Trust = False) -> None:
    """Print the resolved config of a preset or file, with what each key means."""
    from amc.config import describe, load_config

    name, config = load_config(preset, overrides or [], trust)
    table = Table(title=name, title_justify="left")
    for column in ("key", "value", "meaning"):
        table.add_column(column, overflow="fold")
    for key, value, meaning in describe(config):
        is_list = isinstance(value, list | tuple)
        text = f"[{', '.join(map(str, value))}]" if is_list else str(value)  # as it is typed
        table.add_row(key, "none" if value is None else text, meaning)
    out.print(table)


@app.command()
def search(
    preset: str,
    overrides: Overrides = None,
    to: Annotated[Path, typer.Option("--out", help="the folder for runs")] = Path("runs"),
    jobs: SideBySide = 1,
    ray: Ray = None,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Search: one run of a preset or a config file. Ctrl-C loses nothing."""
    import amc
    from amc.config import load_config

    name, config = load_config(preset, overrides or [], trust)
    begin = amc.search  # what it imports is there before Ctrl-C is listened for
    with _listening() as report:
        result = begin(config, out=to, name=name, jobs=jobs, ray=ray, report=report)
    _closing(result, as_json)


@app.command()
def resume(
    run: Path,
    jobs: SideBySide = 1,
    ray: Ray = None,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="of a damaged journal keep the whole episodes before the damage, and put the rest "
            "into a file beside it",
        ),
    ] = False,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Go on with a run that was stopped."""
    import amc

    begin = amc.resume
    with _listening(run) as report:
        result = begin(run, jobs=jobs, ray=ray, repair=repair, report=report, trust=trust)
    _closing(result, as_json)


@app.command()
def apply(
    run: Path,
    model: Annotated[str, typer.Argument(help="a preset, a YAML file, or a network's name")],
    overrides: Overrides = None,
    to: Annotated[Path, typer.Option("--out", help="the folder for runs")] = Path("runs"),
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Walk another network once as a run's trained agent says: no search.

    Of a network's name, space, budget and data are the run's: weights=FILE names its weights.
    """
    import amc

    begin = amc.apply
    with _listening() as report:
        found = begin(run, model, overrides or [], out=to, report=report, trust=trust)
    if not as_json and len(found.policy) == 1:
        (policy,) = found.policy
        say(
            f"within {found.result.run.config.budget.label} of the "
            f"{found.result.run.config.budget.metric}, before fine-tuning: the policy "
            f"{tables.percent(policy['search_accuracy'])} (reward {policy['reward']:.4g}), the "
            f"uniform strategy {tables.percent(found.uniform['search_accuracy'])} "
            f"({found.uniform['reward']:.4g}); the better one is kept"
        )
    _closing(found.result, as_json)


@app.command()
def sweep(
    preset: str,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE,VALUE...]...")
    ] = None,
    to: Annotated[Path, typer.Option("--out", help="the folder for runs")] = Path("runs"),
    jobs: Annotated[int | None, typer.Option(min=1, max=1024, help="runs at a time")] = None,
    ray: Ray = None,
    gpus: Annotated[
        float | None,
        typer.Option(min=0, max=1024, help="for each run, of Ray's; by default a share of all"),
    ] = None,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Search all combinations of values, as budget.ratio=0.3,0.5 seed=0,1,2 agent=td3,random.

    What has ended is skipped, what was cut short goes on.
    """
    from functools import partial

    from amc import sweep as sweeping
    from amc.parallel.workers import LocalWorkers, RayWorkers, Workers

    if gpus is not None and math.isnan(gpus):  # which is within any bounds
        raise UserError("--gpus is nan: a number from 0 to 1024 is expected")
    make: Callable[[int, int], Workers] = LocalWorkers
    if ray is not None:
        make = partial(RayWorkers, address=ray, gpus=gpus)
    board = Board(err, _progress)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        found = sweeping.sweep(
            preset, overrides or [], out=to, jobs=jobs, workers=make, show=board.show, trust=trust
        )
    except KeyboardInterrupt:
        raise Interrupted("stopped; the same command goes on") from None
    finally:
        board.close()
    rows = [
        {"run": str(one.path), "state": one.state, "search_accuracy": one.accuracy}
        for one in found.planned
    ]
    print_result(_progress(found), {"folder": str(found.folder), "runs": rows}, as_json)
    for one in found.failed:
        say(f"amc: {one.name}, seed {one.config.seed}: {one.error}", to=err)
    if found.failed:
        raise typer.Exit(1)
    if not as_json:
        say(f"next: amc pareto {quoted(found.folder)}")


def _progress(found: Sweep) -> Table:
    """The runs of a sweep, and how far they are."""
    done = sum(one.state == "done" for one in found.planned)
    left = found.seconds_left if done < len(found.planned) else None
    title = f"{done} of {len(found.planned)} runs done"
    shown = Table(title=title if left is None else f"{title}, {left / 60:.0f} min left")
    shown.add_column("run", overflow="fold")
    for column in ("seed", "episodes", "best", "state"):
        shown.add_column(column, justify="right")
    for one in found.planned:
        total = "" if one.total is None else f" of {one.total}"
        best = "" if one.accuracy is None else tables.percent(one.accuracy)
        state = "held by another process" if one.state == "held" else one.state
        shown.add_row(one.name, str(one.config.seed), f"{one.episodes}{total}", best, state)
    return shown


@contextmanager
def _listening(run: Path | None = None) -> Iterator[ConsoleReport]:
    """Progress; after Ctrl-C how to go on with the run: this one, else the one that was begun."""
    report = ConsoleReport(err).listen()
    try:
        yield report
    except KeyboardInterrupt as stop:
        report.close()
        raise Interrupted(how_to_resume(run or getattr(stop, "path", None))) from None


def how_to_resume(path: Path | None) -> str:
    """For the run that was stopped; none: it had not been made yet."""
    if path is None or not (path / names.CONFIG).is_file():
        return "stopped before the search began: the same command starts it again"
    return f"stopped; go on with: amc resume {quoted(path)}"


def _closing(result: Any, as_json: bool) -> None:
    from amc.analysis.pareto import pareto
    from amc.device.reach import structure_of

    best, run, problem = result.best, result.run, result.problem
    budget = run.config.budget
    if budget.is_range and not as_json:
        out.print(tables.picks(pareto([run.path], budget.metric)))
    title = "best strategy, at the largest budget" if budget.is_range else "best strategy"
    table = tables.comparison(f"{title}: episode {best['episode']}")
    accuracies = best["baseline"]["search_accuracy"], best["search_accuracy"]
    tables.add_accuracy(table, "search accuracy", *accuracies)
    tables.add_costs(table, best["baseline"], best)
    latency = problem.measured_latency(structure_of(problem.space, best["strategy"]))
    tables.add_measured(table, latency)
    for layer, why in list(problem.space.left_alone.items())[:5]:
        say(f"left alone: {layer}: {why}", to=err)
    if warning := run.provenance["warning"]:
        say(f"warning: {warning}", to=err)
    profile = run.profile()
    summary = {"run": str(run.path), **best, "measured_latency_ms": latency}
    summary["episode_profile"] = profile
    print_result(table, summary, as_json)
    if note := run.provenance["precision_note"]:
        say(f"precision: {note}", to=err)
    if not as_json:
        total = sum(profile.values())
        parts = ", ".join(f"{part} {value / total:.0%}" for part, value in profile.items())
        made = run.provenance
        where = f"{made['hardware'] or made['compute']}, {made['precision']}"
        say(f"an episode took {total:.2f} s ({where}, batches of {made['batch_size']}): {parts}")
        say("run: ", (str(run.path), "bold"), " (search.png shows the search)")
        of = " --episode N" if budget.is_range else ""
        path = quoted(run.path)
        say(f"next: amc finetune {path}{of}, then amc export {path}{of}")
