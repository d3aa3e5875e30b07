"""Files of columns, Parquet and Arrow, read alike: a schema, groups of rows, and one column at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from convsmith.data.places import open_address
from convsmith.errors import UserError, first_line
from convsmith.files import open_file, require_file

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET = (".parquet",)
ARROW = (".arrow", ".feather", ".ipc")  # feather is Arrow's format for files; `datasets` writes that for streams

_BATCH = 256  # rows read at a time
_FILE_MAGIC = b"ARROW1"  # with which a file begins that has an index of its batches; a stream has none
_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"


class ColumnFile(NamedTuple):
    """An open file. `groups` are its numbers of rows; `batches(column, group)` yields a column from that group on."""

    path: Path | str
    schema: pa.Schema
    groups: list[int]
    batches: Callable[[str, int], Iterator[pa.Array]]

    def column(self, name: str) -> list[Any]:
        """All values of a column. Raises UserError."""
        with reading(self.path):
            return [value for batch in self.batches(name, 0) for value in batch.to_pylist()]


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Turn what pyarrow raises into a UserError that names the file."""
    pa = _pyarrow(path)
    try:
        yield
    except (MemoryError, UserError):
        raise
    except Exception as error:
        known = (OSError, pa.ArrowException, ValueError, OverflowError)  # the last two of text and of dates
        if not isinstance(error, known) and isinstance(path, Path):  # each client of a server has errors of its own
            raise
        raise UserError(f"'{path}' cannot be read as {_kind(path)}: {first_line(error)}") from error


def open_columns(path: Path | str) -> ColumnFile:
    """Open a Parquet or an Arrow file, or Parquet at an address. Raises UserError."""
    with reading(path):
        if isinstance(path, str):
            return _open_parquet(path, open_address(path))
        require_file(path)
        return _open_parquet(path, path) if _kind(path) == "Parquet" else _open_arrow(path)


def _open_parquet(path: Path | str, content: Any) -> ColumnFile:
    import pyarrow.parquet as pq

    # These options stream the pages of a row group, which may be larger than memory, instead of reading all of it.
    file = pq.ParquetFile(content, buffer_size=1 << 20, pre_buffer=False)

    def batches(column: str, group: int) -> Iterator[pa.Array]:
        # To the end of the file, so that reading in order opens each file once.
        groups = list(range(group, file.num_row_groups))
        for batch in file.iter_batches(_BATCH, row_groups=groups, columns=[column], use_threads=False):
            yield batch.column(0)

    groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    return ColumnFile(path, file.schema_arrow, groups, batches)


def _open_arrow(path: Path) -> ColumnFile:
    import pyarrow as pa

    with open_file(path) as content:
        is_file = content.read(len(_FILE_MAGIC)) == _FILE_MAGIC
        content.seek(max(0, path.stat().st_size - len(_STREAM_END)))
        is_whole = is_file or content.read() == _STREAM_END
    source = pa.memory_map(str(path))
    if is_file:
        reader = pa.ipc.open_file(source)
        batch, count = reader.get_batch, reader.num_record_batches
    else:
        stream = pa.ipc.open_stream(source)
        if not is_whole:  # pyarrow takes what is there
            raise OSError("its end is missing")
        parts = list(stream)  # they stay in the file, which is mapped
        reader, batch, count = stream, parts.__getitem__, len(parts)

    def batches(column: str, group: int) -> Iterator[pa.Array]:
        for number in range(group, count):
            values = batch(number).column(column)
            values.validate(full=True)  # pyarrow trusts the offsets in a file, and would read beyond it
            for start in range(0, len(values), _BATCH):
                yield values.slice(start, _BATCH)

    return ColumnFile(path, reader.schema, [batch(number).num_rows for number in range(count)], batches)


def _kind(path: Path | str) -> str:
    return "Parquet" if str(path).lower().endswith(PARQUET) else "Arrow"


def _pyarrow(path: Path | str) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:  # for example the newest pyarrow beside NumPy 1, which pip installs without complaint
        raise UserError(
            f"pyarrow, which is needed to read '{path}', cannot be imported ({first_line(error)}): with NumPy 1, "
            "pip install 'pyarrow<17'"
        ) from error
    return pyarrow
