"""metrics.csv, with one row per epoch that survives a kill of the process. Computes no metrics."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from convsmith.errors import damaged, missing
from convsmith.files import open_to_append, read_bytes, write_text
from convsmith.records import MONITORS

_FIRST = (  # the columns that other programs may rely on
    "epoch",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "val_precision",
    "val_recall",
    "val_f1",
    "learning_rate",
    "seconds",
    "images_per_second",
)
COLUMNS = (
    *_FIRST,
    *(name for name in MONITORS if name not in _FIRST),
    "l1_penalty",
    "l2_penalty",
    "zero_weights",
    "clean_train_loss",  # on train images without augmentation, in eval mode; computed only in a few epochs
    "clean_train_accuracy",
)

Number = int | float | None


class MetricsCsv:
    """Appends rows to `path`; each row is on disk when `append` returns. The header comes with the first row."""

    def __init__(self, path: Path, columns: Sequence[str] = COLUMNS) -> None:
        self.path = path
        self.columns = tuple(columns)

    def append(self, row: Mapping[str, Number]) -> None:
        """Write numbers by column. A column that is missing or None becomes an empty cell; floats keep all digits."""
        unknown = row.keys() - set(self.columns)
        assert not unknown, f"no such columns: {sorted(unknown)}"
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        with open_to_append(self.path) as file:
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)
            file.write(text.getvalue().encode())
            file.flush()
            os.fsync(file.fileno())


def read(path: Path) -> list[dict[str, Number]]:
    """Read the rows of a metrics.csv. An empty cell is None, and an incomplete last line is left out.

    Raises UserError if the file is missing, or not a table of numbers with at least the first edition's columns.
    """
    try:
        reader = csv.DictReader(_whole_lines(path), strict=True)
        rows = [{name: _number(cell) for name, cell in row.items()} for row in reader]
    except FileNotFoundError:
        raise missing(path) from None
    except (csv.Error, ValueError, TypeError):  # TypeError: a row with more or fewer cells than the header
        raise damaged(path, "it is not a table of numbers") from None
    if rows and (absent := [name for name in _FIRST if name not in rows[0]]):
        raise damaged(path, f"it has no column {absent[0]}")
    if [row["epoch"] for row in rows] != list(range(1, len(rows) + 1)):
        raise damaged(path, "its epochs are not 1, 2, 3, ...")
    return rows


def cut_back(path: Path, epochs: int) -> int:
    """Keep the first `epochs` rows under the current header, in one atomic step; return the number of rows left.

    A resume repeats the epochs after its checkpoint. An incomplete last line is dropped as well. Columns that an
    older edition did not record stay empty; all other cells are kept as written. Raises UserError as `read` does.
    """
    if not path.exists():
        return 0
    read(path)  # raises an error, so that a damaged file is not overwritten
    rows = list(csv.DictReader(_whole_lines(path)))[:epochs]
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_text(path, text.getvalue())
    return len(rows)


def _whole_lines(path: Path) -> list[str]:
    text = read_bytes(path).decode("utf-8", errors="replace")
    return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _number(cell: str) -> Number:
    if cell == "":
        return None
    value = float(cell)
    return int(cell) if cell.lstrip("+-").isdecimal() and math.isfinite(value) and len(cell) < 20 else value
