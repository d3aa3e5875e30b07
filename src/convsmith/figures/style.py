"""What all figures share: colours, axes, and saving. Draws nothing of its own.

Colours are those of Okabe and Ito (2008), which people with the common colour-vision deficiencies can tell apart; what
a colour says is also said by a line style, a marker or a word.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


BLUE, VERMILLION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#595959"


def save(figure: Figure, path: Path) -> None:
    """Writes the figure in the format of the path's ending (.png, .svg, .pdf), without a date in it."""
    dateless = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    with warnings.catch_warnings():
        # Class names in scripts that the font does not have show as boxes: no reason to alarm anyone.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(path, dpi=150, metadata=dateless.get(path.suffix))


def new_figure(width: float, height: float, layout: Literal["constrained", "compressed"] = "constrained") -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def label_axes(axes: Axes, title: str, x: str, y: str, grid: bool = True) -> None:
    axes.set(title=title, xlabel=x, ylabel=y)
    if grid:
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)


def epoch_axis(axes: Axes, epochs: Sequence[int]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))


def scaled(value: float | None, scale: float) -> float:
    return float("nan") if value is None else scale * value


def short(name: str) -> str:
    return name if len(name) <= 14 else f"{name[:13]}…"
