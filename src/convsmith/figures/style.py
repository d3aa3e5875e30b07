"""What all figures share: colours, line styles, axes and saving. There are no figures here.

The colours are those of Okabe and Ito (2008), which people with the common colour-vision deficiencies can distinguish;
whatever a colour means is also shown by a line style, a marker or a word.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from convsmith.files import write_bytes
from convsmith.terminal import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILLION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#595959"
COLOURS = (BLUE, VERMILLION, GREEN, "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", "--", "-.", ":", (0, (6, 1)), (0, (3, 1, 1, 1)))
MARKERS = "osD^vP"
LONGEST = 40  # characters of a name beside an axis


def line_style(index: int, marker: bool = False) -> dict[str, Any]:
    """Colour, dash (and marker) of line `index` of a figure. No two of the first 36 lines look alike."""
    turn, at = divmod(index, len(COLOURS))
    shifted = (at + turn) % len(DASHES)  # each round pairs the colours with other dashes
    style: dict[str, Any] = {"color": COLOURS[at], "linestyle": DASHES[shifted]}
    return style | {"marker": MARKERS[shifted]} if marker else style


def literal(name: str) -> str:
    """A name as the label of a line: matplotlib would read dollar signs as a formula, and hide what begins with _."""
    return (" " if name.startswith("_") else "") + visible(name).replace("$", r"\$")


def short(name: str) -> str:
    """A name that is data beside an axis, which leaves room for the axis."""
    return visible(start_of(name, LONGEST))


def start_of(name: str, most: int) -> str:
    """A name of at most `most` characters, with an ellipsis for what is cut off."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def save(figure: Figure, path: Path) -> None:
    """Write the figure in the format of the path's suffix (.png, .svg, .pdf), the same bytes each time."""
    from matplotlib import rc_context

    dateless = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    buffer = io.BytesIO()
    with _any_script(), rc_context({"svg.hashsalt": "convsmith"}):  # without a salt the ids in an SVG are random
        figure.savefig(buffer, format=path.suffix[1:], dpi=150, metadata=dateless.get(path.suffix))
    write_bytes(path, buffer.getvalue())


def png_of(figure: Figure) -> bytes:
    """The figure as a PNG."""
    buffer = io.BytesIO()
    with _any_script():
        figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


@contextmanager
def _any_script() -> Iterator[None]:
    """A context without warnings about scripts that the font lacks, whose characters are drawn as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


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
