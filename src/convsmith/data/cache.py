"""Decoded images in a memory-mapped file, built completely or not at all, keyed by its inputs. Knows no splits."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from convsmith.data.config import DecodeRules
from convsmith.data.decode import DecodeError, Kind, Pixels, decode_deep, from_array, read_header
from convsmith.data.depth import Depths, depth_of
from convsmith.data.parallel import Progress, thread_map
from convsmith.data.source import Record, Source
from convsmith.errors import UserError
from convsmith.files import sync_folder, write_text, written_whole

CACHE_VERSION = 1  # increase this whenever decoding changes, so that old pixels are not used again

Moments = npt.NDArray[np.int64]


class Failure(NamedTuple):
    """A record that cannot be decoded."""

    id: str
    kind: Kind
    message: str


class Native(NamedTuple):
    """The images before any resizing: the (height, width) that all of them share, if any, and their channels."""

    size: tuple[int, int] | None
    channels: Literal[1, 3]


@dataclass(frozen=True, eq=False)
class Images:
    """The decoded images of a source.

    `pixels` uint8 [N, H, W, C] is memory-mapped and read-only; `kept` int64 [N] indexes the source;
    `moments` int64 [N, 2, C] holds each image's sum and sum of squares by channel; `depths` [N, 3] the range that
    each image of more than 8 bits uses; `hash` is the SHA-256 of pixels, ids, labels and classes.
    """

    pixels: Pixels
    kept: npt.NDArray[np.int64]
    moments: Moments
    depths: Depths
    failures: tuple[Failure, ...]
    hash: str


def open_images(
    source: Source,
    rules: DecodeRules,
    cache: Path,
    on_error: Literal["stop", "skip"] = "stop",
    progress: Progress | None = None,
) -> Images:
    """The images of `source`, decoded by `rules`: read from the folder `cache`, or else built there.

    `progress(done, total)` is called while building. Raises UserError if some records cannot be decoded and
    `on_error` is 'stop', if none can be decoded, and if the cache cannot be written.
    """
    assert rules.working_size is not None, "the cache holds images of one size"
    key = f"{CACHE_VERSION} {source.fingerprint} {rules.model_dump_json()}"
    folder = cache / "images" / hashlib.sha256(key.encode()).hexdigest()
    if not _is_complete(folder):
        with _cache_errors(cache):
            _build_once(source, rules, folder, progress)
    images = _load(folder)
    if images.failures and (on_error == "stop" or not len(images.kept)):
        shown = ", ".join(f"{failure.id} ({failure.kind})" for failure in images.failures[:10])
        more = f" and {len(images.failures) - 10} more" if len(images.failures) > 10 else ""
        reasons = (f"{failure.id}: {failure.message}; " for failure in images.failures if failure.kind == "unsupported")
        raise UserError(
            f"{len(images.failures)} of {len(source)} images of {source.name} cannot be decoded: {shown}{more}; "
            f"{next(reasons, '')}"
            f"'convsmith data check {source.name}' lists them, data.on_error=skip leaves them out"
        )
    return images


def native_shape(source: Source, cache: Path) -> Native:
    """The images' own size and channels: stated by the source, or else read from the image headers and cached."""
    if source.native_size and source.native_channels:
        return Native(source.native_size, source.native_channels)
    path = cache / "sources" / f"{source.fingerprint}.json"
    with contextlib.suppress(OSError, ValueError, KeyError):
        stored = json.loads(path.read_text())
        return Native(tuple(stored["size"]) if stored["size"] else None, stored["channels"])
    records = (source.read(row) for row in range(len(source)))
    shapes = set(thread_map(_shape, records)) - {None}
    sizes = {shape[:2] for shape in shapes if shape}
    gray = bool(shapes) and all(shape[2] == 1 for shape in shapes if shape)
    native = Native(sizes.pop() if len(sizes) == 1 else None, 1 if gray else 3)
    with contextlib.suppress(OSError):  # a failure only makes the next start take longer
        write_text(path, json.dumps(native._asdict()))
    return native


def pixel_moments(pixels: Pixels) -> Moments:
    """The exact sum and sum of squares by channel: uint8 [..., H, W, C] -> int64 [..., 2, C]."""
    height, width, channels = pixels.shape[-3:]
    planes = np.ascontiguousarray(np.moveaxis(pixels, -1, -3)).astype(np.int64)  # contiguous sums are 3x faster
    planes = planes.reshape(*pixels.shape[:-3], channels, height * width)
    return np.stack([planes.sum(axis=-1), np.einsum("...p,...p->...", planes, planes)], axis=-2)


