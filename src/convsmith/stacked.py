"""A table for a terminal of any width: what finds no room in columns stands under its row, and nothing is cut.

Used where the cells of a row differ much in length: an arm with what it changes, a run with its settings.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

from convsmith.display import Display, folded, table_of
from convsmith.terminal import visible

GAP = 2  # blanks between columns, and before what stands under a row
GLUE = "\ue000"  # in place of a blank at which no line ends; visible text has no such character
LEAST = 12  # columns of names: a longer one gets a line of its own

Rows = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class _Column:
    heading: str
    width: int
    in_words: bool  # on the left, and in several lines where it is too narrow


def show(
    display: Display,
    rows: Rows,
    first: Sequence[str],
    words: Collection[str] = (),
    under: Collection[str] = (),
    wide: bool = False,
) -> None:
    """Show `rows`, all with the same headings, of which the first one names the row.

    If all of it fits into the terminal, or with `wide`, it is one table. Otherwise the columns of `first` get their
    place in this order, as far as there is room; what is left stands under its row, each value behind its heading, and
    those of `under`, which explain themselves, without one. Columns of `words` may have several lines. Headings and
    cells may be names.
    """
    whole = table_of({name: [row[name] for row in rows] for name in rows[0]})
    natural = display.natural_width(whole)
    if wide or natural <= display.console.width:
        before, display.console.width = display.console.width, max(natural, display.console.width)
        display.console.print(whole)
        display.console.width = before
        return
    for line in lines(rows, display.console.width, first, words, under):
        display.console.print(Text(line.rstrip()))


def lines(
    rows: Rows, width: int, first: Sequence[str], words: Collection[str] = (), under: Collection[str] = ()
) -> Iterator[str]:
    """The lines of `show` where the table does not fit into `width` columns."""
    columns = _columns(rows, width, first, words)
    names = [column.heading for column in columns]
    yield from _line(columns, names)
    for row in rows:
        title = visible(row[names[0]])
        fits = cell_len(title) <= columns[0].width
        if not fits:
            yield from folded(title, width)
        yield from _line(columns, ["" if name == names[0] and not fits else visible(row[name]) for name in names])
        rest = {name: cell for name, cell in row.items() if name not in names and cell}
        for name in under:
            if name in rest:
                yield from _under(visible(rest.pop(name)), width)
        if rest:
            told = (f"{name} {visible(cell)}".replace(" ", GLUE) for name, cell in rest.items())
            yield from _under("  ".join(told), width)


def _columns(rows: Rows, width: int, first: Sequence[str], words: Collection[str]) -> list[_Column]:
    """The columns that fit, in the order of the rows' headings."""
    title, *headings = rows[0]
    taken: dict[str, int] = {}
    natural = max(_longest(title, rows), _longest_word(title))
    left = width - min(LEAST, natural)
    for name in first:
        cells = _longest(name, rows)
        widths = (cells, _in_two_lines(name, rows)) if name in words else (cells,)
        needed = next((w for w in (max(w, _longest_word(name)) + GAP for w in widths) if w <= left), None)
        if needed is None:
            break
        taken[name] = needed - GAP
        left -= needed
    of_names = width - sum(taken.values()) - GAP * len(taken)
    return [
        _Column(title, min(of_names, natural), in_words=True),
        *(_Column(name, taken[name], name in words) for name in headings if name in taken),
    ]


def _longest(name: str, rows: Rows) -> int:
    return max(cell_len(visible(row[name])) for row in rows)


def _longest_word(text: str) -> int:
    return max(map(cell_len, visible(text).split()), default=0)


def _in_two_lines(name: str, rows: Rows) -> int:
    """The least width at which no cell needs more than two lines, and no word is broken."""
    cells = [row[name] for row in rows]
    width = max(map(_longest_word, cells))
    while any(len(folded(cell, width)) > 2 for cell in cells):
        width += 1
    return width


def _line(columns: Sequence[_Column], cells: Sequence[str]) -> Iterator[str]:
    """A row; a cell of several lines makes it several lines high."""
    parted = [folded(cell, column.width) for cell, column in zip(cells, columns, strict=True)]
    for at in range(max(map(len, parted))):
        parts = []
        for column, cell in zip(columns, parted, strict=True):
            text = cell[at] if at < len(cell) else ""
            blanks = " " * (column.width - cell_len(text))
            parts.append(text + blanks if column.in_words else blanks + text)
        yield (" " * GAP).join(parts)


def _under(text: str, width: int) -> Iterator[str]:
    for number, line in enumerate(folded(text, width - 2 * GAP)):
        yield " " * (2 * GAP if number else GAP) + line.replace(GLUE, " ")
