"""The page of a run and of many runs; in a browser where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from zoo import Mine, command, config_of

from amc.data.datasets import Dataset
from amc.deliver.finetune import finetune
from amc.errors import UserError
from amc.runs.directory import Run
from amc.search import search
from amc.views.axes import draw_search
from amc.views.figures import figure_of
from amc.views.page import report

CHROMIUM = next(
    (path for name in ("chromium", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.fixture(scope="module")
def runs(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    model = Mine()
    for agent in ("random", "uniform"):
        for ratio in (0.4, 0.6):
            options = [] if agent == "uniform" else ["agent.episodes=5"]
            config = config_of(f"agent={{name: {agent}}}", f"budget.ratio={ratio}", *options)
            found = search(config, model=model, dataset=digits, out=out, name=f"{agent}_{ratio}")
            if (agent, ratio) == ("random", 0.4):
                finetune(found, {"epochs": 2, "augment": "none"})
    return out


class Page(HTMLParser):
    """Every element is closed; what it refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)
        self.links += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href")
        ]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag != "meta":
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_of_a_run(runs: Path) -> None:
    path = next((runs / "random_0.4").glob("s0*"))
    page = report(path)
    assert page == path / "report.html"
    text = page.read_text()
    found = Page(text)
    assert not found.open and text.count("<svg") == 5  # with the fine-tuning
    assert all(link.startswith("#") for link in found.links), "it needs nothing else"
    assert "url(http" not in text and "<script" not in text
    for part in (
        "search accuracy",
        "MACs",
        "fine-tuned",
        "agent:",
        "git_commit",
        "0.4 of its MACs",
    ):
        assert part in text
    assert "#010203" not in text and "currentColor" in text
    assert "prefers-color-scheme" in text or "color-scheme: light dark" in text


def test_the_page_of_many_runs(runs: Path, tmp_path: Path) -> None:
    done = command("report", str(runs))
    assert done.returncode == 0 and "report.html" in done.stdout, done.stderr
    text = (runs / "report.html").read_text()
    assert "4 of 4 runs have ended" in text and "Hypervolume" in text
    assert len(re.findall(r"<tr><td>random", text)) == 3  # two runs, and the hypervolume
    assert not Page(text).open
    with pytest.raises(UserError, match="holds no run"):
        report(tmp_path)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize(("width", "scheme"), [(360, 1), (360, 0), (1280, 0)])
def test_in_a_browser(runs: Path, tmp_path: Path, width: int, scheme: int) -> None:
    """It fits the window, a phone's too (what is wider scrolls in its own box), and pictures have
    the page's colour: nearly black on light (1), nearly white on dark (0).
    """
    page = report(next((runs / "random_0.4").glob("s0*"))).read_text()
    (tmp_path / "page.html").write_text(page)
    script = """
    <iframe src="page.html" style="width:WIDTHpx;height:900px" onload="
      const inner = this.contentDocument;
      document.title = [inner.documentElement.scrollWidth, inner.documentElement.clientWidth,
        getComputedStyle(inner.body).color, getComputedStyle(inner.querySelector('svg text')).fill,
      ].join('|')"></iframe>"""
    (tmp_path / "frame.html").write_text(script.replace("WIDTH", str(width)))
    assert CHROMIUM is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    options += [f"--blink-settings=preferredColorScheme={scheme}", "--window-size=1400,1000"]
    done = subprocess.run(
        [CHROMIUM, *options, "--dump-dom", str(tmp_path / "frame.html")],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    found = re.search(r"<title>(.*)</title>", done.stdout)
    assert found is not None, done.stdout[:500]
    needed, has, text, ink = found[1].split("|")
    assert int(needed) <= int(has) <= width
    assert text == ink == ("rgb(0, 0, 0)" if scheme else "rgb(255, 255, 255)")


def test_episodes_that_failed_are_left_out_of_the_picture(runs: Path) -> None:
    run = Run(next((runs / "random_0.4").glob("s0*")))
    lines = run.lines()
    failed = dict.fromkeys(("search_accuracy", "cross_entropy", "kl", "reward"))
    drawn = []
    for changed in (lines, [*lines[:2], {**lines[2], **failed}, *lines[3:], lines[-1] | failed]):
        with figure_of((4, 3)) as figure:
            axes = figure.subplots()
            draw_search(axes, changed, run.best)
            drawn.append(
                sum(len(line.get_xdata()) for line in axes.lines if line.get_marker() == ".")
            )
    assert drawn == [len(lines) - 1, len(lines) - 2]  # the first one is uniform, a level
