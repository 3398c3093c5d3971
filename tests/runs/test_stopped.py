"""Runs that were stopped or damaged: whole or none, repaired, shown as far as they came."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from zoo import Mine, command, config_of, journal

from amc.analysis.compare import compare
from amc.analysis.pareto import pareto
from amc.cli.searching import how_to_resume
from amc.config import Config, load_config
from amc.data.datasets import Dataset
from amc.deliver.export import export
from amc.errors import UserError
from amc.runs import directory
from amc.runs.directory import Run
from amc.runs.journal import Journal
from amc.runs.stopping import Stopped
from amc.search import SearchResult, resume, search
from amc.views.page import report


def begun(config: Config, digits: Dataset, out: Path) -> SearchResult:
    torch.manual_seed(0)
    return search(config, model=Mine(), dataset=digits, out=out)


DAMAGES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "doubled": lambda lines: [*lines[:6], *lines[4:]],
    "doubled at the end": lambda lines: [*lines, lines[-1]],
    "a line lost": lambda lines: [*lines[:3], *lines[4:]],
    "torn in the middle": lambda lines: [*lines[:5], lines[5][:40], *lines[6:]],
    "two in one": lambda lines: [*lines[:4], lines[4][:-1] + lines[5], *lines[6:]],
    "zeros": lambda lines: [*lines[:7], b"\0" * 512 + b"\n", *lines[8:]],
    "garbage": lambda lines: [*lines[:2], b"\xff\xfe\r\x80garbage\n", *lines[2:]],
    "another object": lambda lines: [*lines[:2], b'{"episode": 2}\n', *lines[2:]],
    "a list": lambda lines: [*lines[:2], b"[" * 5000 + b"\n", *lines[2:]],
    "an empty line": lambda lines: [*lines[:6], b"\n", *lines[6:]],
    "from the first": lambda lines: [b"\0\n", *lines],
}


@pytest.fixture(scope="module")
def straight(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    config = config_of("reward=kl", "agent.episodes=8")  # an agent that learns
    return begun(config, digits, tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("damage", DAMAGES)
def test_law_3_a_repaired_journal_goes_on_as_straight(
    damage: str,
    straight: SearchResult,
    digits: Dataset,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = Run(tmp_path / "run")
    run.path.parent.mkdir(exist_ok=True)
    for file in straight.run.path.rglob("*"):
        if file.is_file() and file.suffix != ".png":
            to = run.path / file.relative_to(straight.run.path)
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(file.read_bytes())
    path = run.path / "episodes.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = DAMAGES[damage](lines)
    path.write_bytes(b"".join(damaged))
    with pytest.raises(UserError, match=r"damaged in line \d+: .*amc resume .* --repair"):
        resume(run.path, model=Mine(), dataset=digits)
    assert path.read_bytes() == b"".join(damaged)
    with caplog.at_level(logging.WARNING, "amc"):
        resume(run.path, model=Mine(), dataset=digits, repair=True)
    assert any("repaired" in said and "damaged-1" in said for said in caplog.messages)
    kept = (run.path / "episodes.jsonl.damaged-1").read_bytes()
    whole = b"".join(damaged).removesuffix(kept)
    assert whole + kept == b"".join(damaged)  # nothing is lost
    assert path.read_bytes().startswith(whole)
    assert journal(run.path) == journal(straight.run.path)
    assert run.best["strategy"] == straight.best["strategy"]


def test_a_whole_or_torn_journal_needs_no_repair(tmp_path: Path, straight: SearchResult) -> None:
    path = tmp_path / "episodes.jsonl"
    text = straight.run.journal.path.read_bytes()
    for content in (text, text[:-7], text[:-1], b""):
        path.write_bytes(content)
        assert Journal(path).repair() == "" and path.read_bytes() == content
    path.write_bytes(text + text)
    Journal(path).repair()
    path.write_bytes(text + b"\n")
    assert "damaged-2" in Journal(path).repair()
    assert (tmp_path / "episodes.jsonl.damaged-2").read_bytes() == b"\n"
    assert path.read_bytes() == text


def test_a_damaged_journal_has_no_best_until_it_is_repaired(
    tmp_path: Path, digits: Dataset
) -> None:
    run = begun(config_of("agent=random", "agent.episodes=2"), digits, tmp_path).run
    text = run.journal.path.read_bytes()
    run.journal.path.write_bytes(text + text)
    run.repair()
    assert not run.has_ended and run.has_best  # of what is whole
    assert not (run.path / "best.json").exists()


@pytest.mark.parametrize("at", range(5))
def test_a_directory_is_a_whole_run_or_none(
    at: int, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before any of the files that are written when a run is made, and after the last."""
    made: list[str] = []
    write = directory.write_bytes

    def stopping(path: Path, content: bytes) -> None:
        made.append(path.name)
        if len(made) > at:
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(directory, "write_bytes", stopping)
    monkeypatch.setattr(
        directory, "write_json", lambda path, value: stopping(path, json.dumps(value).encode())
    )
    config = config_of("agent=random", "agent.episodes=2")
    torch.manual_seed(0)
    model = Mine()
    with pytest.raises(KeyboardInterrupt) as caught:
        search(config, model=model, dataset=digits, out=tmp_path)
    monkeypatch.undo()
    paths = list(tmp_path.glob("*/s0*"))
    assert (
        made
        == ["layers.csv", "base.safetensors", "provenance.json", "config.yaml", made[-1]][: at + 1]
    )
    if at < 4:
        assert not isinstance(caught.value, Stopped)
        for path in paths:
            assert "before the search began" in how_to_resume(path)
            with pytest.raises(UserError, match="is not a run directory"):
                resume(path, model=model, dataset=digits)
        return
    assert isinstance(caught.value, Stopped) and caught.value.path == paths[0]
    assert f"amc resume {paths[0]}" in how_to_resume(paths[0])
    for refusing in (pareto, compare, lambda paths: report(paths[0])):
        with pytest.raises(
            UserError, match=r"no run that has (begun|ended)|no finished|no episode"
        ):
            refusing(paths)
    with pytest.raises(UserError, match=f"amc resume {paths[0]}"):
        Run(paths[0]).best  # noqa: B018
    (paths[0] / "layers.csv").unlink()  # as an earlier version left it
    resume(paths[0], model=model, dataset=digits)
    assert (paths[0] / "layers.csv").is_file()
    whole = search(config, model=model, dataset=digits, out=tmp_path / "straight").run.path
    assert journal(paths[0]) == journal(whole)


