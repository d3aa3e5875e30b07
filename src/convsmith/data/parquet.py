"""Opens Parquet files as the Hugging Face hub lays them out: a column of encoded images and a column of labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convsmith.data.source import (
    File,
    Given,
    Index,
    Labels,
    Source,
    fingerprint_files,
    numbered_ids,
    recall,
    remember,
    split_of,
)
from convsmith.errors import UserError, first_line
from convsmith.files import parse_json, require_file

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_BATCH = 256  # rows read at a time


def open_parquet(root: Path, files: list[File], cache: Path) -> Source:
    """The rows of Parquet `files` below `root`.

    Splits come from file or folder names (train-*, validation-*, test-*); if all names are of the same split, the
    data counts as not divided. Class names come from the schema's ClassLabel, else from the labels themselves.
    """
    fingerprint = fingerprint_files(root, files)
    splits = [split_of(file.path) for file in files]
    if len(set(splits)) == 1:
        splits = [""] * len(files)
    if "" in splits and any(splits):
        stray = files[splits.index("")].path
        raise UserError(f"'{root / stray}' belongs to no split: name it train-*, validation-* or test-*, or remove it")
    if any(splits) and "train" not in splits:
        raise UserError(
            f"'{root}' has no train-*.parquet, only {', '.join(sorted(set(splits)))}: add one, or rename the files"
        )
    paths = [root / file.path for file in files]
    index = recall(cache, fingerprint) or remember(cache, fingerprint, _read_index(paths, splits))
    return Source(
        name=str(root),
        classes=index.classes,
        ids=numbered_ids(index.given),
        labels=index.labels,
        given=index.given,
        fingerprint=fingerprint,
        read=_Rows(paths).read,
    )


class _Rows:
    """Reads rows by number. It holds one batch, so that reading them in order takes a single pass over the files."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths
        self._groups: list[tuple[Path, int, int]] = []  # file, row group, number of its first row
        self._starts: list[int] = []
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._batch: list[Any] = []
        self._batch_start = 0
        self._path = Path()

    def read(self, row: int) -> bytes | Path:
        try:
            return self._read(row)
        except OSError as error:
            raise UserError(f"cannot read rows of '{self._path}': {first_line(error)}") from error

    def _read(self, row: int) -> bytes | Path:
        if not self._batch_start <= row < self._batch_start + len(self._batch):
            self._seek(row)
        value: Any = self._batch[row - self._batch_start]
        if isinstance(value, dict):
            if value.get("bytes") is None and value.get("path"):
                return self._path.parent / str(value["path"])
            value = value.get("bytes")
        assert value is None or isinstance(value, bytes)
        return value or b""

    def _seek(self, row: int) -> None:
        self._batch_start += len(self._batch)
        self._batch = []
        if row != self._batch_start or not self._advance():
            self._open_group(row)
            while row >= self._batch_start + len(self._batch):
                self._batch_start += len(self._batch)
                more = self._advance()
                assert more, "row beyond the last"

    def _advance(self) -> bool:
        batch = next(self._batches, None)
        self._batch = [] if batch is None else batch.column(0).to_pylist()
        return batch is not None

    def _open_group(self, row: int) -> None:
        if not self._groups:
            self._list_groups()
        at = int(np.searchsorted(self._starts, row, side="right")) - 1
        self._path, group, self._batch_start = self._groups[at]
        file = _open_file(self._path)
        image, _ = _columns(self._path, file.schema_arrow)
        # The iterator runs to the end of the file, so that reading in order opens each file once.
        groups = list(range(group, file.num_row_groups))
        self._batches = file.iter_batches(_BATCH, row_groups=groups, columns=[image], use_threads=False)

    def _list_groups(self) -> None:
        start = 0
        for path in self._paths:
            metadata = _open_file(path).metadata
            for group in range(metadata.num_row_groups):
                if metadata.row_group(group).num_rows:
                    self._groups.append((path, group, start))
                    self._starts.append(start)
                start += metadata.row_group(group).num_rows


def _read_index(paths: list[Path], splits: list[str]) -> Index:
    columns: list[list[Any]] = []
    names: tuple[str, ...] | None = None
    for path in paths:
        file = _open_file(path)
        _, label = _columns(path, file.schema_arrow)
        own = _class_names(file.schema_arrow, label)
        if columns and own != names:
            raise UserError(f"the classes of '{path}' differ from those of '{paths[0]}': {own} and {names}")
        names = own
        columns.append(file.read(columns=[label]).column(0).to_pylist())
        if None in columns[-1]:
            raise UserError(f"'{path}' has rows without a label, the first of which is row {columns[-1].index(None)}")
    given: Given = np.repeat(np.array(splits, dtype="<U5"), [len(column) for column in columns])
    values = np.array([value for column in columns for value in column])
    if not len(values):
        raise UserError(f"'{paths[0]}' contains no rows")
    if names is None:
        distinct, labels = np.unique(values, return_inverse=True)
        return Index(tuple(str(value) for value in distinct), labels.astype(np.int64), given)
    outside = np.flatnonzero((values < 0) | (values >= len(names)))
    if len(outside):
        row = int(outside[0])
        raise UserError(
            f"label {values[row]} in row {row} of '{paths[0].parent}' is not an index of the {len(names)} classes"
        )
    coded: Labels = values.astype(np.int64)
    return Index(names, coded, given)


def _open_file(path: Path) -> pq.ParquetFile:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:  # for example the newest pyarrow beside NumPy 1, which pip installs without complaint
        raise UserError(
            f"pyarrow, which is needed to read '{path}', cannot be imported ({first_line(error)}): with NumPy 1, "
            "pip install 'pyarrow<17'"
        ) from error

    try:
        # These options stream the pages of a row group, which may be larger than memory, instead of reading all of it.
        require_file(path)
        return pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"'{path}' cannot be read as Parquet: {first_line(error)}") from error


def _columns(path: Path, schema: pa.Schema) -> tuple[str, str]:
    """The names of the image and the label column."""
    import pyarrow as pa

    image = next((name for name in ("img", "image") if name in schema.names), None)
    label = next((name for name in ("label", "fine_label") if name in schema.names), None)
    if label is None:
        integers = [field.name for field in schema if pa.types.is_int64(field.type)]
        label = integers[0] if len(integers) == 1 else None
    if image is None or label is None:
        image_column, label_column = "image column ('img' or 'image')", "label column ('label', 'fine_label' or int64)"
        what = image_column if image is None else label_column
        raise UserError(f"'{path}' has no {what}: its columns are {', '.join(schema.names)}")
    kind = schema.field(image).type
    encoded = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    if not encoded and not (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0):
        raise UserError(
            f"column '{image}' of '{path}' is of type {kind}, but must hold encoded images as binary or "
            f"struct<bytes, path>"
        )
    kind = schema.field(label).type
    if pa.types.is_nested(kind):
        raise UserError(
            f"column '{label}' of '{path}' is of type {kind}, but must hold one label per image, a number or a string"
        )
    return image, label


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    try:
        names = parse_json(schema.metadata[b"huggingface"].decode())["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(str(name) for name in names) if isinstance(names, list) else None
