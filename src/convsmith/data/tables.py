"""Tables that people write beside their images: CSV and TSV files, and data frames kept as such. Opens no images."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

from convsmith.errors import UserError, choose, first_line
from convsmith.files import as_csv, open_file, write_text

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}
SUFFIXES = (".csv", ".tsv")
LARGEST = 2**29  # bytes; a table of a million images has about 50 MB
HEAD = 100  # rows by which columns are found

#: What columns are called, in small letters without blanks, hyphens and underscores.
IMAGE_NAMES = frozenset(
    "id image images imageid imagename imagepath imagefile img imgid imgpath path file filename filepath".split()
)

Row = tuple[int, tuple[str, ...]]  # the line of the file on which it ends, and its cells


class Table:
    """The rows of a table of text. `what` names it in messages, for example ``data.labels 'labels.csv'``.

    The first line names the columns; they are separated by commas, semicolons or tabs, whichever the first line has.
    Raises UserError where that is not so, and `rows` where a row does not fit.
    """

    def __init__(self, what: str, content: bytes) -> None:
        self.what = what
        self._content = content
        try:
            content.decode("utf-8-sig")  # -sig: spreadsheets write a byte order mark
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise UserError(f"{what} is not UTF-8 (line {line}): save it as UTF-8") from None
        headers = {delimiter: self._header(delimiter) for delimiter in DELIMITERS}
        if not any(headers.values()):
            next(self._parsed(","), None)  # raises the error for a first line that cannot be read
            raise UserError(f"{what} is empty: give a table whose first line names its columns")
        longest = max(map(len, headers.values()))
        fitting = [delimiter for delimiter, header in headers.items() if len(header) == longest]
        self._delimiter = fitting[0]
        self.columns = headers[self._delimiter]
        if longest == 1:
            raise UserError(
                f"{what} has one column, '{self.columns[0]}': separate columns by commas, semicolons or tabs"
            )
        if len(fitting) > 1:
            seen = " and ".join(DELIMITERS[delimiter] for delimiter in fitting)
            raise UserError(f"{what} may be separated by {seen}: put column names that hold one into double quotes")

    def _header(self, delimiter: str) -> list[str]:
        try:
            row = next((row for _, row in self._parsed(delimiter) if any(row)), [])
        except UserError:
            return []
        return [name.strip() for name in row]

    def _parsed(self, delimiter: str) -> Iterator[tuple[int, list[str]]]:
        file = io.TextIOWrapper(io.BytesIO(self._content), "utf-8-sig", newline="")
        # strict: a quote that is never closed would make one cell of all that follows
        reader = csv.reader(file, delimiter=delimiter, skipinitialspace=delimiter != "\t", strict=True)
        try:
            for row in reader:
                yield reader.line_num, row
        except csv.Error as error:
            raise UserError(f"{self.what} cannot be read as a table: line {reader.line_num}: {error}") from None

    def rows(self, *columns: str) -> Iterator[Row]:
        """The cells of two or more `columns` in each row, without blanks around them; '' where a short row has none."""
        width, cells_of = len(self.columns), itemgetter(*map(self._place, columns))
        rows = ((line, row) for line, row in self._parsed(self._delimiter) if any(row))
        for line, row in islice(rows, 1, None):
            if len(row) > width:
                raise UserError(
                    f"{self.what} has {len(row)} cells in line {line}, but {width} columns: put cells that hold a "
                    f"{DELIMITERS[self._delimiter]} into double quotes"
                )
            if len(row) < width:
                row += [""] * (width - len(row))
            yield line, tuple(map(str.strip, cells_of(row)))

    def _place(self, column: str) -> int:
        if self.columns.count(column) > 1:
            raise UserError(f"{self.what} has {self.columns.count(column)} columns '{column}': rename all but one")
        return self.columns.index(column)

    def cells(self, column: str) -> Iterator[str]:
        """The cells of a column in all rows."""
        return (cell for _, (cell, _) in self.rows(column, column))

    def head(self, column: str) -> list[str]:
        """The first cells of a column that are not empty."""
        return [cell for cell in islice(self.cells(column), HEAD) if cell]

    def named(self, key: str, column: str) -> str:
        """The column that a setting names. Raises UserError that lists all, if there is none of that name."""
        if column not in self.columns:
            raise choose(f"{key}: in {self.what} the column", column, self.columns)
        return column

    def by_names(self, names: frozenset[str]) -> list[str]:
        """The columns with one of these names, however they are written."""
        return [column for column in self.columns if plain(column) in names]

    def image_column(self, key: str, named: str | None, names: Names) -> str:
        """The column that says which image a row is about: `named`, or found by its name and by its cells."""
        known = self.by_names(IMAGE_NAMES)
        if any(names.knows(column) for column in self.columns if column not in known):
            raise UserError(
                f"the first line of {self.what} is about an image, {', '.join(self.columns)}: write a line with the "
                f"names of the columns above it, such as image{self._delimiter}label"
            )
        if named is not None:
            return self.named(key, named)
        if len(known) == 1:
            return known[0]
        fitting = [column for column in known or self.columns if self.columns.count(column) == 1]
        fitting = [column for column in fitting if any(map(names.knows, self.head(column)))]
        if len(fitting) == 1:
            return fitting[0]
        listed = ", ".join(fitting or known or self.columns)
        if len(fitting) > 1:
            raise UserError(f"{self.what} has several columns that may name the images: set --{key} to one of {listed}")
        raise UserError(
            f"no column of {self.what} names images of {names.where}: its columns are {listed}, its first row is "
            f"{self._first_row()}; set --{key}, or correct the names"
        )

    def _first_row(self) -> str:
        row = next((row for _, row in islice(self._parsed(self._delimiter), 1, None) if any(row)), [])
        return ", ".join(f"'{cell}'" for cell in row) or "missing"


def plain(column: str) -> str:
    """A column's name in small letters, without blanks, hyphens and underscores."""
    return "".join(letter for letter in column.casefold() if letter.isalnum())