def test_an_interrupted_run_is_shown_as_far_as_it_came(
    digits: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def stopping(what: str, done: int, total: int) -> None:
        if what.startswith("searching") and done == 5:
            raise KeyboardInterrupt

    torch.manual_seed(0)
    model, config = Mine(), config_of("agent=random")
    with pytest.raises(Stopped) as caught:
        search(config, model=model, dataset=digits, out=tmp_path, report=stopping)
    run = Run.open(caught.value.path)
    lines = run.lines()
    assert len(lines) == 6 and not run.has_ended and not (run.path / "best.json").exists()
    assert run.best["reward"] == max(line["reward"] for line in lines if line["feasible"])
    assert len(pareto([run.path]).points) == 6
    assert len(compare([run.path]).curves[0].best) == 6
    text = report(run.path).read_text()
    assert f"episode {run.best['episode']} of 5 has the highest reward so far" in text
    report(run.path.parent)
    assert "0 of 1 runs have ended" in (run.path.parent / "report.html").read_text()
    with caplog.at_level(logging.WARNING, "amc"):
        export(run.path, ["safetensors"], model=model, dataset=digits)
    assert any("has not ended" in said for said in caplog.messages)
    before = run.best["baseline"]
    best = resume(run.path, model=model, dataset=digits).best
    assert run.has_ended and best["baseline"] == before and len(run.lines()) == 11


def test_the_command_repairs(tmp_path: Path) -> None:
    options = ["evaluate.images=60", "evaluate.calibration_images=60", "train.epochs=1"]
    config = load_config("digits_resnet8_channel_macs50", [*options, "agent=uniform"])[1]
    path = search(config, out=tmp_path).run.path
    expected = journal(path)
    text = (path / "episodes.jsonl").read_text()
    (path / "episodes.jsonl").write_text(text + text)
    repaired = command("resume", str(path), "--repair")
    assert repaired.returncode == 0 and "repaired: " in repaired.stderr, repaired.stderr
    assert journal(path) == expected
