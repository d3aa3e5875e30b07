"""Figures of numbers along an axis: learning curves, range tests, tuning, forest plots, gradients. No images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from convsmith.figures.style import (
    BLUE,
    GREEN,
    GREY,
    VERMILLION,
    epoch_axis,
    label_axes,
    line_style,
    new_figure,
    scaled,
    short,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VERDICTS = {  # of a comparison of two arms: colour and marker
    "helps": (GREEN, "^"),
    "hurts": (VERMILLION, "v"),
    "equivalent": (BLUE, "s"),
    "no difference shown": (GREY, "o"),
}


NO_VERDICT = (GREY, "x")


def learning_curves(rows: Sequence[Mapping[str, Any]], best_epoch: int) -> Figure:
    """Loss, accuracy and learning rate by epoch, from the rows of metrics.csv.

    `best_epoch` is the epoch whose weights the run has kept, as the run recorded it. The figure marks it and never
    derives it from the rows: which epoch is best depends on `train.monitor`. If its row is lost, there is no mark.
    """
    figure = new_figure(9, 5.6)
    grid = figure.add_gridspec(2, 2, height_ratios=[2.2, 1], wspace=0.06)
    epochs = [row["epoch"] for row in rows]
    best = next((row for row in rows if row["epoch"] == best_epoch), None)
    marker = "." if len(rows) <= 60 else ""

    panels = [("loss", "Loss (cross-entropy, nats)", "{:.3f}", 1), ("accuracy", "Accuracy (%)", "{:.1f} %", 100)]
    for column, (metric, label, shown, scale) in enumerate(panels):
        axes = figure.add_subplot(grid[0, column])
        for split, name, colour, style in [
            ("train", "training", BLUE, "--"),
            ("val", "validation", VERMILLION, "-"),
        ]:
            if rows[0][f"{split}_{metric}"] is None:  # a run without val images
                continue
            values = [scaled(row[f"{split}_{metric}"], scale) for row in rows]
            axes.plot(epochs, values, style, color=colour, marker=marker, label=name)
        if best is not None and best[f"val_{metric}"] is not None:
            value = scaled(best[f"val_{metric}"], scale)
            axes.axvline(best_epoch, color=GREY, linewidth=1, linestyle=":")
            axes.plot([best_epoch], [value], "*", color=GREEN, markersize=13, markeredgecolor="white", zorder=3)
            axes.plot([], [], "*", color=GREEN, label=f"kept: epoch {best_epoch}, {shown.format(value)}")
        axes.legend(fontsize=8)
        label_axes(axes, label, "Epoch", label)
        axes.set_title(label.split(" (")[0])
        epoch_axis(axes, epochs)

    axes = figure.add_subplot(grid[1, :])
    rates = [row["learning_rate"] for row in rows]
    axes.plot(epochs, rates, color=GREEN, marker=marker)
    if best is not None:
        axes.axvline(best_epoch, color=GREY, linewidth=1, linestyle=":")
    if min(rates) > 0 and max(rates) > 30 * min(rates):
        axes.set_yscale("log")
    label_axes(axes, "Learning rate", "Epoch", "Learning rate")
    epoch_axis(axes, epochs)
    return figure


def lr_curve(rates: Sequence[float], losses: Sequence[float], suggestion: float | None = None) -> Figure:
    """Training loss (smoothed by the caller) against the learning rate of a range test (Smith 2017)."""
    figure = new_figure(6.5, 4.2)
    axes = figure.add_subplot()
    axes.plot(rates, losses, color=BLUE)
    axes.set_xscale("log")
    if suggestion is not None:
        axes.axvline(suggestion, color=VERMILLION, linestyle="--", label=f"suggested: {suggestion:.2g}")
        axes.legend()
    label_axes(axes, "Learning-rate range test", "Learning rate", "Training loss (cross-entropy, nats)")
    return figure


def forest_plot(
    rows: Sequence[tuple[str, float, float | None, float | None, str]],
    metric_label: str,
    margin: float | None = None,
    digits: int = 2,
) -> Figure:
    """Forest plot: each arm's difference from the base with its interval, from top to bottom as given.

    `rows` are (name, difference, low, high, verdict), with numbers in the unit that `metric_label` names, such as
    "accuracy (percentage points)"; an interval of None was not computed and is not drawn. The equivalence `margin` is a
    band around zero. Differences have `digits` decimal places. A verdict is shown by colour, marker and word; one that
    is not in `VERDICTS` is grey.
    """
    assert rows, "no arms"
    figure = new_figure(8.5, 1.5 + 0.38 * len(rows))
    axes = figure.add_subplot()
    if margin is not None:
        axes.axvspan(-margin, margin, color=BLUE, alpha=0.12, linewidth=0)
    axes.axvline(0, color="black", linewidth=1)
    for at, (_, difference, low, high, verdict) in enumerate(rows):
        colour, marker = VERDICTS.get(verdict, NO_VERDICT)
        if low is not None and high is not None:
            axes.plot([low, high], [at, at], color=colour, linewidth=2, solid_capstyle="butt")
        edge = colour if marker == "x" else "white"
        axes.plot([difference], [at], marker, color=colour, markersize=8, markeredgecolor=edge)
    band = "" if margin is None else f" (band: equivalence margin, ±{margin:g})"
    label_axes(axes, f"Difference from the base{band}", f"Difference in {metric_label}", "")
    axes.set_ylim(len(rows) - 0.5, -0.5)
    names = [short(name) for name, *_ in rows]
    axes.set_yticks(range(len(rows)), names, parse_math=False)
    beside = axes.secondary_yaxis("right")
    beside.set_yticks(
        range(len(rows)), [f"{difference:+.{digits}f}  {verdict}" for _, difference, _, _, verdict in rows]
    )
    for side in (axes, beside):
        side.tick_params(axis="y", length=0)
    beside.spines["right"].set_visible(False)
    return figure


def history_figure(trials: Sequence[tuple[int, float, bool]], metric: str, minimize: bool = False) -> Figure:
    """The trials of a tuning study by number, and the best complete one so far.

    `trials` are (number, value of `metric`, pruned), by number. The value of a pruned trial is that of its last epoch.
    """
    assert trials, "no trials"
    figure = new_figure(6.5, 4.2)
    axes = figure.add_subplot()
    for pruned, marker, colour, name in [(False, "o", BLUE, "complete"), (True, "x", GREY, "pruned")]:
        points = [(number, value) for number, value, given_up in trials if given_up is pruned]
        if points:
            axes.plot(*zip(*points, strict=True), marker, color=colour, label=f"{name} ({len(points)})")
    complete = [(number, value) for number, value, given_up in trials if not given_up]
    if complete:
        best = (np.minimum if minimize else np.maximum).accumulate([value for _, value in complete])
        numbers = [number for number, _ in complete]
        axes.step([*numbers, trials[-1][0]], [*best, best[-1]], where="post", color=VERMILLION, label="best so far")
    axes.legend(fontsize=8)
    label_axes(axes, "Tuning: trial by trial", "Trial", metric)
    epoch_axis(axes, [number for number, *_ in trials])
    return figure


def importance_figure(importances: Mapping[str, float], metric: str) -> Figure:
    """Bars of the share (0 to 1) of the variance of `metric` that each parameter explains, in the order given."""
    assert importances, "no parameters"
    figure = new_figure(6.5, 1.5 + 0.38 * len(importances))
    axes = figure.add_subplot()
    shares = [100 * share for share in importances.values()]
    bars = axes.barh(range(len(shares)), shares, color=BLUE)
    axes.bar_label(bars, [f"{share:.0f} %" for share in shares], padding=3, fontsize=9)
    axes.set_yticks(range(len(shares)), list(importances), parse_math=False)
    axes.set_ylim(len(shares) - 0.5, -0.5)
    axes.set_xlim(0, 1.12 * max(shares))
    label_axes(axes, "Importance of the tuned parameters", f"Share of the variance of {metric} (%)", "")
    return figure


def gradient_figure(series: Mapping[str, Sequence[float]], title: str) -> Figure:
    """Root mean square of the gradient of the weights by layer, from the first on: one line per net, logarithmic."""
    figure = new_figure(8.5, 4.0)
    axes = figure.add_subplot()
    for number, (name, values) in enumerate(series.items()):
        axes.plot(range(1, len(values) + 1), values, label=name, **line_style(number, marker=True))
    axes.set_yscale("log")
    label_axes(axes, title, "layer, counted from the image", "gradient (root mean square)")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
    return figure
