"""Layers for a device that Python does not run on, and its times read back."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from torch import nn

from amc import cli
from amc.device.bench import MANIFEST, emit_bench, import_csv
from amc.device.profile import load_device
from amc.errors import UserError
from amc.network.trace import Network
from amc.spaces.channel import ChannelSpace

OVERHEAD_MS = 0.3


def tiny_space() -> ChannelSpace:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, 2, 1, groups=16),
        nn.ReLU6(),
        nn.Conv2d(16, 24, 1),
        nn.Flatten(),
        nn.Linear(24 * 16, 10),
    )
    return ChannelSpace(Network.of(model, (3, 8, 8), "tiny"), {"repair": "none", "round_to": 4})


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "tiny"
    space = tiny_space()
    count = emit_bench(space, folder)
    assert count == len(list(folder.rglob("*.onnx")))
    return folder


def pretended_ms(path: Path) -> float:
    """What the device would take: proportional to the weights."""
    graph = onnx.load(path).graph
    sizes = [1.0 for _ in ()]
    for tensor in graph.initializer:
        if len(tensor.dims) > 1:
            size = 1.0
            for dim in tensor.dims:
                size *= dim
            sizes.append(size)
    return OVERHEAD_MS + 1e-4 * sum(sizes)


def write_results(folder: Path, change: Callable[[list[list[str]]], None] | None = None) -> Path:
    manifest = json.loads((folder / MANIFEST).read_text())
    rows = [["file", "ms"]]
    for entry in (*manifest["layers"], *manifest["networks"]):
        rows.append([entry["file"], f"{pretended_ms(folder / entry['file']):.6f}"])
    if change is not None:
        change(rows)
    path = folder / "results.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_times_from_elsewhere_become_a_profile(bench: Path) -> None:
    profile = import_csv(write_results(bench), "phone", "onnxruntime 1.20", 4)
    assert (profile.runtime, profile.runtime_version, profile.threads) == ("onnxruntime", "1.20", 4)
    fit = profile.networks["tiny"]
    assert fit.fidelity is not None and fit.fidelity.strategies == 40
    assert fit.fidelity.median_ape < 0.02 and fit.fidelity.spearman > 0.99
    assert fit.overhead_ms == pytest.approx(OVERHEAD_MS, rel=0.1)
    space = tiny_space()
    space.latency = profile.latency_model("tiny")
    whole, least = (space.cost(s)["latency_ms"] for s in ({}, space.smallest))
    assert OVERHEAD_MS < least < whole


def test_the_readme_says_what_to_run(bench: Path) -> None:
    text = (bench / "README.md").read_text()
    for words in ("onnxruntime_perf_test", "benchmark_app", "--import-csv results.csv", "file,ms"):
        assert words in text
    assert "{" not in text.replace("{printf", "") and "\\(" in text


def at(row: int, column: int, value: str) -> Callable[[list[list[str]]], None]:
    def change(rows: list[list[str]]) -> None:
        rows[row - 1][column] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (at(5, 1, "fast"), "row 5, column 'ms': 'fast' is not a number"),
        (at(7, 1, "-1"), "row 7, column 'ms': '-1'"),
        (at(3, 1, ""), "row 3, column 'ms': ''"),
        (at(4, 0, "layers/x.onnx"), "row 4, column 'file': 'layers/x.onnx' is not in the manifest"),
        (at(1, 1, "seconds"), "row 1: there is no column 'ms'"),
        (lambda rows: rows.append(list(rows[1])), "column 'file': .* has a row already"),
        (lambda rows: rows.pop(), "has no row for the file 'networks/063.onnx'"),
        (lambda rows: rows[4].pop(), "row 5, column 'ms': ''"),
    ],
)
def test_a_malformed_csv_names_the_row_and_the_column(
    bench: Path, change: Callable[[list[list[str]]], None], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        import_csv(write_results(bench, change), "phone", "onnxruntime 1.20", 1)
    assert "\n" not in str(caught.value)


def test_a_csv_without_its_manifest(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text("file,ms\n")
    with pytest.raises(UserError, match=r"manifest.json.*--emit-bench"):
        import_csv(tmp_path / "results.csv", "phone", "onnxruntime", 1)
    with pytest.raises(UserError, match="does not exist"):
        import_csv(tmp_path / "nothing.csv", "phone", "onnxruntime", 1)


def test_nothing_is_overwritten(bench: Path) -> None:
    with pytest.raises(UserError, match="not empty"):
        emit_bench(tiny_space(), bench)


def test_from_the_command_line(
    bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = write_results(bench)
    command = ["amc", "profile", "tiny", "--import-csv", str(results), "--device"]
    command += [str(tmp_path / "phone"), "--runtime", "onnxruntime 1.20", "--json"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["networks"]["tiny"]["fidelity"]["strategies"] == 40
    assert load_device(str(tmp_path / "phone.yaml")).name == "phone"
    assert (tmp_path / "phone.png").stat().st_size > 10_000
