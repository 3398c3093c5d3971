"""A device profile of a device that Python does not run on: write the layers as ONNX files, time
them there with the runtime's own tool, and read its results.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from amc.device.copies import Copies, copies_of, layer_input
from amc.device.layer_times import Family, LayerTimes, Point
from amc.device.profile import DeviceProfile
from amc.device.reach import random_strategies, step_of, structure_of, timed_layers, widths_of
from amc.device.runtimes import onnx_bytes
from amc.device.survey import CHECKED, FITTED, fit_network, new_profile
from amc.errors import UserError, shown
from amc.files import write_bytes, write_json
from amc.network.layers import example_input
from amc.progress import Report, silent
from amc.reading import damaged, parse_json, read_text
from amc.spaces.base import CompressionSpace, Strategy

SCHEMA = 1
LINES = 4  # channel counts on each axis of a family's grid
MANIFEST = "manifest.json"
COLUMNS = ("file", "ms")

_README = """# Layers of {network}, to be timed on a device

{count} ONNX files (batch {batch}, fp32). Copy this folder to the device, time every file there with
the runtime that will run the network, and write `results.csv` with the columns `file,ms`: the
file's name as in `manifest.json`, and the median milliseconds of one inference.

With ONNX Runtime (`onnxruntime_perf_test` comes out of ONNX Runtime's own build; on a phone, in
`adb shell`):

```sh
echo file,ms > results.csv
for f in layers/*.onnx networks/*.onnx; do
  ./onnxruntime_perf_test -I -s -e cpu -o 99 -x 1 -y 1 -m times -r 50 "$f" \\
    | sed -n 's/.*P50 Latency[^0-9]*\\([0-9.e-]*\\).*/\\1/p' \\
    | awk -v f="$f" '{{printf "%s,%.6f\\n", f, 1000 * $1}}' >> results.csv
done
```

With OpenVINO (`pip install openvino`):

```sh
echo file,ms > results.csv
for f in layers/*.onnx networks/*.onnx; do
  benchmark_app -m "$f" -d CPU -api sync -hint none -nthreads 1 -infer_precision f32 -niter 200 \\
    | awk -v f="$f" '/Median:/ {{printf "%s,%.6f\\n", f, $(NF - 1) / ($NF == "us" ? 1000 : 1)}}' \\
    >> results.csv
done
```

Then, with `results.csv` beside `manifest.json`:

```sh
amc profile {network} --import-csv results.csv --device my_device \\
  --runtime "onnxruntime 1.20.1" --threads 1
```

The networks are {networks} random strategies of {network}, whole: they fit the fixed overhead,
and check the predictions.
"""


Job = tuple[str, Callable[[], bytes]]
"""A file's name, and what makes its content."""


def emit_bench(
    space: CompressionSpace, folder: Path, batch: int = 1, seed: int = 0, report: Report = silent
) -> int:
    """Write the layers and random strategies of a space's network as ONNX, a manifest and a README.

    Returns:
        The number of ONNX files.

    Raises:
        UserError: the folder holds anything else than what such a call that was cut short has left,
            or a layer cannot be exported.
    """
    if folder.exists() and {path.name for path in folder.iterdir()} - {"layers", "networks"}:
        raise UserError(f"the folder {str(folder)!r} exists and is not empty")
    grids = {
        family: (_lines(widths.ins), _lines(widths.outs) if family.group is None else ())
        for family, widths in widths_of(space).items()
    }
    layers, jobs = _layer_files(grids, batch)
    networks, more = _network_files(space, list(grids), batch, seed)
    jobs += more
    for number, (name, content) in enumerate(jobs):
        report("writing layers", number, len(jobs))
        write_bytes(folder / name, content())
    report("writing layers", len(jobs), len(jobs))
    manifest = {
        "schema": SCHEMA,
        "network": space.network.name,
        "step": step_of(space),
        "batch": batch,
        "families": [
            {"family": family.model_dump(mode="json"), "in_channels": ins, "out_channels": outs}
            for family, (ins, outs) in grids.items()
        ],
        "layers": layers,
        "networks": networks,
    }
    write_json(folder / MANIFEST, manifest)
    text = _README.format(
        network=space.network.name, count=len(jobs), batch=batch, networks=len(networks)
    )
    write_bytes(folder / "README.md", text.encode())
    return len(jobs)


def _layer_files(
    grids: Mapping[Family, tuple[Sequence[int], Sequence[int]]], batch: int
) -> tuple[list[dict[str, Any]], list[Job]]:
    """The manifest's entries of the layers, and their files: one copy and several, in turn."""
    entries: list[dict[str, Any]] = []
    jobs: list[Job] = []

    def content(family: Family, pair: tuple[int, int], count: int) -> bytes:
        return onnx_bytes(Copies(family, pair, count).eval(), layer_input(family, pair[0], batch))

    for number, (family, (ins, outs)) in enumerate(grids.items()):
        for pair in LayerTimes.needed(family, ins, outs):
            for count in (1, copies_of(family, pair)):
                name = f"layers/f{number:02}_{pair[0]}_{pair[1]}_x{count}.onnx"
                entries.append({"file": name, "family": number, "channels": pair, "copies": count})
                jobs.append((name, partial(content, family, pair, count)))
    return entries, jobs


