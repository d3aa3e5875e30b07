"""Reads the images in rows of Parquet and Arrow files by number, fastest in order. Decodes nothing.

Where they are streamed, each group of rows of a file is a shard: reading can begin with any of them.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from convsmith.data.arrow import ColumnFile, open_columns, reading
from convsmith.data.columns import find_columns
from convsmith.data.config import DataConfig
from convsmith.data.parallel import CHUNK_BYTES, thread_map
from convsmith.data.places import Place, local, refuse_replaced
from convsmith.data.source import Labels, Shards, readable
from convsmith.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa


class Group(NamedTuple):
    """A group of rows: its file, by its place in the list of them, its number in the file, and its first row of all."""

    file: int
    number: int
    start: int


class Rows:
    """Reads rows by number, of files at paths or addresses. It is thread-safe.

    It holds one batch, so that reading rows in order takes a single pass over the files.
    """

    def __init__(self, root: Path, paths: Sequence[Path | str], config: DataConfig) -> None:
        self._root = Path(os.path.abspath(root))
        self._paths = paths
        self._config = config
        self._lock = threading.Lock()
        self._groups: list[Group] = []
        self._starts: list[int] = []
        self._batches: Iterator[pa.Array] = iter(())
        self._batch: list[Any] = []
        self._batch_start = 0
        self._path: Path | str = Path()
        self._file: ColumnFile | None = None  # at `_path`
        self._found: dict[Path, Place] = {}  # the files as they were when their groups were listed

    def read(self, row: int) -> bytes | Path:
        with self._lock:
            return self._read(row)

    def shards(self, sizes: Sequence[int], labels: Labels, kept: npt.NDArray[np.int64]) -> Shards:
        """The groups of rows as shards of the rows `kept`; `sizes` in bytes are the files', `labels` those of all rows.

        A shard is named by its file and its number in it.
        """
        groups = self._listed()
        parts = np.split(labels.astype("<i8"), self._starts[1:])
        names = [os.path.basename(path) for path in self._paths]
        if len(set(names)) < len(names):  # files of one name in several folders
            names = list(map(str, self._paths))
        return Shards(
            tuple(f"{readable(names[group.file])}#{group.number}" for group in groups),
            tuple(sizes[group.file] for group in groups),
            tuple(hashlib.sha256(part.tobytes()).hexdigest() for part in parts),
            np.searchsorted(self._starts, kept, side="right") - 1,
        )

    def _read(self, row: int) -> bytes | Path:
        if not self._batch_start <= row < self._batch_start + len(self._batch):
            self._seek(row)
        value: Any = self._batch[row - self._batch_start]
        if isinstance(value, dict):
            content, path = value.get("bytes"), value.get("path")
            value = path if content is None and path else content
        if isinstance(value, str):
            return self._below_root(value)
        assert value is None or isinstance(value, bytes)
        return value or b""

    def _below_root(self, path: str) -> Path:
        if isinstance(self._path, str):
            raise UserError(
                f"'{self._path}' names '{path}' instead of holding it: only images in it can be had from it"
            )
        found = os.path.normpath(os.path.join(os.path.abspath(self._path.parent), path.replace("\\", "/")))
        if self._root not in Path(found).parents:
            raise UserError(
                f"'{self._path}' names '{path}', which lies outside '{self._root}': move the images below it"
            )
        return Path(found)

    def _seek(self, row: int) -> None:
        """Read the batch of `row`: on from the last one in the same group of rows, else from the start of its group."""
        self._batch_start += len(self._batch)
        self._batch = []
        is_ahead = self._batch_start < row and self._group_of(self._batch_start) == self._group_of(row)
        if not ((is_ahead or row == self._batch_start) and self._advance()):
            self._open_group(row)
        while row >= self._batch_start + len(self._batch):
            self._batch_start += len(self._batch)
            more = self._advance()
            assert more, "row beyond the last"

    def _group_of(self, row: int) -> int:
        return int(np.searchsorted(self._starts, row, side="right")) - 1

    def _advance(self) -> bool:
        with reading(self._path):
            batch = next(self._batches, None)
            self._batch = [] if batch is None else batch.to_pylist()
        return batch is not None

    def _open_group(self, row: int) -> None:
        groups = self._listed()
        group = groups[self._group_of(row)]
        self._batch_start = group.start
        if self._file is None or self._path != self._paths[group.file]:
            self._path = self._paths[group.file]
            if isinstance(self._path, Path):
                refuse_replaced(self._found[self._path])
            self._file = open_columns(self._path)
        self._batches = self._file.batches(find_columns(self._file, self._config).image, group.number)

    def _listed(self) -> list[Group]:
        """The groups of rows of all files, in their order."""
        if not self._groups:
            self._found = {path: local(path) for path in self._paths if isinstance(path, Path)}
            counts = thread_map(lambda path: open_columns(path).groups, self._paths, result_bytes=CHUNK_BYTES)
            start = 0
            for file, groups in enumerate(counts):
                for number, count in enumerate(groups):
                    if count:
                        self._groups.append(Group(file, number, start))
                        self._starts.append(start)
                    start += count
        return self._groups
