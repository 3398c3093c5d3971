"""What pictures and reports draw, each into axes of matplotlib."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rcParams
from matplotlib.ticker import MaxNLocator

from amc.analysis.compare import Axis, Comparison
from amc.analysis.pareto import Pareto, Pick
from amc.cost.cost import LABELS
from amc.evaluate.outcome import Outcome
from amc.registry import HANDCRAFTED

HANDFUL = 3  # evaluations that are no curve yet
_LONGEST = 26  # letters of a name below an axis: more would leave no room for the axes
SHADED = 3  # seeds; the interval of two (Student's t: 12.7 standard errors) hides all else

_PHASES = {
    "measure": ("#b794f4", "measured only, may be over the budget"),
    "solve": ("#c05621", "what follows from these"),
    "warmup": ("#9aa5b1", "random warm-up"),
    "explore": ("#2b6cb0", "agent"),
    "apply": ("#2b6cb0", "a policy learned before"),
}


def draw_search(axes: Any, lines: Sequence[dict[str, Any]], best: dict[str, Any]) -> None:
    """Search accuracy over the episodes, the best so far, uniform and the baseline. Episodes that
    failed have none: they are marked at the foot.
    """
    last = lines[-1]["episode"]
    if failed := [line["episode"] for line in lines if line["search_accuracy"] is None]:
        foot = axes.get_xaxis_transform()
        axes.plot(
            failed, [0.02] * len(failed), "x", color="#c53030", transform=foot, label="failed"
        )
    lines = [line for line in lines if line["search_accuracy"] is not None]
    _draw_episodes(axes, lines)
    walked = [line for line in lines if Outcome.from_line(line).can_be_best]
    running = np.maximum.accumulate([100 * line["search_accuracy"] for line in walked])
    axes.step(
        [*(line["episode"] for line in walked), last],
        [*running, *running[-1:]] if walked else [math.nan],
        where="post",
        color=rcParams["text.color"],
        linewidth=1.2,
        label="best accuracy so far",
    )
    for line in lines:
        if line["phase"] == "uniform":
            axes.axhline(
                100 * line["search_accuracy"],
                color="#dd6b20",
                linestyle="--",
                label="uniform at the budget",
            )
    base = 100 * best["baseline"]["search_accuracy"]
    axes.axhline(base, color="#38a169", linestyle=":", label="before compression")
    accuracies = [100 * line["search_accuracy"] for line in lines] or [base]
    axes.set_ylim(max(0.0, float(np.percentile(accuracies, 5)) - 2), max(base, *accuracies) + 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(
        xlabel="episode",
        ylabel="search accuracy (%)",
        title="Search: accuracy on held-out images, before fine-tuning",
    )
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2), "ncols": 3}
    axes.legend(fontsize=8, **below)


def _draw_episodes(axes: Any, lines: Sequence[dict[str, Any]]) -> None:
    """A point an episode, in the colour of its phase; paler where racing stopped it."""
    for phase in dict.fromkeys(line["phase"] for line in lines if line["phase"] != "uniform"):
        chosen = [line for line in lines if line["phase"] == phase]
        color, label = _PHASES.get(phase, ("#2b6cb0", phase))
        for raced in (False, True):
            own = [line for line in chosen if (line.get("stopped_after") is not None) == raced]
            x = [line["episode"] for line in own]
            y = [100 * line["search_accuracy"] for line in own]
            name = f"{label}, stopped early: an estimate" if raced else label
            alpha = 0.3 if raced else 1.0
            if own:
                axes.plot(x, y, ".", color=color, label=name, markersize=4, alpha=alpha)


def draw_ratios(axes: Any, best: dict[str, Any]) -> None:
    """The keep ratios of the best strategy."""
    names, ratios = list(best["strategy"]), best["ratios"]
    kinds = [name.partition(":")[2] or "channels" for name in names]
    for kind, color in zip(dict.fromkeys(kinds), ("#2b6cb0", "#dd6b20", "#38a169"), strict=False):
        places = [place for place, own in enumerate(kinds) if own == kind]
        axes.bar(places, [ratios[place] for place in places], color=color, label=kind)
    several = len(set(kinds)) > 1
    if several:
        axes.legend(fontsize=8, loc="upper right", ncols=3)
    axes.set(
        ylim=(0, 1.3 if several else 1.05),  # room for the legend
        ylabel="keep ratio",
        title=f"Best strategy: episode {best['episode']} ({best['phase']})",
    )
    step = max(1, len(names) // 40)
    shown = [name if len(name) <= _LONGEST else f"…{name[1 - _LONGEST :]}" for name in names]
    axes.set_xticks(range(0, len(names), step), shown[::step], rotation=90, fontsize=7)


def draw_finetune(
    axes: Any, epochs: Sequence[Mapping[str, Any]], before: Mapping[str, Any]
) -> None:
    """Accuracy over the epochs of a fine-tuning, on the held-out images (where there are none, on
    the training images as they are augmented), with what it was before.
    """
    x = [row["epoch"] for row in epochs]
    heldout = epochs[0]["heldout_accuracy"] is not None
    key = "heldout_accuracy" if heldout else "train_accuracy"
    levels = [100 * row[key] for row in epochs]
    label = "held-out" if heldout else "training"
    axes.plot(x, levels, ".-", color="#2b6cb0", label=label)
    if heldout:
        for key, color, label in (
            ("baseline_search_accuracy", "#38a169", "uncompressed"),
            ("search_accuracy", "#dd6b20", "before fine-tuning"),
        ):
            levels.append(100 * before[key])
            axes.axhline(levels[-1], color=color, linestyle="--", label=label)
    low, high = min(levels), max(levels)
    margin = max(0.05 * (high - low), 0.5 - (high - low) / 2)  # at least a point is shown
    axes.set_ylim(low - margin, high + margin)
    axes.set(xlabel="epoch", ylabel="accuracy (%)", title="Fine-tuning")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8)


def draw_curves(
    axes: Any, comparison: Comparison, over: Axis, colors: Mapping[str, str] | None = None
) -> None:
    """The curves of a comparison, with intervals from three seeds on; of an algorithm with hardly
    an episode, a level.

    Args:
        axes: matplotlib's.
        comparison: to draw.
        over: evaluations or seconds.
        colors: algorithm -> color, where several pictures are to agree.
    """
    scale = 100 if comparison.measure == "search_accuracy" else 1
    what = "search accuracy (%)" if scale == 100 else comparison.measure
    levels = []
    for number, band in enumerate(comparison.bands(over)):
        color = (colors or {}).get(band.label, f"C{number % 10}")
        name = f"{band.label} ({band.seeds} seed{'s' if band.seeds > 1 else ''})"
        mean, low, high = scale * band.mean, scale * band.low, scale * band.high
        if band.evaluations > HANDFUL:
            style = "-" if number < 10 else "--"
            axes.step(band.x, mean, style, where="post", color=color, linewidth=1.6, label=name)
            if band.seeds < SHADED:
                low = high = mean
            axes.fill_between(band.x, low, high, step="post", color=color, alpha=0.15, linewidth=0)
        else:
            axes.axhline(mean[-1], color=color, linestyle=":", linewidth=1.2, label=name)
        known = mean[~np.isnan(mean)]  # there is no best at first where no strategy counts
        levels += [*known[-1:], *known[len(known) // 10 :][:1]]
    levels = levels or [0.0]
    span = max(levels) - min(levels) + 1e-9
    axes.set_ylim(min(levels) - 0.1 * span, max(levels) + 0.15 * span)
    axes.set(xlabel=over, ylabel=f"{what} of the best so far")


def draw_pareto(axes: Any, found: Pareto) -> None:
    """What each agent's runs delivered over their cost, the front of all their strategies, and the
    uncompressed network.
    """
    every = [(100 * p.ratio, 100 * p.search_accuracy) for p in found.points]
    axes.plot(*zip(*every, strict=True), ".", color="0.6", markersize=2, alpha=0.5, zorder=0)
    front = [*((100 * p.ratio, 100 * p.search_accuracy) for p in found.front)]
    axes.step(*zip(*front, strict=True), where="post", color="0.75", linewidth=1, zorder=1)
    for number, curve in enumerate(found.curves()):
        handmade = curve.agent in HANDCRAFTED
        x, mean, low, high = (
            np.array([100 * getattr(part, name) for part in curve.delivered])
            for name in ("ratio", "mean", "low", "high")
        )
        seeds = max(part.seeds for part in curve.delivered)
        several = seeds > 1 and not handmade
        axes.errorbar(
            x,
            mean,
            yerr=np.nan_to_num([mean - low, high - mean]) if seeds >= SHADED else None,
            color=f"C{number % 10}",
            fmt="s--" if handmade else "o-",
            markersize=4,
            linewidth=1.1 if handmade else 1.8,
            capsize=3,
            label=f"{curve.agent} ({seeds} seeds)" if several else curve.agent,
        )
    axes.plot(100, 100 * found.accuracy, "*", color=rcParams["text.color"], markersize=14, zorder=5)
    axes.annotate(
        f"uncompressed: {100 * found.accuracy:.2f}%",
        (100, 100 * found.accuracy),
        (-10, -4),
        textcoords="offset points",
        ha="right",
    )
    original = f"{found.original:,}" if found.metric != "latency_ms" else f"{found.original:.3g}"
    axes.set(
        xlabel=f"{LABELS[found.metric]}: % of the uncompressed network's {original}",
        ylabel="search accuracy (%), before fine-tuning",
    )
    axes.grid(alpha=0.25)
    axes.legend(fontsize=9, loc="best")


def draw_picks(axes: Any, picks: Sequence[Pick]) -> None:
    """The keep ratios of what a run delivers within each budget."""
    ratios = np.array([pick.point.ratios for pick in picks])
    image = axes.imshow(ratios, aspect="auto", vmin=0, vmax=1, cmap="Blues", origin="lower")
    axes.figure.colorbar(image, ax=axes, label="keep ratio")
    axes.set_yticks(range(len(picks)), [pick.budget for pick in picks], fontsize=8)
    names = list(picks[0].point.strategy)
    step = max(1, len(names) // 20)
    axes.set_xticks(range(len(names))[::step], names[::step], rotation=90, fontsize=7)


def draw_widths(axes: Any, best: Mapping[str, Any], widths: Mapping[str, int]) -> None:
    """The width of each decided layer before and after (as figure 3 of AMC); of ranks, the part
    that is kept.

    Args:
        axes: matplotlib's.
        best: best.json.
        widths: layer -> its output channels, before.
    """
    names = [name.partition(":")[0] for name in best["strategy"]]
    before = np.array([widths.get(name, 1) for name in names])
    places = np.arange(len(names))
    axes.bar(places, before, color="#2b6cb0", alpha=0.25)
    axes.bar(places, before * np.array(best["ratios"]), color="#2b6cb0")
    axes.set(ylabel="channels")
    step = max(1, len(names) // 20)
    axes.set_xticks(places[::step], list(best["strategy"])[::step], rotation=90, fontsize=7)


def draw_seconds(axes: Any, profile: Mapping[str, float]) -> None:
    """The mean seconds an episode spends in each part."""
    parts, total = list(profile), sum(profile.values())
    axes.barh(parts, [profile[part] for part in parts], color="#2b6cb0")
    for place, part in enumerate(parts):
        axes.annotate(
            f" {profile[part] / total:.0%}", (profile[part], place), va="center", fontsize=9
        )
    axes.invert_yaxis()
    axes.set(xlabel="seconds an episode", xlim=(0, 1.2 * max(profile.values())))
