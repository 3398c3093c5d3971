"""What comes from files and users is shown as it is: it is no markup of HTML, Markdown, rich, or
matplotlib.
"""

from __future__ import annotations

import io
import re
import signal
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markupsafe import Markup
from matplotlib.text import Text
from rich.console import Console
from rich.table import Table

from amc.cli import main
from amc.cli.console import say
from amc.progress import ConsoleReport
from amc.runs.directory import Run
from amc.views import elements
from amc.views.figures import figure_of
from amc.views.markdown import code, literal
from amc.views.page import report

HOSTILE = "x[/]y [bold]$a$ <b>&:smile:"
NASTY = [
    HOSTILE,
    "<script>alert(1)</script>",
    "a|b `c` **d** [e](f)\n# g",
    "</table></pre>",
    "$\\frac$",
]
SOURCE = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3))
    model.add_module("<b>[/]$a$|`", nn.Conv2d(8, 8, 3))
    model.add_module("rest", nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)))
    return model
"""
OPTIONS = [
    "model=my_hostile:build",
    "weights=null",
    "space.round_to=2",
    "train.epochs=1",
    "allow_untrained=true",
    "agent={name: random, episodes: 2}",
    "evaluate={images: 50, calibration_images: 50}",
]


class Plain(HTMLParser):
    """The text of a page, and which elements it has."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self.feed(str(page))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("text", NASTY)
def test_every_part_of_a_page_escapes_what_is_put_into_it(text: str) -> None:
    parts: dict[str, Callable[[], Markup]] = {
        "paragraph": lambda: elements.paragraph(text),
        "pre": lambda: elements.pre(text),
        "details": lambda: elements.details(text, elements.pre("")),
        "head": lambda: elements.table((text, text), []),
        "cells": lambda: elements.table(("", ""), [(text, text)]),
        "title": lambda: elements.document(text, []),
        "parts": lambda: elements.document("", [text]),  # type: ignore[list-item]
        "pictures": lambda: elements.side_by_side([text]),  # type: ignore[list-item]
    }
    for name, make in parts.items():
        found = Plain(make())
        assert text in found.text and not found.tags & {"script", "b"}, name


@pytest.mark.parametrize("text", NASTY)
def test_markdown_says_it_in_one_line_without_markup(text: str) -> None:
    for shown in (literal(text), code(text)):
        inside = shown.strip("`").removeprefix("<code>").removesuffix("</code>")
        assert not set("<>|`\n") & set(inside)
        assert Plain(inside).text == " ".join(text.splitlines())
    assert literal("my_module:build 1.5") == "my_module:build 1.5"
    assert code("layer1_0.conv[2]") == "`layer1_0.conv[2]`"


@pytest.mark.parametrize("text", NASTY)
def test_pictures_take_no_text_for_mathematics(text: str) -> None:
    with figure_of((3, 2)) as figure:
        axes = figure.subplots()
        axes.plot([1, 2], [1, 2], label=text)
        axes.set(title=text, xlabel=text)
        axes.set_xticks([1, 2], [text, text])
        axes.legend()
        figure.savefig(io.BytesIO())
        drawn = [found for found in figure.findobj(Text) if found.get_text() == text]
        assert len(drawn) >= 4 and not any(found.get_parse_math() for found in drawn)


@pytest.mark.parametrize("text", NASTY[:3])
def test_consoles_print_it_as_it_is(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    from amc.cli import console

    line = text.splitlines()[0]
    table = Table(line, title=line)
    table.add_row(line)
    say("written to ", (line, "bold"))
    console.out.print(table)
    shown = capsys.readouterr().out
    assert shown.count(line) == 4
    written = io.StringIO()
    progress = ConsoleReport(Console(file=written, width=200, force_terminal=True))
    progress(line, 1, 2)
    progress.close()
    assert line in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written.getvalue())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A hostile folder with a module in it, and Ctrl-C as it was."""
    found = tmp_path_factory.mktemp("outer") / HOSTILE
    found.mkdir(parents=True)
    (found / "my_hostile.py").write_text(SOURCE)
    sys.path.insert(0, str(found))
    before = signal.getsignal(signal.SIGINT)
    yield found
    signal.signal(signal.SIGINT, before)
    sys.path.remove(str(found))


def test_everything_works_in_such_a_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def amc(*arguments: Any) -> str:
        monkeypatch.setattr(sys, "argv", ["amc", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        assert ended.value.code == 0, shown.err
        return shown.out

    monkeypatch.chdir(folder)
    to = folder / "runs"
    printed = amc("search", "digits_resnet8_channel_macs50", *OPTIONS, "--out", to)
    run = next(to.glob("*/s0-*"))
    assert f"run: {run} (search.png" in printed
    assert str(run) in amc("finetune", run, "epochs=1")
    assert f"exported to {run / 'export'} (README.md" in amc("export", run)
    amc("evaluate", run)
    assert f"written: {run / 'report.html'}" in amc("report", run)
    for name in ("compare", "pareto"):
        assert f"written to {folder / name} (" in amc(name, run, "--out", folder / name)
    for page in (run / "report.html", report(to)):
        found = Plain(page.read_text())
        assert not found.tags & {"b", "script"}
    assert "<b>[/]$a$|`" in Plain((run / "report.html").read_text()).text
    card = (run / "export" / "README.md").read_text()
    assert "| &#60;b&#62;&#91;/&#93;&#36;a&#36;&#124;&#96; |" in card
    assert "<b>" not in card
    assert "[bold]x[/]" in amc("show", run / "config.yaml", "heldout='[bold]x[/]'")


def test_mistakes_are_told_as_they_were_typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (
        ["evaluate", "[bold]x[/]"],
        ["search", "[bold]x[/]"],
        ["[bold]x[/]"],
    ):
        monkeypatch.setattr(sys, "argv", ["amc", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2 and "[bold]x[/]" in capsys.readouterr().err


def test_what_a_run_holds_is_no_markup(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = next((folder / "runs").glob("*/s0-*"))
    for key in ("episode", "phase"):
        tampered = {**Run(run).best, key: "<script>alert(1)</script>"}
        monkeypatch.setattr(Run, "best", tampered)
        found = Plain(report(run).read_text())
        assert "script" not in found.tags and ("<script>" in found.text) == (key == "episode")
        monkeypatch.undo()
