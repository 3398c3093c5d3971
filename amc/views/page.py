"""One HTML page of a run, or of a folder of runs: self-contained, for a phone and a desk, light and
dark.
"""

from __future__ import annotations

import html
import io
import json
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from amc.analysis.compare import Comparison, compare
from amc.analysis.pareto import Pareto, pareto
from amc.analysis.pareto import standings as hypervolumes
from amc.config import to_yaml
from amc.cost.cost import LABELS, ON_PAPER
from amc.errors import UserError
from amc.files import write_bytes
from amc.runs import names
from amc.runs.directory import Run, runs_in
from amc.views.axes import (
    draw_curves,
    draw_finetune,
    draw_pareto,
    draw_picks,
    draw_search,
    draw_seconds,
    draw_widths,
)

FILE = "report.html"
_INK = "#010203"  # what is drawn in it takes the page's own colour
_LOCK = threading.Lock()  # matplotlib's settings are global
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.framealpha": 0.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_CSS = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 70rem; padding: 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.pictures { display: grid; gap: 1rem; margin-top: 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
figure { margin: 0; } figcaption { font-size: .85rem; opacity: .8; }
svg { width: 100%; height: auto; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .75rem .25rem 0; text-align: left;
  font-variant-numeric: tabular-nums; }
td.number, th.number { text-align: right; }
pre { background: var(--soft); overflow-x: auto; padding: .75rem; font-size: .8rem; }
details { margin: .75rem 0; } summary { cursor: pointer; }
"""


def report(path: str | Path) -> Path:
    """Write ``report.html`` into a run, or into a folder of runs.

    Returns:
        the page.

    Raises:
        UserError: there is no run that has ended.
    """
    folder = Path(path)
    runs = runs_in(folder)
    ended = [run for run in runs if run.has_best]
    if not ended:
        raise UserError(f"{str(folder)!r} holds no run that has ended")
    alone = len(runs) == 1 and runs[0].path == folder
    parts = _of_run(ended[0]) if alone else _of_runs(folder, ended, len(runs))
    name = html.escape(folder.resolve().name)
    title = f"{html.escape(folder.resolve().parent.name)} {name}" if alone else name
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_CSS}</style></head><body><h1>{title}</h1>"
        f"{''.join(parts)}</body></html>\n"
    )
    write_bytes(folder / FILE, page.encode())
    return folder / FILE


def _of_run(run: Run) -> list[str]:
    best, config = run.best, run.config
    budget = config.budget
    limit = budget.label + (" of its" if budget.ratio is not None else "")
    so_far = "" if run.has_ended else " so far (the search has not ended)"
    strategy = [
        (name, str(choice), f"{ratio:.3f}")
        for (name, choice), ratio in zip(best["strategy"].items(), best["ratios"], strict=True)
    ]
    return [
        f"<p>{html.escape(str(config.model or 'a network given from Python'))} within {limit} "
        f"{LABELS[budget.metric]}, by {html.escape(config.agent['name'])}, seed {config.seed}: "
        f"episode {best['episode']} of {len(run.lines()) - 1} has the highest reward{so_far}.</p>",
        _table(("", "original", "compressed", "ratio"), _measured(run)),
        f'<div class="pictures">{"".join(_pictures(run))}</div>',
        _details("Strategy", _table(("decision", "choice", "keep ratio"), strategy)),
        _details("Configuration", _pre(to_yaml(config))),
        _details("Provenance", _pre(json.dumps(run.provenance, indent=2))),
    ]


def _measured(run: Run) -> list[tuple[str, ...]]:
    """Rows of accuracies and costs: the original, the compressed network, their ratio."""
    before, after = run.best["baseline"], run.best
    rows: list[tuple[str, ...]] = [("search accuracy", _percent(before), _percent(after), "")]
    rows += _tested(run)
    for key in ON_PAPER:
        ratio = f"{after[key] / before[key]:.3f}"
        rows.append((LABELS[key], f"{before[key]:,}", f"{after[key]:,}", ratio))
    if before["latency_ms"] is not None:
        ratio = f"{after['latency_ms'] / before['latency_ms']:.3f}"
        times = f"{before['latency_ms']:.3f}", f"{after['latency_ms']:.3f}"
        rows.append(("latency, predicted, ms", *times, ratio))
    return rows


def _pictures(run: Run) -> list[str]:
    best, budget = run.best, run.config.budget
    front = pareto([run.path], budget.metric)
    found = [
        _picture(
            "search", lambda axes: draw_search(axes, run.lines(), best), "accuracy over episodes"
        ),
        _picks(front) if budget.is_range else _widths(run),
        _front(front),
        _picture(
            "time", lambda axes: draw_seconds(axes, run.profile()), "where an episode's time goes"
        ),
    ]
    if (run.path / names.FINETUNE / names.LOG).is_file():
        found.append(_finetuning(run.path / names.FINETUNE))
    return found


def _picks(front: Pareto) -> str:
    return _picture(
        "picks", lambda axes: draw_picks(axes, front.picks), "what is kept within each budget"
    )


def _widths(run: Run) -> str:
    widths = {
        row["name"]: row["out_channels"]
        for row in pd.read_csv(run.path / names.LAYERS).to_dict("records")
    }
    caption = "what is kept of each layer: the original (pale) and the best strategy (dark)"
    return _picture("widths", lambda axes: draw_widths(axes, run.best, widths), caption)


def _finetuning(folder: Path) -> str:
    epochs = pd.read_csv(folder / names.LOG).astype(object)
    rows: Any = epochs.where(epochs.notna(), None).to_dict("records")
    before = json.loads((folder / names.BEFORE).read_text(encoding="utf-8"))
    return _picture("finetune", lambda axes: draw_finetune(axes, rows, before), "fine-tuning")


def _tested(run: Run) -> list[tuple[str, ...]]:
    """Rows of accuracies on the test images, of an export or a fine-tuning."""
    for path in (
        run.path / names.EXPORT / names.METRICS,
        run.path / names.FINETUNE / names.METRICS,
    ):
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            base = found["baseline_test_accuracy"]
            pairs = (
                ("test accuracy", found["test_accuracy"]),
                ("test accuracy, fine-tuned", found["finetuned_test_accuracy"]),
            )
            return [
                (label, f"{base:.2%}", f"{value:.2%}", "")
                for label, value in pairs
                if value is not None
            ]
    return []


def _of_runs(folder: Path, runs: Sequence[Run], every: int) -> list[str]:
    rows = []
    for run in runs:
        best, budget = run.best, run.config.budget
        limit = f"{budget.metric} {budget.label}"
        cells = run.config.agent["name"], str(run.config.seed), limit
        ratio = f"{best['cost_ratios'][budget.metric]:.3f}"
        rows.append((*cells, str(best["episode"]), ratio, _percent(best)))
    front = pareto([run.path for run in runs], runs[0].config.budget.metric)
    pictures = [_front(front)]
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if not run.config.budget.is_range:  # no best one to be compared
            groups.setdefault(run.config.budget.label, []).append(run)
    for within, own in groups.items():
        found = _comparison(own)
        if found is not None:
            pictures.append(_comparison_picture(within, found))
    volumes = [
        (row.agent, str(row.seeds), f"{row.hypervolume:.4f}", f"{row.relative:.2%}")
        for row in hypervolumes(front.curves())
    ]
    cost, accuracy = front.reference
    return [
        f"<p>{sum(run.has_ended for run in runs)} of {every} runs have ended.</p>",
        f'<div class="pictures">{"".join(pictures)}</div>',
        "<h2>Hypervolume</h2>",
        _table(("agent", "seeds", "hypervolume", "of the best"), volumes),
        f"<p>Between the front and {cost:g} of the cost at {accuracy:.2%} accuracy.</p>",
        "<h2>Runs</h2>",
        _table(("agent", "seed", "budget", "best episode", "ratio", "search accuracy"), rows),
    ]


def _comparison(runs: Sequence[Run]) -> Comparison | None:
    """Runs that have one problem; none where they have not."""
    try:
        return compare([run.path for run in runs])
    except UserError:
        return None


def _comparison_picture(within: str, found: Comparison) -> str:
    caption = f"the best so far over evaluations, within {within}"
    return _picture(f"curves{within}", lambda axes: _curves(axes, found), caption)


def _curves(axes: Any, found: Comparison) -> None:
    draw_curves(axes, found, "evaluations")
    axes.legend(fontsize=8)


def _front(found: Pareto) -> str:
    caption = f"fronts over {found.metric}; grey: of all strategies"
    return _picture("pareto", lambda axes: draw_pareto(axes, found), caption)


def _picture(name: str, draw: Callable[[Any], None], caption: str) -> str:
    """An inline SVG whose ink is the page's own colour."""
    buffer = io.StringIO()
    with _LOCK, matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(5.2, 3.4), layout="constrained")
        draw(figure.subplots())
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    svg = text[text.index("<svg") :].replace(_INK, "currentColor")
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(caption)}" ', 1)
    return f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        kinds = ["", *(' class="number"' for _ in cells[1:])]
        inner = (
            f"<{tag}{kind}>{html.escape(cell)}</{tag}>"
            for cell, kind in zip(cells, kinds, strict=True)
        )
        return f"<tr>{''.join(inner)}</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    return (
        f'<div class="scroll"><table><thead>{row(head, "th")}</thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _details(title: str, content: str) -> str:
    return f"<details><summary>{html.escape(title)}</summary>{content}</details>"


def _pre(text: str) -> str:
    return f"<pre>{html.escape(text)}</pre>"


def _percent(line: dict[str, Any]) -> str:
    return f"{line['search_accuracy']:.2%}"
