"""Atomic writes with fsync, JSON files, and messages for disk errors. Knows no run directories."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from convsmith.errors import UserError, first_line


def write_text(path: Path, text: str) -> None:
    try:
        content = text.encode("utf-8")
    except UnicodeEncodeError as error:
        name = text[max(error.start - 40, 0) : error.end].encode("utf-8", "backslashreplace").decode()
        raise UserError(f"cannot write '{path}': a name is not UTF-8 ('{name}'); rename that folder") from None
    write_bytes(path, content)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def as_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows of equal keys as CSV with a header; nothing for no rows."""
    text, rows = io.StringIO(), iter(rows)
    if (first := next(rows, None)) is not None:
        writer = csv.DictWriter(text, list(first), lineterminator="\n")
        writer.writeheader()
        writer.writerows(chain([first], rows))
    return text.getvalue()


def read_json(path: Path) -> Any:
    """Read any JSON value from a file; raises UserError if the file is missing or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"'{path}' is missing: restore it, or run again") from None
    except ValueError as error:
        raise UserError(f"'{path}' is damaged ({first_line(error)}): restore it, or run again") from None


def write_bytes(path: Path, data: bytes) -> None:
    with written_whole(path) as file:
        file.write(data)


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file that replaces `path` atomically: a temporary file, fsync, rename, and fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable. Windows cannot open folders and does not need this."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_DISK = {
    errno.ENOSPC: "the disk is full: make room",
    errno.EDQUOT: "your disk quota is used up: make room",
    errno.EROFS: "the disk is read-only: choose another folder",
    errno.EACCES: "permission denied: choose another folder",
    errno.EPERM: "permission denied: choose another folder",
}


_IN_THE_WAY = {
    errno.ENOENT: "that folder cannot be created: choose another one",
    errno.EEXIST: "a file of that name is in the way: choose another folder",
    errno.EISDIR: "a folder of that name is in the way: choose another file",
    errno.ENOTDIR: "a part of the path is a file: choose another folder",
}


def disk_trouble(error: OSError) -> str | None:
    """The message for a disk that is full, read-only or not writable; None for other errors."""
    return _DISK.get(error.errno or 0)


@contextmanager
def explain_os_errors(what: str) -> Iterator[None]:
    """Turn errors of a full, read-only or forbidden disk, or of a wrong path, into one line that names `what`."""
    try:
        yield
    except OSError as error:
        if (trouble := disk_trouble(error) or _IN_THE_WAY.get(error.errno or 0)) is None:
            raise
        raise UserError(f"cannot write {what}: {trouble}") from None
