"""The range of values that images of more than 8 bits use: for `data.range: auto` and a note. Keeps no pixels."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from convsmith.data.config import DecodeRules, Limits
from convsmith.data.decode import opened
from convsmith.data.faults import DecodeError
from convsmith.data.parallel import Progress, thread_map
from convsmith.data.raster import SHALLOW, Depth
from convsmith.data.source import Record, Source
from convsmith.data.stored import read_arrays, write_arrays

Depths = npt.NDArray[np.float64]  # [N, 3]: lowest and highest sample, and the type's highest value; NaN for 8 bits

LEAST = 0.1  # a note is due if less than this fraction of the range is used: 25 of 255 gray levels


class Scan(NamedTuple):
    """The `depths` of all records of a source, and which records can be decoded: bool [N]."""

    depths: Depths
    decodes: npt.NDArray[np.bool_]


def scan(source: Source, cache: Path, progress: Progress | None = None, channels: int = 3) -> Scan:
    """The depths of all records, whatever their range; computed once and stored in the folder `cache`.

    They are those of the samples that an image of so many `channels` is made of.
    """
    own = "" if channels in (1, 3) else f"-{channels}"  # no image of another number is made gray or RGB
    path = cache / "sources" / f"{source.fingerprint}.depths{own}.npz"
    count = len(source)
    if stored := read_arrays(path, depths=(np.float64, (count, 3)), decodes=(np.bool_, (count,))):
        return Scan(stored["depths"], stored["decodes"])
    # With a given range, no sample is refused for lying outside of it.
    anything = DecodeRules(range=(0, 1), channels=channels)

    def examine(record: Record) -> Depth | DecodeError:
        if isinstance(record, np.ndarray):
            return SHALLOW
        try:
            with opened(record, anything) as raster:
                return raster.depth
        except DecodeError as error:
            return error  # decoding will report it

    found = list(thread_map(examine, (source.read(row) for row in range(count)), progress, count))
    failed = [row for row in found if isinstance(row, DecodeError)]
    depths = np.array([SHALLOW if isinstance(row, DecodeError) else row for row in found])
    result = Scan(depths, np.array([not isinstance(row, DecodeError) for row in found]))
    if not any(error.kind == "unreadable" for error in failed):  # the machine may read it the next time
        with contextlib.suppress(OSError):  # a failure only makes the next start slower
            write_arrays(path, result._asdict())
    return result


def used_range(depths: Depths) -> Limits | None:
    """The lowest and the highest sample of all images; None if no image has more than 8 bits."""
    deep = depths[~np.isnan(depths[:, 0])]
    return (float(deep[:, 0].min()), float(deep[:, 1].max())) if len(deep) else None


def auto_range(depths: Depths) -> Literal["full"] | Limits:
    """The range that `auto` means: the range that the images use, or full if no image has more than 8 bits."""
    used = used_range(depths)
    if used is None:
        return "full"
    return used if used[0] < used[1] else (used[0], used[0] + 1)


def range_note(depths: Depths, limits: Literal["full"] | Limits) -> str | None:
    """A note if the images use so little of the range that only few gray levels remain; None otherwise."""
    used = used_range(depths)
    if used is None:
        return None
    low, high = (0.0, float(np.nanmax(depths[:, 2]))) if limits == "full" else limits
    share = max((min(used[1], high) - max(used[0], low)) / (high - low), 0.0)
    rest = "--data.range auto uses all 256" if used[0] < used[1] else "all samples are the same"
    if share >= LEAST:
        return None
    return (
        f"the samples run from {used[0]:,g} to {used[1]:,g}, which is {share:.1%} of the range from {low:,g} "
        f"to {high:,g}: only about {round(share * 255) + 1} gray levels remain. {rest}"
    )