def _shape(record: Record) -> tuple[int, int, int] | None:
    if isinstance(record, np.ndarray):
        return record.shape[0], record.shape[1], 1 if record.ndim == 2 else 3
    try:
        header = read_header(record)
    except DecodeError:
        return None  # decoding will report it
    return header.height, header.width, header.channels


def _load(folder: Path) -> Images:
    meta = json.loads((folder / "meta.json").read_text())
    shape = tuple(meta["shape"])
    pixels: Pixels = np.empty(shape, np.uint8)  # an empty file cannot be mapped
    if shape[0]:
        pixels = np.asarray(np.memmap(folder / "pixels", dtype=np.uint8, mode="r", shape=shape))
    failures = tuple(Failure(**failure) for failure in meta["failures"])
    kept, moments, depths = (np.load(folder / f"{name}.npy") for name in ("kept", "moments", "depths"))
    return Images(pixels, kept, moments, depths, failures, meta["hash"])


def _is_complete(folder: Path) -> bool:
    """Whether a folder is complete. It is built atomically; a file of the wrong size was damaged afterwards."""
    try:
        shape = json.loads((folder / "meta.json").read_text())["shape"]
        return (folder / "pixels").stat().st_size == np.prod(shape, dtype=np.int64)
    except (OSError, ValueError, KeyError):
        return False


def _build_once(source: Source, rules: DecodeRules, folder: Path, progress: Progress | None) -> None:
    """Build `folder` unless another process does so first; leave nothing behind if that fails."""
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(folder.name + ".partial")
    with FileLock(folder.with_name(folder.name + ".lock")):
        if _is_complete(folder):
            return
        shutil.rmtree(partial, ignore_errors=True)  # left behind by a process that was killed
        shutil.rmtree(folder, ignore_errors=True)
        partial.mkdir()
        try:
            _build(source, rules, partial, progress)
            partial.rename(folder)
            sync_folder(folder.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _build(source: Source, rules: DecodeRules, folder: Path, progress: Progress | None) -> None:
    assert rules.working_size is not None
    needed = len(source) * rules.working_size**2 * rules.channels
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"the decoded images of {source.name} need {needed / 1e6:,.1f} MB, but only {free / 1e6:,.1f} MB are free "
            f"in '{folder.parent}': make room, or set data.cache or CONVSMITH_CACHE to another disk"
        )

    def examine(record: Record) -> tuple[Pixels, Moments, tuple[float, float, float]] | DecodeError:
        try:
            if isinstance(record, np.ndarray):
                pixels, samples = from_array(record, rules), None
            else:
                pixels, samples = decode_deep(record, rules)
        except DecodeError as error:
            return error
        return pixels, pixel_moments(pixels), depth_of(samples)

    kept: list[int] = []
    moments: list[Moments] = []
    depths: list[tuple[float, float, float]] = []
    failures: list[Failure] = []
    digest = hashlib.sha256()
    records = (source.read(row) for row in range(len(source)))
    with written_whole(folder / "pixels") as file:
        for row, result in enumerate(thread_map(examine, records, progress, len(source))):
            if isinstance(result, DecodeError):
                if result.kind == "unreadable":  # the fault lies with the machine, not the data: do not cache it
                    raise UserError(f"cannot read '{source.ids[row]}' of {source.name}: {result.message}")
                failures.append(Failure(source.ids[row], result.kind, result.message))
            else:
                pixels, image_moments, depth = result
                file.write(pixels.data)
                digest.update(pixels.data)
                kept.append(row)
                moments.append(image_moments)
                depths.append(depth)

    rows = np.array(kept, dtype=np.int64)
    digest.update(json.dumps([source.classes, [source.ids[row] for row in kept]]).encode())
    digest.update(np.ascontiguousarray(source.labels[rows], dtype="<i8").data)
    empty = np.empty((0, 2, rules.channels), dtype=np.int64)
    parts: dict[str, npt.NDArray[Any]] = {"kept": rows, "moments": np.stack(moments) if moments else empty}
    parts["depths"] = np.array(depths, dtype=np.float64).reshape(-1, 3)
    for name, array in parts.items():
        with written_whole(folder / f"{name}.npy") as file:
            np.save(file, array)
    meta = {
        "source": source.name,
        "rules": rules.model_dump(),
        "shape": [len(kept), rules.working_size, rules.working_size, rules.channels],
        "hash": digest.hexdigest(),
        "failures": [failure._asdict() for failure in failures],
    }
    write_text(folder / "meta.json", json.dumps(meta))


@contextlib.contextmanager
def _cache_errors(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"cannot write to the cache folder '{cache}' ({reason}): set data.cache or CONVSMITH_CACHE to a writable "
            f"folder on a disk with enough space"
        ) from error
