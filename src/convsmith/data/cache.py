"""Decoded images in a memory-mapped file, found only when it is complete, keyed by its inputs. Knows no splits.

All that is read back has checksums. Those of the pixels are compared once in a process, by `mapped`; what changes in
their file afterwards is not noticed. Damage is reported by Python's logger `convsmith`; the images are decoded anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from convsmith.data.building import (
    INDEX,
    PARTS,
    PIXELS,
    Facts,
    Failure,
    Moments,
    array_forms,
    build,
    digest_of_records,
    is_unreadable,
    shape_of,
)
from convsmith.data.config import DecodeRules
from convsmith.data.depth import Depths
from convsmith.data.mapped import DamagedError, MappedPixels
from convsmith.data.parallel import Progress
from convsmith.data.remarks import Remark
from convsmith.data.source import Source
from convsmith.data.stored import read_arrays
from convsmith.errors import UserError, command
from convsmith.files import sync_folder
from convsmith.terminal import warn

CACHE_VERSION = 3  # increase this whenever decoding or the files' form changes, so that old ones are not used again


@dataclass(frozen=True, eq=False)
class Images:
    """The decoded images of a source.

    `pixels` uint8 [N, H, W, C] are memory-mapped and read-only; `kept` int64 [N] indexes the source;
    `moments` int64 [N, 2, C] holds each image's sum and sum of squares by channel; `depths` [N, 3] the range that
    each image of more than 8 bits uses; `hash` is the SHA-256 of pixels, ids, labels and classes, each of which was
    compared with a checksum of that time when it was read. `remarks` are all those of all images.
    """

    pixels: MappedPixels
    kept: npt.NDArray[np.int64]
    moments: Moments
    depths: Depths
    failures: tuple[Failure, ...]
    hash: str
    remarks: tuple[Remark, ...] = ()


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
    images = _found(folder, source, rules)
    if not isinstance(images, Images):
        with _cache_errors(cache):
            images = _build_once(source, rules, folder, on_error, progress)
    if images.failures and (on_error == "stop" or not len(images.kept)):
        shown = ", ".join(f"{failure.id} ({failure.kind})" for failure in images.failures[:10])
        more = f" and {len(images.failures) - 10} more" if len(images.failures) > 10 else ""
        known = Path(source.name).exists()  # several sources have a name of all of them
        check = command("data", "check", source.name) if known else "convsmith data check"
        reasons = (f"{failure.id}: {failure.message}; " for failure in images.failures if failure.kind == "unsupported")
        raise UserError(
            f"{len(images.failures)} of {len(source)} images of {source.name} cannot be decoded: {shown}{more}; "
            f"{next(reasons, '')}"
            f"{check} lists them, --data.on_error skip leaves them out"
        )
    return images


def _found(folder: Path, source: Source, rules: DecodeRules) -> Images | str | None:
    """The images in `folder`; None if there are none, or a file that was missing can be read now; or what is wrong."""
    try:
        images = _load(folder, source, rules) if os.path.exists(folder) else None
    except DamagedError as error:
        return str(error)
    unread = {failure.id for failure in images.failures if failure.kind == "unreadable"} if images else set()
    if unread and not all(is_unreadable(source.read(row)) for row, name in enumerate(source.ids) if name in unread):
        return None
    return images


def _load(folder: Path, source: Source, rules: DecodeRules) -> Images:
    """The images in `folder`. Raises DamagedError unless all is as it was when `source` was decoded by `rules`."""
    arrays = read_arrays(folder / INDEX, **array_forms(rules))
    if arrays is None:
        raise DamagedError(f"{INDEX} is missing or does not match its checksums")
    kept, moments, depths, checksums = (arrays[name] for name in ("kept", "moments", "depths", "checksums"))
    try:
        facts = TypeAdapter(Facts).validate_json(str(arrays["facts"]))
        matches = facts.records == digest_of_records(source, kept)
    except (ValueError, IndexError):
        matches = False
    if not matches or not len(kept) == len(moments) == len(depths):
        raise DamagedError(f"{INDEX} does not match the source")
    pixels = MappedPixels(folder / PIXELS, (len(kept), *shape_of(rules)), checksums.tolist())
    return Images(pixels, kept, moments, depths, facts.failures, facts.hash, facts.remarks)


def _build_once(source: Source, rules: DecodeRules, folder: Path, on_error: str, progress: Progress | None) -> Images:
    """Build `folder` unless another process does so first, from where one that was interrupted has come to.

    A disk that is full gets its room back.
    """
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(folder.name + ".partial")
    with FileLock(folder.with_name(folder.name + ".lock")):
        before = _found(folder, source, rules)
        if isinstance(before, Images):
            return before
        if before is not None:
            warn(f"the cache of decoded images of {source.name} was damaged ({before}) and is built anew")
        shutil.rmtree(folder, ignore_errors=True)
        partial.mkdir(exist_ok=True)
        try:
            build(source, rules, partial, on_error, progress)
            partial.rename(folder)
            sync_folder(folder.parent)
        except BaseException as error:
            if isinstance(error, OSError) or not (partial / PARTS).exists():
                shutil.rmtree(partial, ignore_errors=True)
            raise
        shutil.rmtree(folder / PARTS, ignore_errors=True)
        images = _found(folder, source, rules)
    if not isinstance(images, Images):
        raise UserError(f"the disk of '{folder}' does not keep what is written ({images}): set --data.cache to another")
    return images


@contextlib.contextmanager
def _cache_errors(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"cannot write to the cache folder '{cache}' ({reason}): set --data.cache or CONVSMITH_CACHE to a writable "
            f"folder on a disk with enough space"
        ) from error
