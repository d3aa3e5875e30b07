"""Decodes the images of a source into a folder of the cache, in parts that outlive the process.

Every few seconds what is known of the images since the last time is written as a part: their rows, moments and depths,
and a checksum of their pixels. After a kill the parts whose checksums match are read back, and decoding goes on behind
them; the result is that of an undisturbed build to the last byte. For one process at a time, as `cache` sees to.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from convsmith.contracts import hw
from convsmith.data.config import DecodeRules
from convsmith.data.decode import Decoded, DecodeError, Kind, Pixels, decode_deep, from_array
from convsmith.data.mapped import images_per_block
from convsmith.data.parallel import CHUNK_BYTES, Progress, chunks, thread_map
from convsmith.data.raster import Depth
from convsmith.data.remarks import Remark
from convsmith.data.source import Record, Source
from convsmith.data.stored import Arrays, Form, read_arrays, write_arrays
from convsmith.data.workers import Workers
from convsmith.errors import UserError
from convsmith.files import open_file
from convsmith.runtime import usable_cores

PIXELS, INDEX = "pixels", "index.npz"  # the images, one after the other; all else that is known of them
PARTS = "parts"  # the folder of the parts, which is of no use once there is an index
MANY = 2_000  # images for which it pays to start processes
KEEP_SECONDS = 5.0  # of decoding that a kill can cost

Moments = npt.NDArray[np.int64]


class Failure(NamedTuple):
    """A record that cannot be decoded."""

    id: str
    kind: Kind
    message: str


class Facts(NamedTuple):
    """What is known of the images besides arrays. `records` is a digest of all of `hash` but the pixels."""

    hash: str
    records: str
    failures: tuple[Failure, ...]
    remarks: tuple[Remark, ...] = ()


_Examined = tuple[Decoded, Moments] | DecodeError


class _Part(NamedTuple):
    """What is known, besides arrays, of the records from the end of the part before to row `end`, which is excluded."""

    end: int
    crc: int  # CRC-32 of the pixels of all its images
    failures: tuple[Failure, ...]
    remarks: tuple[Remark, ...]


def shape_of(rules: DecodeRules) -> tuple[int, int, int]:
    """Height, width and channels of a decoded image."""
    assert rules.working_size is not None, "the cache holds images of one size"
    return (*hw(rules.working_size), rules.channels)


def array_forms(rules: DecodeRules) -> dict[str, Form]:
    """The arrays of an index and of a part."""
    return {
        "kept": (np.int64, (None,)),
        "moments": (np.int64, (None, 2, rules.channels)),
        "depths": (np.float64, (None, 3)),
        "checksums": (np.uint32, (None,)),
        "facts": (np.str_, ()),
    }


def digest_of_records(source: Source, rows: npt.NDArray[np.int64]) -> str:
    """SHA-256 of the classes, and of the ids and labels of these records; each start computes it, so it is fast."""
    ids = source.ids if len(rows) == len(source) else [source.ids[row] for row in rows.tolist()]
    digest = hashlib.sha256(json.dumps(source.classes).encode())
    digest.update("\0".join(ids).encode("utf-8", "surrogatepass"))
    digest.update(np.ascontiguousarray(source.labels[rows], dtype="<i8").data)
    return digest.hexdigest()


def pixel_moments(pixels: Pixels) -> Moments:
    """The exact sum and sum of squares by channel: uint8 [..., H, W, C] -> int64 [..., 2, C]."""
    height, width, channels = pixels.shape[-3:]
    planes = np.ascontiguousarray(np.moveaxis(pixels, -1, -3)).astype(np.int64)  # contiguous sums are 3x faster
    planes = planes.reshape(*pixels.shape[:-3], channels, height * width)
    return np.stack([planes.sum(axis=-1), np.einsum("...p,...p->...", planes, planes)], axis=-2)


def is_unreadable(record: Record) -> bool:
    """Whether a record is a file that cannot be opened, such as a link that leads nowhere."""
    if not isinstance(record, Path):
        return False
    try:
        open_file(record).close()
    except OSError:
        return True
    return False


def build(source: Source, rules: DecodeRules, folder: Path, on_error: str, progress: Progress | None) -> None:
    """Decode `source` into `folder`, after what an earlier process has left there; PARTS can be removed afterwards.

    Raises UserError for records that cannot be read, and where the disk has too little room, and OSError.
    """
    with open(folder / PIXELS, "ab+") as file:
        images = _Decoded(source, rules, folder, file)
        images.read_back()
        image_bytes, left = math.prod(shape_of(rules)), len(source) - images.end
        needed, free = left * image_bytes, shutil.disk_usage(folder).free
        if needed > free:
            raise UserError(
                f"the decoded images of {source.name} need {needed / 1e6:,.1f} MB, but only {free / 1e6:,.1f} MB are "
                f"free in '{folder.parent}': make room, or set --data.cache or CONVSMITH_CACHE to another disk"
            )
        begun, kept = images.end, time.monotonic()
        records = (source.read(row) for row in range(begun, len(source)))
        for row, result in enumerate(_examined(records, left, rules), start=begun):
            if isinstance(result, DecodeError):
                if result.kind == "unreadable":  # the fault lies with the machine, not the data
                    is_file = is_unreadable(source.read(row))
                    if on_error == "stop" or not is_file:  # memory is free again the next time
                        hint = "; data.on_error=skip leaves such files out" if is_file else ""
                        raise UserError(f"cannot read '{source.ids[row]}' of {source.name}: {result.message}{hint}")
                images.fail(Failure(source.ids[row], result.kind, result.message))
            else:
                images.add(*result)
            if time.monotonic() - kept >= KEEP_SECONDS:
                images.keep()
                kept = time.monotonic()
            if progress and (images.end % 256 == 0 or images.end == len(source)):
                progress(images.end, len(source))
        file.flush()
        os.fsync(file.fileno())
    images.write_index()


def _examined(records: Iterator[Record], count: int, rules: DecodeRules) -> Iterator[_Examined]:
    """Each of `count` records, decoded by threads, or by processes where they are many."""
    size = math.prod(shape_of(rules))
    if count < MANY or usable_cores() == 1:
        yield from thread_map(lambda record: _examine(record, rules), records, result_bytes=size)
        return
    workers = Workers(rules, shape_of(rules), ordinary=True)
    workers.start()
    requests = (request for request, _ in chunks(records, size))
    answers = thread_map(lambda request: _examine_all(request, workers, rules), requests, result_bytes=CHUNK_BYTES)
    yield from chain.from_iterable(answers)


def _examine(record: Record, rules: DecodeRules) -> _Examined:
    try:
        decoded = Decoded(from_array(record, rules)) if isinstance(record, np.ndarray) else decode_deep(record, rules)
    except DecodeError as error:
        return error
    return decoded, pixel_moments(decoded.pixels)


def _examine_all(records: Sequence[Record], workers: Workers, rules: DecodeRules) -> list[_Examined]:
    """The same as `_examine` has for each: whatever is not decoded by a process is decoded here."""
    encoded = [record for record in records if not isinstance(record, np.ndarray)]
    if len(encoded) < len(records):
        return [_examine(record, rules) for record in records]
    answers = workers.decode(encoded)
    pixels = [answer for answer in answers if not isinstance(answer, DecodeError)]
    moments = iter(pixel_moments(np.stack(pixels)) if pixels else ())
    return [
        _examine(record, rules) if isinstance(answer, DecodeError) else (Decoded(answer), next(moments))
        for record, answer in zip(records, answers, strict=True)
    ]


class _Decoded:
    """The images of the records up to row `end`, which is excluded: their pixels are in a file, and the rest here."""

    def __init__(self, source: Source, rules: DecodeRules, folder: Path, file: BinaryIO) -> None:
        self.end = 0
        self._source, self._rules, self._folder, self._file = source, rules, folder, file
        self._parts: list[Arrays] = []  # of what has been kept
        self._failures: list[Failure] = []
        self._remarks: list[Remark] = []
        self._digest = hashlib.sha256()
        self._checksums: list[int] = []  # of each block
        self._count = 0
        self._begin()

    def _begin(self) -> None:
        """Begin the part that is not kept yet."""
        self._kept: list[int] = []
        self._moments: list[Moments] = []
        self._depths: list[Depth] = []
        self._crc, self._before = 0, (len(self._failures), len(self._remarks))

    def add(self, decoded: Decoded, moments: Moments) -> None:
        self._file.write(decoded.pixels.data)
        self._sum(decoded.pixels.data)
        self._crc = zlib.crc32(decoded.pixels.data, self._crc)
        self._kept.append(self.end)
        self._moments.append(moments)
        self._depths.append(decoded.depth)
        self._remarks += decoded.remarks
        self.end += 1

    def fail(self, failure: Failure) -> None:
        self._failures.append(failure)
        self.end += 1

    def _sum(self, image: memoryview | bytes) -> None:
        self._digest.update(image)
        if self._count % images_per_block(math.prod(shape_of(self._rules))) == 0:
            self._checksums.append(0)
        self._checksums[-1] = zlib.crc32(image, self._checksums[-1])
        self._count += 1

    def keep(self) -> None:
        """Write what is not kept yet as a part. That its pixels reach the disk is checked when they are read back."""
        self._file.flush()
        arrays = self._arrays()
        failures, remarks = self._before
        part = _Part(self.end, self._crc, tuple(self._failures[failures:]), tuple(self._remarks[remarks:]))
        path = self._part(len(self._parts))
        path.parent.mkdir(exist_ok=True)
        none = np.empty(0, dtype=np.uint32)
        write_arrays(path, arrays | {"checksums": none, "facts": np.array(json.dumps(part))})
        self._parts.append(arrays)
        self._begin()

    def _arrays(self) -> Arrays:
        """The arrays of what is not kept yet."""
        empty = np.empty((0, 2, self._rules.channels), dtype=np.int64)
        return {
            "kept": np.array(self._kept, dtype=np.int64),
            "moments": np.stack(self._moments) if self._moments else empty,
            "depths": np.array(self._depths, dtype=np.float64).reshape(-1, 3),
        }

    def read_back(self) -> None:
        """Take the parts that an earlier process has kept, as far as they are whole, and drop what follows them."""
        self._file.seek(0)
        while (found := self._whole(self._part(len(self._parts)))) is not None:
            arrays, part = found
            for image in self._read(len(arrays["kept"])):
                self._sum(image)
            self.end = part.end
            self._failures += part.failures
            self._remarks += part.remarks
            self._parts.append(arrays)
        self._begin()
        self._file.truncate(self._count * math.prod(shape_of(self._rules)))
        self._file.seek(0, os.SEEK_END)

    def _whole(self, path: Path) -> tuple[Arrays, _Part] | None:
        """The next part, with the file where its pixels begin; None if it is missing, damaged or out of date."""
        arrays = read_arrays(path, **array_forms(self._rules)) if path.exists() else None
        if arrays is None:
            return None
        try:
            part = TypeAdapter(_Part).validate_json(str(arrays.pop("facts")))
        except ValidationError:
            return None
        count, examined = len(arrays["kept"]), part.end - self.end
        if not count == len(arrays["moments"]) == len(arrays["depths"]) == examined - len(part.failures):
            return None
        begin, crc = self._file.tell(), 0
        for image in self._read(count):
            crc = zlib.crc32(image, crc)
        is_whole = self._file.tell() == begin + count * math.prod(shape_of(self._rules))
        self._file.seek(begin)
        unread = {failure.id for failure in part.failures if failure.kind == "unreadable"}
        rows = [row for row in range(self.end, part.end) if self._source.ids[row] in unread]
        if crc != part.crc or not is_whole or any(not is_unreadable(self._source.read(row)) for row in rows):
            return None
        del arrays["checksums"]
        return arrays, part

    def _read(self, count: int) -> Iterator[bytes]:
        size = math.prod(shape_of(self._rules))
        return (self._file.read(size) for _ in range(count))

    def _part(self, number: int) -> Path:
        return self._folder / PARTS / f"{number}.npz"

    def write_index(self) -> None:
        """Write INDEX, which makes the folder complete."""
        parts = [*self._parts, self._arrays()]
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        rows, digest, source = arrays["kept"], self._digest.copy(), self._source
        digest.update(json.dumps([source.classes, [source.ids[row] for row in rows]]).encode())
        digest.update(np.ascontiguousarray(source.labels[rows], dtype="<i8").data)
        records = digest_of_records(source, rows)
        facts = Facts(digest.hexdigest(), records, tuple(self._failures), tuple(self._remarks))
        checksums = np.array(self._checksums, dtype=np.uint32)
        write_arrays(self._folder / INDEX, arrays | {"checksums": checksums, "facts": np.array(json.dumps(facts))})
