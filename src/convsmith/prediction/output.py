"""The file of predictions: written as they come, continued after a kill, and never of two models. Predicts nothing.

Rows are appended to `<out>.<key>.partial`, a CSV file that becomes `out` when all are there. The key is taken from the
model's files, the options that change a row and this version: the rows of another model are never continued.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from convsmith.errors import UserError
from convsmith.files import (
    as_csv,
    explain_os_errors,
    lock_or_refuse,
    open_file,
    open_to_append,
    parse_json,
    refuse_to_replace,
    sync_folder,
    written_whole,
)
from convsmith.runtime import installed

FIRST = ("id", "predicted", "confidence")  # the first columns
CALIBRATED, ERROR = "calibrated_confidence", "error"  # the last ones, the former only with a threshold
_LONGEST_HEADER = 2**24  # bytes
_CHUNK = 1000  # rows that are written at a time when a CSV file becomes another

Row = dict[str, Any]


def columns_of(classes: Sequence[str], with_threshold: bool) -> list[str]:
    """The keys of a row: id, predicted, confidence, p_<class>..., with a threshold calibrated_confidence, and error."""
    return [*FIRST, *(f"p_{name}" for name in classes), *([CALIBRATED] if with_threshold else []), ERROR]


def refuse_out(out: Path | None, csv_safe: bool = False) -> None:
    """Raise UserError for a file that cannot be written as predictions with these options, or has other content."""
    if out is not None and out.suffix not in (".csv", ".json"):
        raise UserError(f"--out '{out}' must end in .csv or .json")
    if csv_safe and (out is None or out.suffix != ".csv"):
        raise UserError("--csv-safe is about cells of a CSV file: give --out FILE.csv, too")
    if out is not None:
        most = _LONGEST_HEADER if out.suffix == ".csv" else -1
        refuse_to_replace(
            out, lambda content: _are_predictions(content, out.suffix), "a file of predictions", most=most
        )


def _are_predictions(content: bytes, suffix: str) -> bool:
    text = content.decode("utf-8-sig", "ignore")  # a spreadsheet program may have saved it again
    keys = [*(parse_json(text)[0] if suffix == ".json" else next(csv.reader(io.StringIO(text, newline=""))))]
    rest = [key for key in keys[3:] if key not in (CALIBRATED, ERROR)]
    return tuple(keys[:3]) == FIRST and all(key.startswith("p_") for key in rest)


def key_of(files: Sequence[Path], options: Sequence[object]) -> str:
    """Twelve hexadecimal digits for a model's `files`, the `options` and this version of the package."""
    digest = hashlib.sha256(repr((installed("convsmith"), *options)).encode())
    for file in files:
        with open_file(file) as content:
            while block := content.read(2**20):
                digest.update(block)
    return digest.hexdigest()[:12]


class PredictionFile:
    """The rows of `out`, a .csv or .json file, with these `columns`; as a context manager it holds the file's lock.

    `done` counts the ids of the rows that an earlier process has left, `changed` is when it wrote the last one, in
    seconds since 1970. `finish` makes the rows the content of `out`.
    """

    def __init__(self, out: Path, key: str, columns: Sequence[str], csv_safe: bool = False) -> None:
        self.out, self._columns, self._safe = out, list(columns), csv_safe
        self.partial = out.with_name(f"{out.name}.{key}.partial")
        self.done: Counter[str] = Counter()
        self._file: BinaryIO

    def __enter__(self) -> PredictionFile:
        with explain_os_errors(f"'{self.out}'"):
            self.partial.parent.mkdir(parents=True, exist_ok=True)
            self._file = open_to_append(self.partial)
            try:
                lock_or_refuse(self._file, self.partial)
                self.changed = os.fstat(self._file.fileno()).st_mtime  # before it is cut back, which counts as a change
                end = 0
                for row, end in self._read():  # noqa: B007 (the end of the last whole row)
                    self.done[row["id"]] += 1
                self._file.truncate(end)  # what a kill has cut off
            except BaseException:
                self._file.close()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if not self.done:
            with suppress(OSError):
                self.partial.unlink(missing_ok=True)

    def start_anew(self) -> None:
        """Forget the rows that an earlier process has left."""
        self._file.truncate(0)
        self.done.clear()

    def rows(self) -> Iterator[Row]:
        """The rows so far, as they were added."""
        return (row for row, _ in self._read())

    def add(self, rows: Sequence[Row]) -> None:
        """Append rows; they stay when the process is killed."""
        with explain_os_errors(f"'{self.out}'"):
            self._file.write(as_csv(rows, header=not self.done).encode())
            self._file.flush()
        self.done.update(row["id"] for row in rows)

    def finish(self) -> None:
        """Make the rows the content of `out`, atomically, in its format."""
        with explain_os_errors(f"'{self.out}'"):
            os.fsync(self._file.fileno())
            if self.out.suffix == ".csv" and not self._safe:
                if sys.platform == "win32":
                    self._file.close()
                os.replace(self.partial, self.out)
                sync_folder(self.out.parent)
                return
            with written_whole(self.out) as file:
                for text in self._as_json() if self.out.suffix == ".json" else self._as_safe_csv():
                    file.write(text.encode())
            self._file.close()
            self.partial.unlink()

    def _as_json(self) -> Iterator[str]:
        between = "[\n  "
        for row in self.rows():
            yield between + json.dumps(row, indent=2, ensure_ascii=False).replace("\n", "\n  ")
            between = ",\n  "
        yield "\n]\n" if self.done else "[]\n"

    def _as_safe_csv(self) -> Iterator[str]:
        rows, header = self.rows(), True
        while some := list(islice(rows, _CHUNK)):
            yield as_csv(some, safe=True, header=header)
            header = False

    def _read(self) -> Iterator[tuple[Row, int]]:
        """The whole rows of the partial file, each with the position of its end in bytes."""
        position = 0

        def lines(file: BinaryIO) -> Iterator[str]:
            nonlocal position
            for line in file:
                position += len(line)
                if line.endswith(b"\n"):
                    yield line.decode("utf-8")

        with open_file(self.partial) as file, suppress(csv.Error, ValueError):  # what a kill has cut off
            reader = csv.reader(lines(file), strict=True)
            if next(reader, None) != self._columns:
                return
            for cells in reader:
                if len(cells) != len(self._columns):
                    return
                yield dict(zip(self._columns, map(_value, self._columns, cells), strict=True)), position


def _value(column: str, cell: str) -> str | float | None:
    if column == "id":
        return cell
    if not cell:
        return None
    if column in ("predicted", ERROR):
        return cell
    if not math.isfinite(value := float(cell)):
        raise ValueError(f"{cell} is no probability")
    return value
