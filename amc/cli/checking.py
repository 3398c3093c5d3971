"""Commands on networks and plug-ins: profile, check."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from amc.cli.console import Interrupted, Json, Overrides, Trust, app, err, print_result, say
from amc.errors import UserError, shown
from amc.plugins import users_code
from amc.progress import ConsoleReport
from amc.views import tables

LARGEST_SIDE = 4096  # of an image

if TYPE_CHECKING:
    from amc.device.profile import DeviceProfile


@app.command()
@users_code()
def profile(
    source: Annotated[str, typer.Argument(metavar="MODEL|PRESET|RUN")],
    overrides: Overrides = None,
    device: Annotated[
        str | None, typer.Option(help="measure the layers, into the device profile NAME.yaml")
    ] = None,
    runtime: Annotated[str, typer.Option(help="`amc ls` names them")] = "onnxruntime",
    threads: Annotated[int, typer.Option(min=1, max=1024, help="that the runtime may use")] = 1,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="images at once")] = 1,
    shape: Annotated[str | None, typer.Option("--input", help="of an image, as 3x224x224")] = None,
    emit: Annotated[
        Path | None, typer.Option("--emit-bench", help="write the layers as ONNX into this folder")
    ] = None,
    times: Annotated[
        Path | None, typer.Option("--import-csv", help="their times, measured elsewhere")
    ] = None,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Print a network's layers, costs and latency; with --device, measure a device profile.

    Ctrl-C loses nothing: the same command goes on.
    """
    from amc.config import config_of
    from amc.device.bench import emit_bench, import_csv
    from amc.device.runtimes import make_runtime
    from amc.device.survey import measure_profile, profile_path, time_of
    from amc.files import write_bytes
    from amc.plugins import allow
    from amc.problem import untrained_space

    if times is not None:
        path = profile_path(device or times.resolve().parent.name)
        found = import_csv(times, path.stem, runtime, threads)
        write_bytes(path, found.to_yaml().encode())
        return _print_profile(found, path, as_json)
    allow(runtime)
    report = ConsoleReport(err).listen()
    space = untrained_space(config_of(source, overrides or [], trust), _shape(shape), report)
    if emit is not None:
        count = emit_bench(space, emit, batch, report=report)
        return say(f"{count} ONNX files; what to do with them: {emit / 'README.md'}")
    if device is None:
        ms = time_of(make_runtime(runtime, threads), space.network, batch)
        costs = {**space.cost({}).as_dict(), "latency_ms": ms}
        print_result(tables.layers(space.network.table, ms), costs, as_json)
        if doubt := space.network.table.rest.doubt:
            say(f"warning: {doubt}", to=err)
        return None
    path = profile_path(device)
    try:
        found = measure_profile(space, make_runtime(runtime, threads), path, batch, report=report)
    except KeyboardInterrupt:
        report.close()
        raise Interrupted("stopped; the same command goes on") from None
    return _print_profile(found, path, as_json)


@app.command()
@users_code()
def check(
    name: Annotated[
        str, typer.Argument(help="a space by name; or module:Class, a space or a kind of layer")
    ],
) -> None:
    """Check that an action space, or a kind of layer, keeps its promises, on small networks."""
    from amc.network.kinds import Kind
    from amc.plugins import allow, imported
    from amc.registry import lookup
    from amc.testing import check_space
    from amc.testing_kinds import check_kind

    allow(name)
    found = imported(name, "plug-in") if ":" in name else None
    try:
        if isinstance(found, type) and issubclass(found, Kind):
            done = check_kind(found)
        else:
            done = check_space(lookup("space", name))
    except AssertionError as error:
        say((f"{name} does not conform", "red"), f": {error}", to=err)
        raise typer.Exit(1) from None
    for line in done:
        say(("ok", "green"), f"  {line}")


def _shape(text: str | None) -> tuple[int, ...] | None:
    """An image's shape from ``3x224x224``."""
    if text is None:
        return None
    sizes = text.split("x")
    whole = all(size.isdecimal() and len(size) < 10 for size in sizes)
    if len(sizes) != 3 or not whole or not all(1 <= int(size) <= LARGEST_SIDE for size in sizes):
        raise UserError(
            f"--input is {shown(text)}: channels x height x width, as 3x224x224, is expected, each "
            f"from 1 to {LARGEST_SIDE}"
        )
    return tuple(int(size) for size in sizes)


def _print_profile(profile: DeviceProfile, path: Path, as_json: bool) -> None:
    from amc.views.pictures import plot_profile

    picture = path.with_suffix(".png")
    plot_profile(profile, picture)
    fits = {name: fit.model_dump(mode="json") for name, fit in profile.networks.items()}
    print_result(tables.fidelity(profile), {"device": str(path), "networks": fits}, as_json)
    if not as_json:
        say("device profile: ", (str(path), "bold"), f" ({picture})")
