"""metrics.csv: a row an epoch, whole whatever happens to the process. Knows columns, not what they mean."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from convsmith.errors import UserError
from convsmith.files import write_text
from convsmith.records import MONITORS

_FIRST = (  # what other programs may count on
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
    "clean_train_loss",  # of train images without augmentation, by the net in eval mode; in a few epochs alone
    "clean_train_accuracy",
)

Number = int | float | None


class MetricsCsv:
    """Appends rows to `path`; each row is on disk when `append` returns. The header comes with the first row."""

    def __init__(self, path: Path, columns: Sequence[str] = COLUMNS) -> None:
        self.path = path
        self.columns = tuple(columns)

    def append(self, row: Mapping[str, Number]) -> None:
        """Write numbers by column. A column that is missing or None becomes an empty cell; floats keep every digit."""
        unknown = row.keys() - set(self.columns)
        assert not unknown, f"no such columns: {sorted(unknown)}"
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)
            file.flush()
            os.fsync(file.fileno())


def read(path: Path) -> list[dict[str, Number]]:
    """Read the rows of a metrics.csv. An empty cell is None, and a last line that was not written whole is left out.

    UserError where the file is not a table of numbers.
    """
    try:
        reader = csv.DictReader(_whole_lines(path), strict=True)
        return [{name: _number(cell) for name, cell in row.items()} for row in reader]
    except (csv.Error, ValueError, TypeError):  # TypeError: a row with more or fewer cells than the header
        raise UserError(f"'{path}' is damaged (it is not a table of numbers): restore it, or train again") from None


def cut_back(path: Path, epochs: int) -> int:
    """Keep the first `epochs` rows under the present header, in one atomic step; returns how many rows there are now.

    A resume repeats what came after its checkpoint. A last line that was not written whole is cut as well. What an
    older edition did not record stays empty; the other cells stay as they were written. UserError as in `read`.
    """
    if not path.exists():
        return 0
    read(path)  # what is not a table of numbers stays as it is
    rows = list(csv.DictReader(_whole_lines(path)))[:epochs]
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_text(path, text.getvalue())
    return len(rows)


def _whole_lines(path: Path) -> list[str]:
    text = path.read_bytes().decode("utf-8", errors="replace")
    return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _number(cell: str) -> Number:
    if cell == "":
        return None
    try:
        return int(cell)
    except ValueError:
        return float(cell)
