"""The files that a pattern or an address names, on this machine or elsewhere, and how they are opened. Reads nothing.

Addresses are opened by fsspec, which knows http and https with the extra `stream`, and s3, gs, hf and others with the
packages that it names.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from convsmith.data.parallel import CHUNK_BYTES, thread_map
from convsmith.data.source import readable
from convsmith.errors import UserError, first_line, missing_extra
from convsmith.files import open_file
from convsmith.network import unreachable

MOST_FILES = 100_000  # that one pattern may name
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.I)
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]+)\.\.([0-9]+)")
_WEB = ("http://", "https://")
_STEP = 2**20  # bytes that are read at once to go forward
#: What fsspec says of the content of a file, by which a later one of the same size is told from it.
_VERSIONS = ("ETag", "etag", "Content-MD5", "md5Hash", "Last-Modified", "LastModified", "blob_id", "mtime", "updated")


class Place(NamedTuple):
    """A file, by its absolute path or its address, with its size in bytes and what changes when its content does.

    `has_parts` says whether parts of it can be had, from any position on.
    """

    name: str
    size: int
    version: str
    has_parts: bool = True

    @property
    def is_address(self) -> bool:
        return is_address(self.name)


def is_address(name: str) -> bool:
    """Whether a name is an address such as ``https://host/a.tar``."""
    return bool(_ADDRESS.match(name))


def is_pattern(name: str) -> bool:
    """Whether a name stands for files by addresses, braces or wildcards, and is no path that exists."""
    return is_address(name) or (any(sign in name for sign in "{*?[") and not os.path.exists(os.path.expanduser(name)))


def absolute(pattern: str) -> str:
    """The pattern from the root folder; an address stays as it is."""
    return pattern if is_address(pattern) else os.path.abspath(os.path.expanduser(pattern))


def folder_of(name: str) -> str:
    """The folder below which all files lie that a pattern names; a name that is no pattern stays as it is."""
    if not is_pattern(name):
        return name
    return re.split(r"[{*?\[]", name, maxsplit=1)[0].rpartition("/")[0] or "/"


def expanded(pattern: str) -> Iterator[str]:
    """The names that the braces of a pattern stand for, in order, as a shell writes them: ``{000..099}``, ``{a,b}``."""
    found = _BRACES.search(pattern)
    if found is None:
        yield pattern
        return
    if span := _RANGE.fullmatch(found[1]):
        first, last = int(span[1]), int(span[2])
        numbers = range(first, last + 1) if first <= last else range(first, last - 1, -1)
        words: Iterator[str] = (f"{number:0{len(span[1])}d}" for number in numbers)
    else:
        words = iter(found[1].split(","))
    for word in words:
        yield from expanded(pattern[: found.start()] + word + pattern[found.end() :])


def places(pattern: str) -> list[Place]:
    """The files that a pattern names, in its order, those of a wildcard sorted. Raises UserError if one is missing."""
    named = list(islice(expanded(absolute(pattern)), MOST_FILES + 1))
    if len(named) > MOST_FILES:
        raise UserError(f"data.source '{pattern}' names more than {MOST_FILES:,} files: name fewer")
    if is_address(pattern):
        return remote(named)
    found = [path for name in named for path in _matching(name)]
    if not found:
        raise UserError(f"data.source '{pattern}' matches no file: correct the pattern, or fetch the files")
    return [local(Path(path)) for path in found]


def remote(addresses: Sequence[str]) -> list[Place]:
    """The files at addresses of one server. Raises UserError if it cannot be reached, or one is missing."""
    if addresses[0].lower().startswith(_WEB) and (reason := unreachable(addresses[0])):
        raise UserError(f"'{addresses[0]}' cannot be reached ({reason}): go online, or fetch it and give its path")
    has_parts = _has_parts(_remote(addresses[0], has_parts=True))
    return list(thread_map(partial(_remote, has_parts=has_parts), addresses, result_bytes=CHUNK_BYTES))


def names_below(found: Sequence[Place]) -> list[str]:
    """The paths of files below the folder that all of them lie in. Raises UserError for one that is named twice."""
    paths = [place.name for place in found]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise UserError(f"data.source names '{twice}' twice")
    parts = [path.partition("?")[0].replace(os.sep, "/").split("/") for path in paths]
    depth = 0
    while all(len(own) > depth + 1 and own[depth] == parts[0][depth] for own in parts):
        depth += 1
    return [readable("/".join(own[depth:])) for own in parts]


