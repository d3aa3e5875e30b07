"""Images in a file that is mapped into memory: compared with their checksums, and read ahead where memory is short.

A file that fits into memory is compared as a whole when it is opened, which reads it as well. Of a larger one the
blocks are compared when an image in them is first used, and the pages of the images that come next are asked for: each
alone, since what the system reads around a page at random places is a thousand times as much as is used.
"""

from __future__ import annotations

import math
import mmap
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from convsmith import memory
from convsmith.data.decode import Pixels
from convsmith.data.parallel import thread_map
from convsmith.errors import RunFailed

BLOCK = 2**20  # bytes of images that share a checksum, rounded down to whole images
SHARE = 0.5  # of the available memory that images may fill; the rest is for the training, and for other programs
AHEAD = 2  # batches that are asked for before they are used

Rows = npt.NDArray[np.int64]


class DamagedError(Exception):
    """What is wrong with a file that was complete once."""


class MappedPixels:
    """Images [N, H, W, C] of a file, of which `array` is the read-only view and `take` the way to use some of them."""

    def __init__(self, path: Path, shape: tuple[int, ...], checksums: Sequence[int]) -> None:
        """Map a file of images of this shape, with the CRC-32 of each block. Raises DamagedError if it is another."""
        self.shape = shape
        self._path = path
        self._map, self.array = _mapped(path, shape)
        self._size = math.prod(shape[1:])
        self._per_block = images_per_block(self._size)
        there, status = memory.available(), path.stat()
        self._fits = there is None or status.st_size <= SHARE * there
        self._checksums = tuple(checksums)
        self._unchecked = np.zeros(-(-len(self) // self._per_block), dtype=np.bool_)
        if len(checksums) != len(self._unchecked):
            raise DamagedError(f"{path.name} does not match its checksums")
        if not self._fits:
            self._unchecked[:] = True
        elif block_checksums(path, shape, status.st_ino, status.st_mtime_ns) != self._checksums:
            raise DamagedError(f"{path.name} does not match its checksums")
        if self._map and hasattr(mmap, "MADV_RANDOM"):
            self._map.madvise(mmap.MADV_RANDOM)

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, rows: npt.NDArray[np.integer]) -> Pixels:
        """A copy of the images in `rows`. Raises RunFailed if the file was damaged, and removes it."""
        self.will_need(rows)
        if self._unchecked.any():
            self._check(rows)
        return np.take(self.array, rows, axis=0)

    def batches(self, parts: Sequence[Rows]) -> Iterator[Pixels]:
        """The images of each part in turn, of which the next ones are read while the caller uses one."""
        for part in parts[:AHEAD]:
            self.will_need(part)
        for number, part in enumerate(parts):
            if number + AHEAD < len(parts):
                self.will_need(parts[number + AHEAD])
            yield self.take(part)

    def will_need(self, rows: npt.NDArray[np.integer]) -> None:
        """Have the system read the images in `rows`, without waiting for it; nothing where all fits into memory."""
        if self._fits or self._map is None or not len(rows) or not hasattr(mmap, "MADV_WILLNEED"):
            return
        ordered = np.unique(rows)
        apart = np.flatnonzero(np.diff(ordered) > 1) + 1
        first, last = ordered[np.r_[0, apart]], ordered[np.r_[apart - 1, len(ordered) - 1]]
        starts, ends = first * self._size // mmap.PAGESIZE * mmap.PAGESIZE, (last + 1) * self._size
        for start, length in zip(starts.tolist(), (ends - starts).tolist(), strict=True):
            with suppress(OSError):  # it is a hint
                self._map.madvise(mmap.MADV_WILLNEED, start, length)

    def _check(self, rows: npt.NDArray[np.integer]) -> None:
        """Compare the blocks of `rows` that were not compared before."""
        blocks = np.unique(rows // self._per_block)
        for block in blocks[self._unchecked[blocks]].tolist():
            start = block * self._per_block
            self.will_need(np.arange(start, min(start + self._per_block, len(self))))
            if zlib.crc32(self.array[start : start + self._per_block].data) != self._checksums[block]:
                with suppress(OSError):
                    os.unlink(self._path)  # so that the next start decodes the images anew
                raise RunFailed(
                    f"the cache of decoded images was damaged ('{self._path}' does not match its checksums) and is "
                    "removed: run the command again, or resume the run, and they are decoded anew"
                )
            self._unchecked[block] = False


def images_per_block(size: int) -> int:
    """The number of images of `size` bytes that share a checksum."""
    return max(1, BLOCK // size)


def _mapped(path: Path, shape: tuple[int, ...]) -> tuple[mmap.mmap | None, Pixels]:
    """The images of a file, mapped, and their array. Raises DamagedError if it is not of this shape."""
    try:
        with open(path, "rb") as file:
            if (size := os.fstat(file.fileno()).st_size) != math.prod(shape):
                raise DamagedError(f"{path.name} has {size:,} bytes instead of {math.prod(shape):,}")
            if not size:
                return None, np.empty(shape, np.uint8)  # an empty file cannot be mapped
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise DamagedError(f"{path.name}: {error.strerror or error}") from None
    return mapped, np.frombuffer(mapped, np.uint8).reshape(shape)


@lru_cache
def block_checksums(path: Path, shape: tuple[int, ...], inode: int, changed_ns: int) -> tuple[int, ...]:
    """The CRC-32 of each block of a file of images, computed once in a process for each inode and time of change."""
    _, pixels = _mapped(path, shape)
    step = images_per_block(math.prod(shape[1:]))
    blocks = (pixels[start : start + step] for start in range(0, len(pixels), step))
    return tuple(thread_map(lambda block: zlib.crc32(block.data), blocks))