def _network_files(
    space: CompressionSpace, families: list[Family], batch: int, seed: int
) -> tuple[list[dict[str, Any]], list[Job]]:
    """The manifest's entries of the whole networks, and their files."""
    example = example_input(space.network.model, space.network.input_shape, batch)
    entries: list[dict[str, Any]] = []
    jobs: list[Job] = []

    def content(strategy: Strategy) -> bytes:
        return onnx_bytes(structure_of(space, strategy), example)

    for number, strategy in enumerate(random_strategies(space, FITTED + CHECKED, seed)):
        layers = timed_layers(space.resize(strategy))
        table = [(families.index(family), ins, outs) for family, ins, outs in layers]
        entries.append({"file": f"networks/{number:03}.onnx", "layers": table})
        jobs.append((f"networks/{number:03}.onnx", partial(content, strategy)))
    return entries, jobs


def _lines(widths: set[int]) -> tuple[int, ...]:
    """At most `LINES` legal widths, evenly spaced, with both ends."""
    values = sorted(widths)
    count = min(LINES, len(values))
    return tuple(values[round(i * (len(values) - 1) / max(1, count - 1))] for i in range(count))


def import_csv(path: Path, name: str, runtime: str, threads: int) -> DeviceProfile:
    """The profile of the times in a csv file, whose `emit_bench` manifest lies beside it.

    Args:
        path: columns ``file`` and ``ms``, and ``spread_ms`` and ``repeats`` where known.
        name: of the device.
        runtime: that ran the layers, with its version, as ``onnxruntime 1.20.1``.
        threads: it was given.

    Raises:
        UserError: naming the row and the column that is wrong, or the file that has no row.
    """
    place = path.with_name(MANIFEST)
    with damaged(place):
        return _profile_of(_manifest(place), path, name, runtime, threads)


def _profile_of(
    manifest: dict[str, Any], path: Path, name: str, runtime: str, threads: int
) -> DeviceProfile:
    files = [entry["file"] for entry in (*manifest["layers"], *manifest["networks"])]
    rows = _read(path, set(files))
    if lacking := next((file for file in files if file not in rows), None):
        raise UserError(f"{str(path)!r} has no row for the file {lacking!r}")
    families = [Family(**entry["family"]) for entry in manifest["families"]]
    points: list[list[Point]] = [[] for _ in families]
    for one, several in zip(manifest["layers"][::2], manifest["layers"][1::2], strict=True):
        count = several["copies"] - one["copies"]
        first, second = rows[one["file"]], rows[several["file"]]
        ms = (second["ms"] - first["ms"]) / count
        spread = math.hypot(first["spread_ms"], second["spread_ms"]) / count
        repeats = int(min(first["repeats"], second["repeats"]))
        points[one["family"]].append(Point.of(one["channels"], ms, spread, repeats))
    layers = tuple(
        LayerTimes(
            family=family,
            in_channels=entry["in_channels"],
            out_channels=entry["out_channels"],
            points=tuple(found),
        )
        for family, entry, found in zip(families, manifest["families"], points, strict=True)
    )
    networks = [
        [(layers[number], ins, outs) for number, ins, outs in network["layers"]]
        for network in manifest["networks"]
    ]
    measured = [rows[network["file"]]["ms"] for network in manifest["networks"]]
    fit = fit_network(networks, measured, manifest["step"])
    kind, _, version = runtime.partition(" ")
    profile = new_profile(name, kind, version or "unknown", threads, manifest["batch"])
    return profile.changed(
        layers=layers, networks={manifest["network"]: fit}, machine={"processor": name}
    )


def _manifest(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(
            f"{str(path)!r} does not exist: the csv must lie in the folder that --emit-bench wrote"
        )
    manifest: dict[str, Any] = parse_json(read_text(path), path)
    if manifest.get("schema") != SCHEMA:
        raise UserError(f"{str(path)!r} is of another version: {shown(manifest.get('schema'))}")
    return manifest


def _read(path: Path, known: set[str]) -> dict[str, dict[str, float]]:
    """File -> ms, spread_ms and repeats."""
    if not path.is_file():
        raise UserError(f"the file {str(path)!r} does not exist")
    rows: dict[str, dict[str, float]] = {}
    with damaged(path), io.StringIO(read_text(path), newline="") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        for column in COLUMNS:
            if column not in (reader.fieldnames or ()):
                raise UserError(f"{str(path)!r}, row 1: there is no column {column!r}")
        for line in reader:
            where = f"{str(path)!r}, row {reader.line_num}"
            name = (line["file"] or "").strip()
            if name not in known:
                raise UserError(f"{where}, column 'file': {name!r} is not in the manifest")
            if name in rows:
                raise UserError(f"{where}, column 'file': {name!r} has a row already")
            rows[name] = {
                "ms": _number(line, "ms", where),
                "spread_ms": _number(line, "spread_ms", where) if line.get("spread_ms") else 0.0,
                "repeats": _number(line, "repeats", where) if line.get("repeats") else 1,
            }
    return rows


def _number(line: Mapping[str, str | None], column: str, where: str) -> float:
    text = line[column] or ""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value >= 0 and math.isfinite(value)):
        raise UserError(f"{where}, column {column!r}: {text!r} is not a number of at least 0")
    return value
