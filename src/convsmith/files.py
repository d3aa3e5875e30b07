"""Opening files safely, atomic writes with fsync, JSON, and messages for disk errors. Knows no run directories."""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import os
import secrets
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TextIO

from convsmith.errors import UserError, damaged, first_line, missing, nearest

if sys.platform != "win32":  # which neither renames nor removes a file that is open, and needs no locks for that
    import fcntl

DEEPEST = 50  # levels of a file that is read
BITS = 64  # of an integer in it
MOST_SIBLINGS = 2_000  # names with which a mistyped one is compared
LARGEST_JSON = 2**29  # bytes; the splits.json of a million images has 100 MB

_NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


class NotAFileError(OSError):
    """A pipe, a device or a socket where a file is needed."""

    def __init__(self, path: Path, mode: int) -> None:
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        super().__init__(errno.EINVAL, f"it is {kind}, not a file: write the content to a file first", str(path))


def open_file(path: Path) -> BinaryIO:
    """Open the regular file at `path` for reading; every reader of a file that a user names begins here.

    Links are followed. A pipe, a device or a socket raises NotAFileError without being opened or waited for, since
    opening it may have effects and reading it may never end. So does `<(command)`, which is a pipe.
    """
    _refuse_others(path, path.stat().st_mode)
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | _NO_WAIT))  # noqa: SIM115 (it is returned)
    try:
        _refuse_others(path, os.fstat(file.fileno()).st_mode)  # it may have been exchanged in between
    except BaseException:
        file.close()
        raise
    return file


def require_file(path: Path) -> None:
    """Raise what `open_file` raises, before a library opens `path` by its name."""
    open_file(path).close()


def siblings(path: Path) -> list[str]:
    """The names beside this path, of which a mistyped one may mean any; none if they are many, or cannot be listed."""
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry in islice(entries, MOST_SIBLINGS + 1)]
    except (OSError, ValueError):  # ValueError: of a NUL in the path
        return []
    found = [name for name in names if not name.startswith(".") and name != path.name]
    return found if len(names) <= MOST_SIBLINGS else []


def nearest_path(path: Path, names: Iterable[str] | None = None) -> str:
    """``" Did you mean 'a/x'?"`` for the name beside a missing path (or of `names` there) that is most like its own."""
    among = siblings(path) if names is None else names
    return nearest(path.name, among, lambda name: str(path.with_name(name)))


def _refuse_others(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise NotAFileError(path, mode)


def read_bytes(path: Path) -> bytes:
    with open_file(path) as file:
        return file.read()


def read_text(path: Path, most: int | None = None) -> str:
    """The UTF-8 text of a file, with line ends as in the file; ValueError if it has more than `most` bytes."""
    with open_file(path) as file:
        data = file.read() if most is None else file.read(most + 1)
    if most is not None and len(data) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return data.decode("utf-8")


def open_text(path: Path, encoding: str = "utf-8") -> TextIO:
    """A file's text as the csv module wants it, with line ends as in the file."""
    return io.TextIOWrapper(open_file(path), encoding, newline="")


def open_to_append(path: Path) -> BinaryIO:
    """Open a file of ours to append to; it is created if it is missing. Raises UserError for a link or a pipe.

    Where the file has a second name (a backup made of hard links), that name keeps the content: ours becomes a copy.
    """
    with suppress(FileNotFoundError):
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise _foreign(path)
        if status.st_nlink > 1:
            write_bytes(path, read_bytes(path))
    try:
        return open(path, "ab", opener=lambda name, flags: os.open(name, flags | _NO_WAIT | _NO_LINK, 0o666))
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # it was exchanged for a link or a pipe in between
            raise _foreign(path) from None
        raise


def lock_or_refuse(file: BinaryIO, path: Path) -> None:
    """Lock an open file until it is closed; UserError if another process holds it. Windows needs no lock for that."""
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"'{path}' is being written by another process: wait for it, or choose another --out") from None
    except OSError:  # a file system without locks
        return


def refuse_to_replace(
    path: Path, ours: Callable[[bytes], bool], what: str, flag: str = "--out", most: int = -1
) -> None:
    """Raise UserError where writing `flag` would lose something: a file is there whose content is not `ours`.

    A missing or an empty file may be written, and so may one that `ours` takes for `what` by its first `most` bytes.
    """
    if path.is_dir():
        raise UserError(f"{flag} '{path}' is a folder: name a file in it")
    with suppress(Exception):  # what others wrote can break `ours` in any way
        if not path.exists():
            return
        with open_file(path) as file:
            content = file.read(most)
        if not content or ours(content):
            return
    raise UserError(f"'{path}' exists and is not {what}, so it is kept: choose another {flag}, or remove it first")


def _foreign(path: Path) -> UserError:
    what = "a link" if path.is_symlink() else "not a file"
    return UserError(f"'{path}' is {what}, and nothing is written through it: remove it, or restore the file")


def write_text(path: Path, text: str) -> None:
    try:
        content = text.encode("utf-8")
    except UnicodeEncodeError as error:
        name = text[max(error.start - 40, 0) : error.end].encode("utf-8", "backslashreplace").decode()
        raise UserError(f"cannot write '{path}': a name is not UTF-8 ('{name}'); rename that folder") from None
    write_bytes(path, content)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


#: How a cell begins that a spreadsheet would compute, rather than show (OWASP, "CSV Injection").
FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")


class _Lines(list[str]):
    """What csv.writer writes, a row an item."""

    write = list.append