def only_other(table: Table, what: str, advice: str, names: frozenset[str], taken: Sequence[str | None]) -> str:
    """The column of `what` (such as 'labels'): the one with one of `names`, or the only one that is not `taken`."""
    known = [column for column in table.by_names(names) if column not in taken]
    others = known or [column for column in table.columns if column and column not in taken]
    if len(others) == 1:
        return others[0]
    if others:
        raise UserError(f"{table.what} has several columns that may hold the {what}: {advice} {', '.join(others)}")
    raise UserError(f"{table.what} has no column for the {what}: its columns are {', '.join(table.columns)}")


class Names:
    """Finds images by what a table calls them. `where` names their folder in messages.

    `paths` are the images' relative POSIX paths below `root`, or their ids where they lie in no folder. A cell is such
    a path, a path relative to the table's folder `beside` or to the folder that `root` lies in, or the end of one path
    alone (a file's name, wherever it lies), each with or without the suffix.
    """

    def __init__(self, where: str, paths: Sequence[str], root: Path | None = None, beside: Path | None = None) -> None:
        self.where = where
        self._paths = paths
        self._root = None if root is None else Path(os.path.abspath(root))
        self._bases = [self._root, beside, self._root.parent] if self._root else []
        self._exact = {path: row for row, path in enumerate(paths)}

    @cached_property
    def _by_name(self) -> _Rows:
        return _Rows([_name(path) for path in self._paths])

    @cached_property
    def _by_stem(self) -> _Rows:
        return _Rows([_stem(_name(path)) for path in self._paths])

    def knows(self, cell: str) -> bool:
        """Whether a cell may name an image."""
        try:
            return self.find(cell) is not None
        except UserError:
            return False

    def find(self, cell: str) -> int | None:
        """The number of the image that a cell names; None if there is none.

        Raises UserError if several images may be meant, or if it names a file outside the folder.
        """
        if (row := self._exact.get(cell)) is not None:
            return row
        path = cell
        if "/" in cell or "\\" in cell or cell.startswith("."):
            path = posixpath.normpath(cell.replace("\\", "/"))
            if (row := self._exact.get(path)) is not None:
                return row
            for base in self._bases:
                if base is not None and (row := self._exact.get(self._below(base, path))) is not None:
                    return row
            if path == ".." or path.startswith(("../", "/")):
                raise UserError(f"'{cell}' lies outside {self.where}: give paths below it")
        name = _name(path)
        if "." in name and name in self._by_name.last:
            return self._one_of(cell, path, self._by_name.all(name), str)
        return self._one_of(cell, path, self._by_stem.all(name), _stem) if name in self._by_stem.last else None

    def _one_of(self, cell: str, path: str, rows: Sequence[int], whole: Callable[[str], str]) -> int | None:
        """The one of `rows`, which have the file name of `path`, whose `whole` path ends with it."""
        if len(rows) == 1 and "/" not in path:
            return rows[0]
        ends = [row for row in rows if f"/{whole(self._paths[row])}".endswith(f"/{path}")]
        found = [row for row in ends if whole(self._paths[row]) == path] or ends
        if len(found) > 1:
            both = " and ".join(f"'{self._paths[row]}'" for row in found[:2])
            raise UserError(f"'{cell}' may be {both} of {self.where}: give the whole path")
        return found[0] if found else None

    def _below(self, base: Path, path: str) -> str:
        assert self._root is not None
        return os.path.relpath(os.path.join(base, path), self._root).replace(os.sep, "/")


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _stem(path: str) -> str:
    """A path without the suffix of its file; a name that begins with a dot has none."""
    dot = path.rfind(".")
    return path[:dot] if dot > path.rfind("/") + 1 else path


