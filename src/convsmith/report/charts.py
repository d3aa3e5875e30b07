"""Line charts as inline SVG, which take their colours from the page and so adapt to light, dark and print.

The classes `line0`, `line1`, ... of the stylesheet give each line its own colour and dash.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 440, 270
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 26, 42
DOT = 2.6  # radius
MOST_DOTS = 60  # points up to which each has a dot
MARK_ROWS = 5  # rows above the chart for the labels of marks, so that neighbours do not overlap
MARK_HEIGHT = 13
KINDS = 8

Point = tuple[float, float | None]


@dataclass(frozen=True)
class Line:
    """Points (x, y) from left to right; a y of None is a gap. `kind` is the number of its colour and dash.

    `weights` (default: all equal) give the area of each point's dot; then no y may be None. `band` is an area around
    the line, as (x, low, high). Points that are not `joined` are dots alone, and those that are not `dotted` a line
    alone; `label` stands beside the last one. `hollow` dots are told from others without a colour.
    """

    name: str
    kind: int
    points: Sequence[Point]
    weights: Sequence[float] | None = None
    band: Sequence[tuple[float, float, float]] = ()
    joined: bool = True
    dotted: bool = True
    hollow: bool = False
    label: str = ""


@dataclass(frozen=True)
class Mark:
    """A vertical line at `x` with a label."""

    x: float
    word: str


@dataclass(frozen=True)
class Axes:
    """The labels of x and y, each with its unit, and the format of numbers."""

    x: str
    y: str
    percent: bool = False
    logarithmic: bool = False
    whole_x: bool = True
    y_range: tuple[float, float] | None = None
    logarithmic_x: bool = False


def line_chart(title: str, description: str, axes: Axes, lines: Sequence[Line], marks: Sequence[Mark] = ()) -> Markup:
    """An SVG with the lines, axes and marks; `title` and `description` are for screen readers."""
    xs = [x for line in lines for x, _ in line.points] or [0.0, 1.0]
    ys = [y for line in lines for _, y in _drawn(line, axes)] or [0.0, 1.0]
    ys += [end for line in lines for _, *ends in line.band for end in ends]
    x_ticks = _decades(min(xs), max(xs)) if axes.logarithmic_x else ticks(min(xs), max(xs), 6, whole=axes.whole_x)
    if axes.logarithmic_x and sum(min(xs) <= tick <= max(xs) for tick in x_ticks) < 2:
        x_ticks = sorted({min(xs), max(xs)})
    y_ticks = _decades(min(ys), max(ys)) if axes.logarithmic else ticks(*(axes.y_range or (min(ys), max(ys))), 5)
    low, high = min([*y_ticks, *ys]), max([*y_ticks, *ys])
    ends = [math.log(x) if axes.logarithmic_x else x for x in (min(xs), max(xs))]
    across = scale(ends[0], ends[1], LEFT, WIDTH - RIGHT)
    rising = scale(math.log(low), math.log(high), HEIGHT - BOTTOM, TOP) if axes.logarithmic else None
    plain = scale(low, high, HEIGHT - BOTTOM, TOP)

    def to_x(value: float) -> float:
        return across(math.log(value) if axes.logarithmic_x else value)

    def to_y(value: float) -> float:
        return rising(math.log(value)) if rising else plain(value)

    above = MARK_HEIGHT * max(0, min(len(marks), MARK_ROWS) - 1)  # every chart has room for the first row
    parts = [
        Markup('<svg class="chart" viewBox="0 {} {} {}" role="img"><title>{}</title><desc>{}</desc>').format(
            -above, WIDTH, HEIGHT + above, title, description
        )
    ]
    for tick in y_ticks:
        height = f"{to_y(tick):.1f}"
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(LEFT, WIDTH - RIGHT, height, height)
        )
        word = f"{100 * tick:g}" if axes.percent else f"{tick:g}"
        parts.append(Markup('<text class="y" x="{}" y="{}" dy="0.35em">{}</text>').format(LEFT - 7, height, word))
    for tick in x_ticks:
        if min(xs) <= tick <= max(xs):
            parts.append(text_at("x", to_x(tick), HEIGHT - BOTTOM + 18, f"{tick:.3g}"))
    parts.append(text_at("x label", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, axes.x))
    drawn = [
        part
        for place, mark in enumerate(marks)
        for part in _mark(mark, to_x(mark.x), TOP - 6 - MARK_HEIGHT * (place % MARK_ROWS))
    ]
    parts += sorted(drawn, key=lambda part: part.startswith("<text"))  # words over lines
    parts += [_band(line, to_x, to_y) for line in lines if line.band]
    for line in lines:
        parts += _line(line, to_x, to_y, axes)
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


def _line(line: Line, to_x: Callable[[float], float], to_y: Callable[[float], float], axes: Axes) -> Iterator[Markup]:
    known = _drawn(line, axes)
    path, pen_down = [], False
    for x, y in line.points:
        if y is None or (axes.logarithmic and y <= 0):
            pen_down = False
            continue
        path.append(f"{'L' if pen_down else 'M'}{to_x(x):.1f} {to_y(y):.1f}")
        pen_down = True
    if line.joined:
        yield Markup('<path class="line line{}" d="{}"/>').format(line.kind, "".join(path))
    if line.label and known:
        x, y = (to(end) for to, end in zip((to_x, to_y), known[-1], strict=True))
        right = x > (LEFT + WIDTH - RIGHT) / 2
        yield text_at("mark end" if right else "mark", x - 5 if right else x + 5, y - 5, line.label)
    if line.dotted and (not line.joined or len(known) <= MOST_DOTS):
        for (x, y), radius in zip(known, _radii(line, len(known)), strict=True):
            value = f"{100 * y:.2f}%" if axes.percent else f"{y:.4g}"
            words = f"{line.name}, {axes.x.split(' (')[0]} {x:.4g}: {value}"
            yield Markup('<circle class="{} line{}" cx="{}" cy="{}" r="{}"><title>{}</title></circle>').format(
                "hollow" if line.hollow else "dot",
                line.kind,
                f"{to_x(x):.1f}",
                f"{to_y(y):.1f}",
                f"{radius:.1f}",
                words,
            )


def _band(line: Line, to_x: Callable[[float], float], to_y: Callable[[float], float]) -> Markup:
    lower = [(x, low) for x, low, _ in line.band]
    upper = [(x, high) for x, _, high in reversed(line.band)]
    corners = " ".join(f"{to_x(x):.1f},{to_y(y):.1f}" for x, y in (*lower, *upper))
    return Markup('<polygon class="band line{}" points="{}"/>').format(line.kind, corners)


def _radii(line: Line, count: int) -> list[float]:
    """The radii of the dots: areas in proportion to the weights, but none too small to be seen."""
    if line.weights is None:
        return [DOT] * count
    return [max(1.5, 8 * math.sqrt(weight / max(line.weights))) for weight in line.weights]


def _drawn(line: Line, axes: Axes) -> list[tuple[float, float]]:
    """The points that can be drawn: a logarithmic axis needs y above 0."""
    return [(x, y) for x, y in line.points if y is not None and (y > 0 or not axes.logarithmic)]


def _mark(mark: Mark, x: float, y: float) -> Iterator[Markup]:
    yield Markup('<line class="mark" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(f"{x:.1f}", y, HEIGHT - BOTTOM)
    right = x > (LEFT + WIDTH - RIGHT) / 2
    yield text_at("mark end" if right else "mark", x - 4 if right else x + 4, y, mark.word)


def text_at(kind: str, x: float, y: float, words: str) -> Markup:
    return Markup('<text class="{}" x="{}" y="{}">{}</text>').format(kind, f"{x:.1f}", f"{y:.1f}", words)


def scale(low: float, high: float, first: float, last: float) -> Callable[[float], float]:
    """A linear map from [low, high] to [first, last]; to the middle if low equals high."""
    if high == low:
        return lambda value: (first + last) / 2
    return lambda value: first + (value - low) / (high - low) * (last - first)


def ticks(low: float, high: float, most: int, whole: bool = False) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, about `most` of them."""
    span = (high - low) or abs(high) or 1.0
    raw = span / most
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw * 0.999)
    if whole:
        step = max(1.0, step)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{number * step:.10g}") for number in range(first, last + 1)]


def _decades(low: float, high: float) -> list[float]:
    return [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
