"""The file of embeddings: what the head of a network gets of each image, with the images' ids. Computes none.

Source of the format: NumPy's .npy, version 2.0, in an uncompressed zip archive, as `numpy.savez` writes it.
"""

from __future__ import annotations

import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from convsmith.errors import UserError
from convsmith.files import explain_os_errors, open_file, refuse_to_replace, written_whole

SUFFIXES = (".npz", ".parquet")
_ROWS = 4096  # of a row group

Vectors = NDArray[np.float32]  # [N, F], NaN for an image that cannot be read


def refuse_features(path: Path | None) -> None:
    """Raise UserError for a file that cannot be written as embeddings, or that has other content."""
    if path is None:
        return
    if path.suffix not in SUFFIXES:
        raise UserError(f"--features '{path}' must end in {' or '.join(SUFFIXES)}")
    refuse_to_replace(path, lambda _: _are_embeddings(path), "a file of embeddings", "--features", most=1)


def _are_embeddings(path: Path) -> bool:
    with open_file(path) as file:
        if path.suffix == ".npz":
            return sorted(zipfile.ZipFile(file).namelist()) == ["features.npy", "ids.npy"]
        import pyarrow.parquet as pq

        return list(pq.read_schema(file).names) == ["id", "features"]


@contextmanager
def embeddings_file(path: Path, ids: Sequence[str]) -> Iterator[_Writer]:
    """What takes the embeddings of the images `ids`, in order, and replaces `path` when all of them are there."""
    with explain_os_errors(f"'{path}'"), written_whole(path) as file:
        writer: _Writer = _Npz(file, ids) if path.suffix == ".npz" else _Parquet(file, ids)
        yield writer
        writer.close()


class _Writer(ABC):
    """Takes the embeddings of the images in order."""

    def __init__(self) -> None:
        self._missing = 0  # unreadable images before the first that tells the number of features
        self._width: int | None = None

    def add(self, count: int, vectors: Vectors | None) -> None:
        """The embeddings of the next `count` images, [count, F]; None if none of them can be read."""
        if vectors is None and self._width is None:
            self._missing += count
            return
        if vectors is None:
            assert self._width is not None
            vectors = np.full((count, self._width), np.nan, np.float32)
        self._width = vectors.shape[1]
        before, self._missing = np.full((self._missing, self._width), np.nan, np.float32), 0
        self._write(np.concatenate((before, vectors)))

    @abstractmethod
    def _write(self, vectors: Vectors) -> None: ...

    @abstractmethod
    def close(self) -> None: ...


class _Npz(_Writer):
    """The arrays `ids` [N] and `features` float32 [N, F], with NaN for an image that cannot be read."""

    def __init__(self, file: BinaryIO, ids: Sequence[str]) -> None:
        super().__init__()
        self._zip = zipfile.ZipFile(file, "w")
        self._count = len(ids)
        with self._zip.open("ids.npy", "w", force_zip64=True) as part:
            np.lib.format.write_array(part, np.array(ids, dtype=np.str_), allow_pickle=False)
        self._part: IO[bytes] | None = None

    def _write(self, vectors: Vectors) -> None:
        if self._part is None:  # its header needs the number of features
            self._part = self._zip.open("features.npy", "w", force_zip64=True)
            shape = (self._count, vectors.shape[1])
            np.lib.format.write_array_header_2_0(self._part, {"descr": "<f4", "fortran_order": False, "shape": shape})
        self._part.write(vectors.astype("<f4").tobytes())

    def close(self) -> None:
        if self._part is None:
            self._count = 0
            self._write(np.empty((0, 0), np.float32))
        assert self._part is not None
        self._part.close()
        self._zip.close()


class _Parquet(_Writer):
    """The columns `id` and `features`, a list of F float32, null for an image that cannot be read."""

    def __init__(self, file: BinaryIO, ids: Sequence[str]) -> None:
        super().__init__()
        self._file, self._ids, self._written = file, ids, 0
        self._waiting: list[Vectors] = []
        self._writer: Any = None

    def _write(self, vectors: Vectors) -> None:
        self._waiting.append(vectors)
        if sum(map(len, self._waiting)) >= _ROWS:
            self._write_group()

    def _write_group(self) -> None:
        import pyarrow as pa

        vectors = np.concatenate(self._waiting)
        self._waiting.clear()
        kind = pa.list_(pa.float32(), vectors.shape[1])
        missing = pa.array(np.isnan(vectors).any(axis=1))
        lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=kind, mask=missing)
        ids = self._ids[self._written : self._written + len(vectors)]
        self._written += len(vectors)
        self._open(kind).write_table(pa.table({"id": pa.array(ids, pa.string()), "features": lists}))

    def _open(self, kind: Any) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._writer is None:
            self._writer = pq.ParquetWriter(self._file, pa.schema([("id", pa.string()), ("features", kind)]))
        return self._writer

    def close(self) -> None:
        import pyarrow as pa

        if self._waiting:
            self._write_group()
        self._open(pa.list_(pa.float32())).close()  # without a row, where no image can be read