def as_csv(rows: Iterable[Mapping[str, Any]], safe: bool = False, header: bool = True) -> str:
    """Rows of equal keys as CSV with a `header` and lines that end with a newline; nothing for no rows.

    Cells with line breaks are quoted. With `safe`, cells of text that a spreadsheet would take for a formula begin with
    an apostrophe; such a file is for people, since its names are not those of the classes any more.
    """
    rows = iter(rows)
    if (first := next(rows, None)) is None:
        return ""
    lines = _Lines()
    writer = csv.writer(lines, lineterminator="\r\n")  # a cell with a lone \r is quoted only if rows end with one, too
    if header:
        writer.writerow(first)
    for row in chain([first], rows):
        assert row.keys() == first.keys(), f"{list(row)} under {list(first)}"
        writer.writerow([_inert(row[key]) if safe else row[key] for key in first])
    return "".join(line.removesuffix("\r\n") + "\n" for line in lines)


def _inert(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell


def read_json(path: Path) -> Any:
    """Read any JSON value from a file; raises UserError if the file is missing or is not JSON."""
    try:
        return parse_json(read_text(path, LARGEST_JSON))
    except FileNotFoundError:
        raise missing(path) from None
    except (NotAFileError, IsADirectoryError) as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise damaged(path, first_line(error)) from None


def parse_json(text: str) -> Any:
    """The value of a JSON text as RFC 8259 and I-JSON (RFC 7493) define it; raises ValueError for any other text.

    Python's own reader also takes NaN, numbers of any size, half characters and the last of equal keys, and gives up
    with a RecursionError where values are nested. Integers must have at most 64 bits, so that every reader has them.
    """
    if len(text) > LARGEST_JSON:
        raise ValueError(f"it has more than {LARGEST_JSON:,} characters")
    try:
        value = json.loads(
            text, parse_constant=_no_number, parse_int=_integer, parse_float=_finite, object_pairs_hook=_unique
        )
    except RecursionError:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep") from None
    containers = [value]
    for _ in range(DEEPEST):
        inner = [
            part.values() if isinstance(part, dict) else part for part in containers if isinstance(part, dict | list)
        ]
        containers = [part for parts in inner for part in parts if isinstance(part, dict | list)]
    if containers:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep")
    if "\\ud" in text or "\\uD" in text:
        json.dumps(value, ensure_ascii=False).encode()  # raises an error for a half of a surrogate pair
    return value


def integer(digits: str) -> int | None:
    """The integer that is written in decimal digits; None if it has more than BITS bits."""
    return int(digits) if len(digits) <= BITS and fits(int(digits)) else None


def fits(value: int) -> bool:
    """Whether an integer has at most BITS bits, so that every reader of our files has it."""
    return -(1 << BITS - 1) <= value < 1 << BITS - 1


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a number of JSON")


def _integer(digits: str) -> int:
    if (value := integer(digits)) is None:
        raise ValueError(f"{digits[:BITS]} is an integer of more than {BITS} bits")
    return value


def _finite(digits: str) -> float:
    if math.isinf(value := float(digits)):
        raise ValueError(f"{digits[:BITS]} is too large")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key, inner in pairs:
        if key in value:
            raise ValueError(f"'{key}' is given twice")
        value[key] = inner
    return value


def write_bytes(path: Path, data: bytes) -> None:
    with written_whole(path) as file:
        file.write(data)


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file that replaces `path` atomically: a temporary file, fsync, rename, and fsync of the folder.

    Temporary files of the same `path` that a killed process left behind are removed. A link at `path` is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_temporary(path)
    temporary, file = _temporary(path)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if sys.platform == "win32":
                file.close()
            os.replace(temporary, path)  # while the file is locked
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _temporary(path: Path) -> tuple[Path, BinaryIO]:
    """A new file beside `path`, locked for as long as it is open, so that `_clear_temporary` leaves it alone."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        file = temporary.open("xb")
        if sys.platform != "win32":
            with suppress(OSError):  # a file system without locks, where nothing is cleared either
                fcntl.flock(file, fcntl.LOCK_EX)
        if temporary.exists():  # else another process has cleared it before it was locked
            return temporary, file
        file.close()


def _clear_temporary(path: Path) -> None:
    before, after = f".{path.name}.", ".tmp"
    for left in path.parent.iterdir():
        name = left.name
        if not (name.startswith(before) and name.endswith(after) and "." not in name[len(before) : -len(after)]):
            continue
        with suppress(OSError):  # a process is writing it, or has renamed it
            if sys.platform == "win32":
                left.unlink()
            else:
                with open_file(left) as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    left.unlink()


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
    errno.ENAMETOOLONG: "that path is too long: choose a shorter one",
}


_IN_THE_WAY = {
    errno.ENOENT: "that folder cannot be created: choose another one",
    errno.EEXIST: "a file of that name is in the way: choose another folder",
    errno.EISDIR: "a folder of that name is in the way: choose another file",
    errno.ENOTDIR: "a part of the path is a file: choose another folder",
}


def disk_trouble(error: OSError) -> str | None:
    """The message for a disk that is full, read-only or not writable, or for no file; None for other errors."""
    return error.strerror if isinstance(error, NotAFileError) else _DISK.get(error.errno or 0)


@contextmanager
def explain_os_errors(what: str) -> Iterator[None]:
    """Turn errors of a full, read-only or forbidden disk, or of a wrong path, into one line that names `what`."""
    try:
        yield
    except OSError as error:
        if (trouble := disk_trouble(error) or _IN_THE_WAY.get(error.errno or 0)) is None:
            raise
        raise UserError(f"cannot write {what}: {trouble}") from None
