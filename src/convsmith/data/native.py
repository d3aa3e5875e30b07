"""The images' own size and channels, from their headers. Decodes nothing."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from convsmith.data.decode import DecodeError, read_header
from convsmith.data.parallel import thread_map
from convsmith.data.sampler import first_of_shards
from convsmith.data.source import Record, Source
from convsmith.data.stored import read_arrays, write_arrays

SAMPLED = 1_000  # images of shards


class Native(NamedTuple):
    """The images before any resizing: the (height, width) that all of them share, if any, and their channels.

    RGB where some are gray; where some have neither one nor three channels, the most frequent number of those.
    """

    size: tuple[int, int] | None
    channels: int


def native_shape(source: Source, cache: Path) -> Native:
    """The images' own size and channels: stated by the source, or else read from the image headers and cached.

    Of shards the headers of a sample are read.
    """
    if source.native_size and source.native_channels:
        return Native(source.native_size, source.native_channels)
    path = cache / "sources" / f"{source.fingerprint}.shape.npz"
    if stored := read_arrays(path, size=(np.int64, (None,)), channels=(np.int64, ())):
        return Native(tuple(stored["size"].tolist()) or None, int(stored["channels"]))
    if source.shards is not None:  # of which all cannot be read
        source = source.at(first_of_shards(source.shards.of, SAMPLED))
    records = (source.read(row) for row in range(len(source)))
    shapes = Counter(shape for shape in thread_map(_shape, records) if shape is not None)
    sizes = {shape[:2] for shape in shapes}
    native = Native(
        sizes.pop() if len(sizes) == 1 else None,
        _common(
            Counter(
                {channels: sum(n for shape, n in shapes.items() if shape[2] == channels) for _, _, channels in shapes}
            )
        ),
    )
    with contextlib.suppress(OSError):  # a failure only makes the next start take longer
        write_arrays(path, {"size": np.array(native.size or (), np.int64), "channels": np.array(native.channels)})
    return native


def array_channels(last: tuple[int, ...]) -> int:
    """The channels of an array in memory, [H, W] or [H, W, C], after its height and width: four are RGBA."""
    return 3 if last == (4,) else math.prod(last)


def _common(counts: Counter[int]) -> int:
    others = [channels for channels, _ in counts.most_common() if channels not in (1, 3)]
    return others[0] if others else 1 if set(counts) == {1} else 3


def _shape(record: Record) -> tuple[int, int, int] | None:
    if isinstance(record, np.ndarray):
        return record.shape[0], record.shape[1], array_channels(record.shape[2:])
    try:
        header = read_header(record)
    except DecodeError:
        return None  # decoding will report it
    return header.height, header.width, header.channels