def _matching(name: str) -> list[str]:
    if glob.has_magic(name) and not os.path.exists(name):
        return sorted(glob.glob(name))
    return [name]


def local(path: Path) -> Place:
    """The file at a path. Raises UserError if there is none."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(
            f"'{path}' of data.source cannot be read ({error.strerror}): fetch it, or leave it out of the pattern"
        ) from None
    return Place(str(path), status.st_size, str(status.st_mtime_ns))


def refuse_replaced(place: Place) -> None:
    """Raise UserError if the file at a path is not the one that was found at first."""
    if (now := local(Path(place.name))) != place:
        raise UserError(
            f"'{place.name}' has changed while it was in use (its size was {place.size:,} bytes, and is "
            f"{now.size:,}): put the file back, and resume"
        )


@contextlib.contextmanager
def opened(place: Place) -> Iterator[BinaryIO]:
    """The content of a file. Raises UserError if it is not the one that was found at first."""
    if not place.is_address:
        refuse_replaced(place)
        with open_file(Path(place.name)) as file:
            yield file
        return
    anew = partial(open_address, place.name)
    stream = anew() if place.has_parts else _Forward(partial(anew, block_size=0))
    with contextlib.closing(stream):
        yield cast(BinaryIO, stream)


def open_address(address: str, **options: Any) -> Any:
    """The file at an address, open for reading; `options` are fsspec's. Raises errors of the client of its server."""
    return _fsspec(address).open(address, "rb", **options).open()


def _remote(address: str, has_parts: bool) -> Place:
    with _explained(address):
        fsspec = _fsspec(address)
        files, path = fsspec.core.url_to_fs(address)
        facts = files.info(path)
    if facts.get("size") is None:
        raise UserError(f"the server of '{address}' does not say how large it is: fetch it, and give its path")
    version = next((str(facts[key]) for key in _VERSIONS if facts.get(key)), "")
    return Place(address, int(facts["size"]), version, has_parts)


def _has_parts(place: Place) -> bool:
    """Whether a server sends parts of a file, which few say in advance."""
    if not place.name.lower().startswith(_WEB) or place.size < 2:
        return True
    try:
        with _explained(place.name), contextlib.closing(open_address(place.name, cache_type="none")) as stream:
            stream.seek(1)
            return len(stream.read(1)) == 1
    except UserError as error:
        if isinstance(error.__cause__, ValueError):  # which fsspec raises where the server sends the whole file
            return False
        raise


def _fsspec(address: str) -> Any:
    if "::" in address or address.lower().startswith(("file://", "local://", "memory://")):
        raise UserError(f"data.source '{address}' is no plain address: give a path, or one of https, s3, gs or hf")
    try:
        import fsspec

        if address.lower().startswith(_WEB):
            import aiohttp  # noqa: F401 (fsspec needs it, and says so in several lines)
    except ImportError:
        raise missing_extra("aiohttp", "stream") from None
    return fsspec


@contextlib.contextmanager
def _explained(address: str) -> Iterator[None]:
    """Turn what fsspec and the clients below it raise into one line that names the file."""
    try:
        yield
    except (MemoryError, UserError):
        raise
    except Exception as error:  # each of the clients has errors of its own
        reason = "it is not there" if isinstance(error, FileNotFoundError) else first_line(error)
        raise UserError(
            f"'{address}' cannot be read ({reason}): correct data.source, or fetch it and give its path"
        ) from error


class _Forward:
    """A file of a server that sends no parts of it: what lies before its position is had by opening it anew."""

    def __init__(self, open_anew: Callable[[], Any]) -> None:
        self._open = open_anew
        self._stream, self._at = open_anew(), 0

    def seek(self, position: int) -> int:
        if position < self._at:
            self._stream.close()
            self._stream, self._at = self._open(), 0
        while self._at < position and self.read(min(_STEP, position - self._at)):
            pass
        return self._at

    def read(self, size: int) -> bytes:
        parts = []
        while size and (part := self._stream.read(size)):
            parts.append(part)
            self._at += len(part)
            size -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        self._stream.close()
