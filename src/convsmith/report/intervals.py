"""Charts of values with their intervals, a row each, and histograms: inline SVG, as the charts of `charts`.

A row has its name and its number above its interval, so that it can be read on a phone too. What a colour means is also
a shape and a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from convsmith.figures.style import start_of
from convsmith.report.charts import LEFT, RIGHT, TOP, WIDTH, scale, text_at, ticks

ROW = 38  # height of a row
MARK = 5.5  # half the size of a marker
EDGE = 16  # beside the rows
FOOT = 40  # for the numbers and the label of the axis
NAME = 36  # characters of a row's name
HISTOGRAM = 190  # height

#: The shape of a value's marker by its kind, as a path around (0, 0); the stylesheet colours kinds.
SHAPES = {
    "helps": f"M0 {-MARK}L{MARK} {MARK}L{-MARK} {MARK}Z",
    "hurts": f"M0 {MARK}L{MARK} {-MARK}L{-MARK} {-MARK}Z",
    "equivalent": f"M{-MARK} {-MARK}H{MARK}V{MARK}H{-MARK}Z",
    "unclear": f"M{-MARK} 0A{MARK} {MARK} 0 1 0 {MARK} 0A{MARK} {MARK} 0 1 0 {-MARK} 0Z",
}


@dataclass(frozen=True)
class Row:
    """A value with its interval, and what it was averaged from as `dots`; `word` tells the value and what it means."""

    name: str
    word: str
    value: float | None
    interval: tuple[float, float] | None = None
    kind: str = "unclear"
    dots: Sequence[float] = ()


def interval_chart(
    title: str, label: str, rows: Sequence[Row], zero: float | None = 0.0, margin: float | None = None
) -> Markup:
    """An SVG with a row for each of `rows`, from top to bottom, over an axis with this label.

    A line is drawn at `zero`, and a band at `margin` either way of it. Screen readers are told each row.
    """
    ends = [end for row in rows for end in (row.value, *(row.interval or ()), *row.dots) if end is not None]
    ends += [] if zero is None else [zero]
    ends += [] if margin is None or zero is None else [zero - margin, zero + margin]
    marks = ticks(min(ends, default=0.0), max(ends, default=1.0), 5)
    to_x = scale(min([*marks, *ends]), max([*marks, *ends]), EDGE, WIDTH - EDGE)
    bottom = ROW * len(rows) + 4
    said = "; ".join(f"{row.name}: {row.word}" for row in rows)
    parts = [
        Markup('<svg class="chart" viewBox="0 0 {} {}" role="img"><title>{}</title><desc>{}</desc>').format(
            WIDTH, bottom + FOOT, title, f"{label}. {said}."
        )
    ]
    if margin is not None and zero is not None:
        left, right = to_x(zero - margin), to_x(zero + margin)
        parts.append(
            Markup('<rect class="within" x="{}" y="0" width="{}" height="{}"/>').format(
                f"{left:.1f}", f"{right - left:.1f}", bottom
            )
        )
    for tick in marks:
        kind = "grid zero" if tick == zero else "grid"
        parts.append(
            Markup('<line class="{0}" x1="{1}" x2="{1}" y1="0" y2="{2}"/>').format(kind, f"{to_x(tick):.1f}", bottom)
        )
        parts.append(text_at("x", to_x(tick), bottom + 15, f"{tick:g}"))
    parts.append(text_at("x label", WIDTH / 2, bottom + FOOT - 7, label))
    for number, row in enumerate(rows):
        at = [None if end is None else to_x(end) for end in (row.value, *(row.interval or ()))]
        parts += _row(row, ROW * number, at, [to_x(dot) for dot in row.dots])
    return Markup("").join([*parts, Markup("</svg>")])


def _row(row: Row, top: float, ends: Sequence[float | None], dots: Sequence[float]) -> Iterator[Markup]:
    middle = top + 26
    yield Markup('<text class="name" x="{}" y="{}">{}<title>{}</title></text>').format(
        EDGE, top + 14, start_of(row.name, NAME), row.name
    )
    yield text_at("end", WIDTH - EDGE, top + 14, row.word)
    for dot in dots:
        yield Markup('<circle class="draw" cx="{}" cy="{}" r="2.2"/>').format(f"{dot:.1f}", f"{middle:.1f}")
    value, *interval = ends
    if interval:
        low, high = (f"{end:.1f}" for end in interval)
        yield Markup('<line class="interval {0}" x1="{1}" x2="{2}" y1="{3}" y2="{3}"/>').format(
            row.kind, low, high, middle
        )
    if value is not None:
        yield Markup('<path class="marker {}" transform="translate({} {})" d="{}"/>').format(
            row.kind, f"{value:.1f}", middle, SHAPES[row.kind]
        )


def histogram(
    title: str, label: str, description: str, edges: Sequence[float], counts: Sequence[int], higher_is_better: bool
) -> Markup:
    """An SVG of bars between `edges`; the heights are the `counts`, of images. Zero parts what is better and worse."""
    heights = ticks(0, max(*counts, 1), 4, whole=True)
    to_x, to_y = scale(edges[0], edges[-1], LEFT, WIDTH - RIGHT), scale(0, heights[-1], HISTOGRAM - FOOT, TOP / 2)
    parts = [
        Markup('<svg class="chart" viewBox="0 0 {} {}" role="img"><title>{}</title><desc>{}</desc>').format(
            WIDTH, HISTOGRAM, title, description
        )
    ]
    for tick in heights:
        level = f"{to_y(tick):.1f}"
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(LEFT, WIDTH - RIGHT, level, level)
        )
        parts.append(Markup('<text class="y" x="{}" y="{}" dy="0.35em">{}</text>').format(LEFT - 7, level, int(tick)))
    for (low, high), count in zip(pairwise(edges), counts, strict=True):
        kind = "helps" if ((low + high) / 2 > 0) == higher_is_better else "hurts"
        left, right, height = to_x(low) + 0.5, to_x(high) - 0.5, to_y(count)
        parts.append(
            Markup('<rect class="bar {}" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>').format(
                kind,
                f"{left:.1f}",
                f"{height:.1f}",
                f"{right - left:.1f}",
                f"{to_y(0) - height:.1f}",
                f"{low:.3g} to {high:.3g}: {count:,} images",
            )
        )
    for tick in ticks(edges[0], edges[-1], 6):
        if edges[0] <= tick <= edges[-1]:
            parts.append(text_at("x", to_x(tick), HISTOGRAM - FOOT + 16, f"{tick:g}"))
    parts.append(text_at("x label", (LEFT + WIDTH - RIGHT) / 2, HISTOGRAM - 6, label))
    return Markup("").join([*parts, Markup("</svg>")])
