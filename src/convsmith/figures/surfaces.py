"""Figures of a loss on planes in weight space, with the optimiser's path. The losses are computed elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from convsmith.figures.style import GREY, VERMILLION, label_axes, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEVELS = 24
CROWDED = 0.04  # of a plane's side: points nearer than this to a labelled one get no label


@dataclass(frozen=True)
class PathPoint:
    """A point on the optimiser's path: its position in the plane, and whether it is the solution."""

    name: str
    x: float
    y: float
    solution: bool


@dataclass(frozen=True, eq=False)
class Surface:
    """`loss` float [Y, X] in nats at the points `ys` x `xs` of a plane, and the path in it."""

    title: str
    x_label: str
    y_label: str
    xs: NDArray[np.float64]
    ys: NDArray[np.float64]
    loss: NDArray[np.float64]
    path: tuple[PathPoint, ...]


def landscape_figure(surfaces: Sequence[Surface], note: str) -> Figure:
    """The surfaces side by side as contours of the loss on a logarithmic scale, with path and solution."""
    from matplotlib.colors import LogNorm

    figure = new_figure(6.2 * len(surfaces), 5.6)
    figure.suptitle(f"Loss landscape: {note}", fontsize=11, parse_math=False)
    for axes, surface in zip(figure.subplots(1, len(surfaces), squeeze=False)[0], surfaces, strict=True):
        low = max(float(surface.loss.min()), 1e-6)
        high = max(float(surface.loss.max()), 1.01 * low)
        levels = np.geomspace(low, high * 1.0001, LEVELS)
        drawn = np.clip(surface.loss, low, high)
        filled = axes.contourf(surface.xs, surface.ys, drawn, levels=levels, cmap="viridis", norm=LogNorm(low, high))
        axes.contour(surface.xs, surface.ys, drawn, levels=levels[::3], colors="white", linewidths=0.4)
        bar = figure.colorbar(filled, ax=axes, shrink=0.8, label="loss (cross-entropy, nats; logarithmic)")
        ticks = np.geomspace(low, high, 6)
        bar.set_ticks(list(ticks), labels=[f"{tick:.2g}" for tick in ticks])
        bar.minorticks_off()
        _path(axes, surface)
        axes.set_aspect("equal")
        label_axes(axes, surface.title, surface.x_label, surface.y_label, grid=False)
    return figure


def _path(axes: Axes, surface: Surface) -> None:
    from matplotlib.patheffects import withStroke

    xs, ys = [stop.x for stop in surface.path], [stop.y for stop in surface.path]
    axes.plot(xs, ys, "-o", color="white", markeredgecolor="black", linewidth=2, markersize=5, zorder=3)
    for stop in surface.path:
        if stop.solution:
            axes.plot([stop.x], [stop.y], "*", color=VERMILLION, markeredgecolor="white", markersize=17, zorder=4)
    ends = [stop for at, stop in enumerate(surface.path) if stop.solution or at in (0, len(xs) - 1)]
    named = list(ends)
    for stop in surface.path:
        # Where epochs crowd together, as they do at the end, the first of them is labelled.
        if all(math.hypot(stop.x - other.x, stop.y - other.y) > CROWDED * np.ptp(surface.xs) for other in named):
            named.append(stop)
            axes.annotate(
                stop.name.removeprefix("epoch "),
                (stop.x, stop.y),
                xytext=(4, 5),
                textcoords="offset points",
                fontsize=7,
                color="white",
                path_effects=[withStroke(linewidth=2, foreground="black")],
                zorder=4,
            )
    box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": GREY, "linewidth": 0.5, "alpha": 0.85}
    width = float(np.ptp(surface.xs))
    placed: list[tuple[float, int]] = []  # (x, side) of the names so far
    for number, stop in enumerate(reversed(ends)):
        # On the side with less of the path; the labels of neighbouring points are stacked.
        near = [other for other in surface.path if abs(other.x - stop.x) < 0.3 * width]
        side = -1 if sum(other.y - stop.y for other in near) >= 0 else 1
        stacked = sum(other == side and abs(x - stop.x) < 0.25 * width for x, other in placed)
        placed.append((stop.x, side))
        axes.annotate(
            stop.name,
            (stop.x, stop.y),
            xytext=(0, side * (22 + 23 * stacked)),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
            bbox=box,
            arrowprops={"arrowstyle": "-", "color": "white", "linewidth": 0.8},
            zorder=5 + number,
        )
