"""One HTML page of a run, or of a folder of runs: self-contained, for a phone and a desk, light and
dark. It is built of `Markup`, which escapes all that is put into it and is no markup itself.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from amc.analysis.compare import Comparison, compare
from amc.analysis.own import counted
from amc.analysis.pareto import Pareto, pareto
from amc.analysis.pareto import standings as hypervolumes
from amc.config import to_yaml
from amc.cost.cost import LABELS, ON_PAPER
from amc.errors import UserError
from amc.files import write_bytes
from amc.reading import read_csv, read_json
from amc.runs import names
from amc.runs.directory import Run, runs_in
from amc.runs.records import Before, EpochRow, Tested
from amc.views.axes import (
    draw_curves,
    draw_finetune,
    draw_pareto,
    draw_picks,
    draw_search,
    draw_seconds,
    draw_widths,
)
from amc.views.elements import details, document, paragraph, pre, side_by_side, table
from amc.views.figures import figure_of

FILE = "report.html"
_INK = "#010203"  # what is drawn in it takes the page's own colour
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
    name = folder.resolve().name
    title = f"{folder.resolve().parent.name} {name}" if alone else name
    write_bytes(folder / FILE, document(title, parts).encode("utf-8", "replace"))
    return folder / FILE


def _of_run(run: Run) -> list[Markup]:
    best, config = run.best, run.config
    budget = config.budget
    limit = budget.label + (" of its" if budget.ratio is not None else "")
    so_far = "" if run.has_ended else " so far (the search has not ended)"
    strategy = [
        (name, str(choice), f"{ratio:.3f}")
        for (name, choice), ratio in zip(best["strategy"].items(), best["ratios"], strict=True)
    ]
    return [
        paragraph(
            f"{config.model or 'a network given from Python'} within {limit} "
            f"{LABELS[budget.metric]}, by {config.agent['name']}, seed {config.seed}: "
            f"episode {best['episode']} of {len(run.lines()) - 1} has the highest reward{so_far}."
        ),
        table(("", "original", "compressed", "ratio"), _measured(run)),
        side_by_side(_pictures(run)),
        details("Strategy", table(("decision", "choice", "keep ratio"), strategy)),
        details("Configuration", pre(to_yaml(config))),
        details("Provenance", pre(json.dumps(run.provenance, indent=2))),
    ]


def _measured(run: Run) -> list[tuple[str, ...]]:
    """Rows of accuracies and costs: the original, the compressed network, their ratio."""
    after = run.best
    before = after["baseline"]
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


def _pictures(run: Run) -> list[Markup]:
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
    if all((run.path / names.FINETUNE / name).is_file() for name in (names.LOG, names.BEFORE)):
        found.append(_finetuning(run.path / names.FINETUNE))
    return found


def _picks(front: Pareto) -> Markup:
    return _picture(
        "picks", lambda axes: draw_picks(axes, front.picks), "what is kept within each budget"
    )


def _widths(run: Run) -> Markup:
    rows = run.layers()
    widths = {row.name: row.out_channels for row in rows if row.out_channels is not None}
    caption = "what is kept of each layer: the original (pale) and the best strategy (dark)"
    return _picture("widths", lambda axes: draw_widths(axes, run.best, widths), caption)


def _finetuning(folder: Path) -> Markup:
    rows = [row.as_dict() for row in read_csv(folder / names.LOG, EpochRow)]
    if not rows:
        raise UserError(f"{str(folder / names.LOG)!r} is damaged: it has no row")
    before = read_json(folder / names.BEFORE, Before).as_dict()
    return _picture("finetune", lambda axes: draw_finetune(axes, rows, before), "fine-tuning")


def _tested(run: Run) -> list[tuple[str, ...]]:
    """Rows of accuracies on the test images, of an export or a fine-tuning."""
    for path in (
        run.path / names.EXPORT / names.METRICS,
        run.path / names.FINETUNE / names.METRICS,
    ):
        if path.is_file():
            found = read_json(path, Tested)
            base = found.baseline_test_accuracy
            pairs = (
                ("test accuracy", found.test_accuracy),
                ("test accuracy, fine-tuned", found.finetuned_test_accuracy),
            )
            return [
                (label, f"{base:.2%}", f"{value:.2%}", "")
                for label, value in pairs
                if value is not None
            ]
    return []


def _of_runs(folder: Path, runs: Sequence[Run], every: int) -> list[Markup]:
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
        if not run.config.budget.is_range and counted(run):  # else there is none to be compared
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
        paragraph(f"{sum(run.has_ended for run in runs)} of {every} runs have ended."),
        *(paragraph(f"Warning: {warning}.") for warning in front.warnings),
        side_by_side(pictures),
        Markup("<h2>Hypervolume</h2>"),
        table(("agent", "seeds", "hypervolume", "of the best"), volumes),
        paragraph(f"Between the front and {cost:g} of the cost at {accuracy:.2%} accuracy."),
        Markup("<h2>Runs</h2>"),
        table(("agent", "seed", "budget", "best episode", "ratio", "search accuracy"), rows),
    ]


def _comparison(runs: Sequence[Run]) -> Comparison | None:
    """Runs that have one problem; none where they have not."""
    try:
        return compare([run.path for run in runs])
    except UserError:
        return None


def _comparison_picture(within: str, found: Comparison) -> Markup:
    caption = f"the best so far over evaluations, within {within}"
    return _picture(f"curves{within}", lambda axes: _curves(axes, found), caption)


def _curves(axes: Any, found: Comparison) -> None:
    draw_curves(axes, found, "evaluations")
    axes.legend(fontsize=8)


def _front(found: Pareto) -> Markup:
    caption = f"fronts over {found.metric}; grey: of all strategies"
    return _picture("pareto", lambda axes: draw_pareto(axes, found), caption)


def _picture(name: str, draw: Callable[[Any], None], caption: str) -> Markup:
    """An inline SVG whose ink is the page's own colour."""
    buffer = io.StringIO()
    with figure_of((5.2, 3.4), {**_STYLE, "svg.hashsalt": name}) as figure:
        draw(figure.subplots())
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    svg = text[text.index("<svg") + 5 :].replace(_INK, "currentColor")
    return Markup(
        '<figure><svg role="img" aria-label="{caption}" {svg}'
        "<figcaption>{caption}</figcaption></figure>"
    ).format(caption=caption, svg=Markup(svg))  # matplotlib escapes what it writes


def _percent(line: dict[str, Any]) -> str:
    return f"{line['search_accuracy']:.2%}"