class _Rows:
    """The rows of names: the `last` of each name, and all rows of those that `several` have."""

    def __init__(self, names: Sequence[str]) -> None:
        self.last = dict(zip(names, range(len(names)), strict=True))
        self.several: dict[str, list[int]] = {}
        if len(self.last) < len(names):
            for row, name in enumerate(names):
                if self.last[name] != row or name in self.several:
                    self.several.setdefault(name, []).append(row)

    def all(self, name: str) -> list[int]:
        return self.several.get(name) or [self.last[name]]


def existing_table(setting: str, near: Path | None = None) -> Path | None:
    """The absolute path of a file in the working folder, or else in `near`; None if there is none."""
    path = os.path.expanduser(setting)
    for place in (path, *([os.path.join(near, path)] if near else [])):
        if os.path.isfile(place):  # not Path.is_file, which raises an error for a long pattern
            return Path(place).resolve()
    return None


def refuse_missing(key: str, setting: str, near: Path | None = None) -> None:
    """Raise UserError for a setting that names a table by its suffix."""
    if setting.lower().endswith(SUFFIXES):
        also = f", nor in '{near}'" if near else ""
        kept = "; it was made of a table that Python passed in: pass it in again" if _is_kept(setting) else ""
        raise UserError(f"{key} '{setting}' was not found: there is no such file{also}{kept}")


def _is_kept(setting: str) -> bool:
    return Path(setting).parent.name == KEPT


def read_table(key: str, path: Path) -> Table:
    """The table in a file. Raises UserError."""
    what = f"{key} '{path}'"
    try:
        with open_file(path) as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise UserError(f"{what} cannot be read: {error.strerror or error}") from None
    if len(content) > LARGEST:
        raise UserError(f"{what} has more than {LARGEST // 2**20} MB: remove columns that are not needed")
    return Table(what, content)


KEPT = "tables"


def keep_frame(key: str, frame: Any, cache: Path) -> str:
    """The path of a CSV file in the cache folder that holds a pandas or Polars table (or what Arrow takes as one).

    Its name is a digest of its content, so that a config which names it repeats a run. Raises UserError.
    """
    import pyarrow as pa

    try:
        table = pa.table(frame)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise UserError(f"{key}: the table cannot be read: {first_line(error)}") from None
    columns = [list(map(_text, column.to_pylist())) for column in table.columns]
    text = as_csv(dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True))
    path = cache / KEPT / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.csv"
    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(f"cannot write to the cache folder '{cache}': {error.strerror or error}") from None
    return str(path.absolute())


def _text(value: Any) -> str:
    """A cell; a whole number is written as such, since pandas makes floats of integers where some are missing."""
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
