"""The images' own size and channels, from their headers. Decodes nothing."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from convsmith.data.decode import DecodeError, read_header
from convsmith.data.parallel import thread_map
from convsmith.data.source import Record, Source
from convsmith.data.stored import read_arrays, write_arrays


class Native(NamedTuple):
    """The images before any resizing: the (height, width) that all of them share, if any, and their channels."""

    size: tuple[int, int] | None
    channels: Literal[1, 3]


def native_shape(source: Source, cache: Path) -> Native:
    """The images' own size and channels: stated by the source, or else read from the image headers and cached."""
    if source.native_size and source.native_channels:
        return Native(source.native_size, source.native_channels)
    path = cache / "sources" / f"{source.fingerprint}.shape.npz"
    if stored := read_arrays(path, size=(np.int64, (None,)), channels=(np.int64, ())):
        return Native(tuple(stored["size"].tolist()) or None, 1 if stored["channels"] == 1 else 3)
    records = (source.read(row) for row in range(len(source)))
    shapes = set(thread_map(_shape, records)) - {None}
    sizes = {shape[:2] for shape in shapes if shape}
    gray = bool(shapes) and all(shape[2] == 1 for shape in shapes if shape)
    native = Native(sizes.pop() if len(sizes) == 1 else None, 1 if gray else 3)
    with contextlib.suppress(OSError):  # a failure only makes the next start take longer
        write_arrays(path, {"size": np.array(native.size or (), np.int64), "channels": np.array(native.channels)})
    return native


def _shape(record: Record) -> tuple[int, int, int] | None:
    if isinstance(record, np.ndarray):
        return record.shape[0], record.shape[1], 1 if record.ndim == 2 else 3
    try:
        header = read_header(record)
    except DecodeError:
        return None  # decoding will report it
    return header.height, header.width, header.channels
