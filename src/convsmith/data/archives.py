"""Images in .zip and .tar archives, read in place: what lies in them, as a folder's tree, and each file's content.

A compressed .tar has no index. It is unpacked once, as one file without a name in the cache folder, which vanishes with
the process; what lies in it is remembered, so that a second start with decoded images unpacks nothing.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import posixpath
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from convsmith.data.limits import MAX_BYTES
from convsmith.data.source import File, Tree, fingerprint_files, ignored
from convsmith.data.stored import read_arrays, write_arrays
from convsmith.errors import UserError, first_line
from convsmith.files import open_file, require_file

ZIP = (".zip",)
#: Suffixes of a compressed .tar, and what unpacks it.
UNPACKED: dict[str, Callable[[BinaryIO], Any]] = {
    **dict.fromkeys((".tar.gz", ".tgz"), gzip.open),
    **dict.fromkeys((".tar.xz", ".txz"), lzma.open),
    **dict.fromkeys((".tar.bz2", ".tbz2"), bz2.open),
}
TAR = (".tar", *UNPACKED)
OTHERS = (".7z", ".rar", ".tar.zst")  # which Python cannot read

GROWTH, FREE_GROWTH = 200, 2**30  # beyond so many times its size, and so many bytes, an archive is a bomb
MOST_FILES = 5_000_000
_BLOCK = 2**20
_LARGEST_HEADER, _MOST_RECORDS = 2**20, 200  # bytes and pax records before a member of a .tar, which names its path
_PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_BEFORE_MEMBERS = (*_PAX, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_RECORD = re.compile(rb"([0-9]{1,20}) ")
_PATH, _SIZE, _SPARSE = b"path", b"size", b"GNU.sparse."
#: What the readers of archives raise for damaged ones: errors of their own, and those of Python within them.
DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
    *(OSError, EOFError, ValueError, RuntimeError, OverflowError, KeyError, IndexError),
)


class Member(NamedTuple):
    """A file in an archive: its path, its size, and where its content begins in a .tar."""

    path: str
    size: int
    start: int = 0


class Archive(NamedTuple):
    """`tree` lists the files as that of a folder; `read` returns the content of one, by its path."""

    tree: Tree
    read: Callable[[str], bytes]


def archive_of(path: Path) -> tuple[Path, str] | None:
    """The archive that a path names, and the folder in it (``photos.zip/train``) or '' for all of it; None if none."""
    for above in (path, *path.parents):
        if above.name.lower().endswith((*ZIP, *TAR, *OTHERS)) and above.is_file():
            return above, path.relative_to(above).as_posix().removeprefix(".")
    return None


def exists(path: Path) -> bool:
    """Whether there is a file or a folder at a path, or the archive that it names with a folder in it."""
    return path.exists() or archive_of(path) is not None


def open_archive(path: Path, cache: Path, folder: str = "") -> Archive:
    """The files in an archive, or below a `folder` of it.

    Raises UserError for one that is corrupt, encrypted or a bomb, and for one that holds links, paths that leave it,
    two files of one path, or another archive.
    """
    if path.name.lower().endswith(OTHERS):
        raise UserError(f"'{path}' is an archive of another kind than .zip and .tar: unpack it, and give its folder")
    with _reading(path):
        members, read = _zip(path) if path.name.lower().endswith(ZIP) else _tar(path, cache)
    _refuse_names(path, [member.path for member in members])
    changed = path.stat().st_mtime_ns
    prefix = f"{folder}/" if folder else ""
    below = [member for member in members if member.path.startswith(prefix)]
    if folder and not below:
        raise UserError(f"'{path}' has no folder '{folder}'")
    tree = Tree([], [], {})
    folders: set[str] = set()
    for member in below:
        name = member.path[len(prefix) :]
        if reason := ignored(name):
            tree.ignored.setdefault(reason, []).append(name)
            continue
        tree.files.append(File(name, member.size, changed))
        above = posixpath.dirname(name)
        while above and above not in folders:
            folders.add(above)
            above = posixpath.dirname(above)
    inner = [file.path for file in tree.files if file.path.lower().endswith((*ZIP, *TAR, *OTHERS))]
    if inner:
        raise UserError(f"'{path}' holds another archive, '{inner[0]}': unpack it, and give the folder")
    tree.files.sort()
    tree.folders.extend(sorted(folders))
    by_path = {member.path: member for member in below}

    def read_member(name: str) -> bytes:
        member = by_path[prefix + name]
        member = member._replace(size=min(member.size, MAX_BYTES + 1))  # decoding refuses more
        with _reading(path, member.path):
            content = read(member)
            if len(content) != member.size:
                raise EOFError("it ends too soon")
        return content

    return Archive(tree, read_member)


@contextlib.contextmanager
def _reading(path: Path, member: str = "") -> Iterator[None]:
    """Turn what the readers of archives raise into a UserError that names the archive, and the file in it."""
    try:
        yield
    except (MemoryError, UserError):
        raise
    except DAMAGED as error:
        where = f"'{member}' in '{path}'" if member else f"'{path}'"
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{where} cannot be read ({reason}): fetch or make the archive again, or unpack it") from error


def _refuse_names(path: Path, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        parts = name.split("/")
        if name.startswith("/") or ".." in parts or re.match("[A-Za-z]:", name):
            raise UserError(f"'{path}' holds '{name}', a path that leaves the archive: it is not read")
        if name in seen:
            raise UserError(f"'{path}' holds '{name}' twice: make the archive again")
        seen.add(name)


def _refuse_growth(path: Path, size: int, count: int) -> None:
    """Raise UserError for what unpacks to much more than the archive has."""
    if count > MOST_FILES or (size > FREE_GROWTH and size > GROWTH * path.stat().st_size):
        raise UserError(
            f"'{path}' is a bomb: its {path.stat().st_size:,} bytes become {size:,} or more, in {count:,} files; if it "
            "is yours, unpack it, and give its folder"
        )


def _link(path: Path | str, name: str) -> UserError:
    return UserError(f"'{path}' holds '{name}', a link or a device: make the archive with the files themselves")


def _plain(name: str) -> str:
    """A member's path with slashes and without a leading ``./``, as some programs write it."""
    return name.replace("\\", "/").removeprefix("./")


def _zip(path: Path) -> tuple[list[Member], Callable[[Member], bytes]]:
    require_file(path)
    archive = zipfile.ZipFile(path)
    infos: dict[str, list[zipfile.ZipInfo]] = {}
    for info in archive.infolist():
        mode = info.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _link(path, info.filename)
        if info.is_dir():
            continue
        if info.flag_bits & 1:
            raise UserError(f"'{path}' is encrypted: unpack it with its password, and give its folder")
        infos.setdefault(_plain(info.filename), []).append(info)
    members = [Member(name, info.file_size) for name, same in infos.items() for info in same]
    _refuse_growth(path, sum(member.size for member in members), len(members))

    def read(member: Member) -> bytes:
        with archive.open(infos[member.path][0]) as file:
            return file.read(member.size)  # no more than is declared

    return members, read


class _Content:
    """What lies in a .tar, unpacked when it is first read."""

    def __init__(self, path: Path, cache: Path) -> None:
        self._path, self._cache = path, cache
        self._file: BinaryIO | None = None

    def file(self) -> BinaryIO:
        self._file = self._file or _unpacked(self._path, self._cache)
        return self._file

    def read(self, member: Member) -> bytes:
        self.file().seek(member.start)
        return self.file().read(member.size)

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()


def _tar(path: Path, cache: Path) -> tuple[list[Member], Callable[[Member], bytes]]:
    key = fingerprint_files(path.parent, [File.at(path, path.parent)])
    listing, content = cache / "sources" / f"{key}.tar.npz", _Content(path, cache)
    members = _recalled(listing)
    if members is None:
        members = _listed(path, content.file())
        names = "\0".join(member.path for member in members).encode("utf-8", "surrogateescape")
        places = np.array([member[1:] for member in members], dtype=np.int64).reshape(-1, 2)
        with contextlib.suppress(OSError):  # a failure only makes the next start take longer
            write_arrays(listing, {"names": np.frombuffer(names, np.uint8), "places": places})
    return members, content.read


def _recalled(listing: Path) -> list[Member] | None:
    stored = read_arrays(listing, names=(np.uint8, (None,)), places=(np.int64, (None, 2)))
    if stored is None or not len(stored["places"]):
        return None
    names = stored["names"].tobytes().decode("utf-8", "surrogateescape").split("\0")
    if len(names) != len(stored["places"]):  # an older edition took names that hold a NUL
        return None
    return [Member(name, size, start) for name, (size, start) in zip(names, stored["places"].tolist(), strict=True)]


def _unpacked(path: Path, cache: Path) -> BinaryIO:
    """The .tar itself, or a compressed one's content in a file of the cache folder that has no name."""
    file = open_file(path)
    unpack = next((unpack for suffix, unpack in UNPACKED.items() if path.name.lower().endswith(suffix)), None)
    if unpack is None:
        return file
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    with contextlib.ExitStack() as on_error:
        plain: BinaryIO = on_error.enter_context(tempfile.TemporaryFile(dir=cache))
        with file, unpack(file) as blocks:
            size = 0
            for block in iter(partial(blocks.read, _BLOCK), b""):
                size += len(block)
                _refuse_growth(path, size, 0)
                if size > free:
                    raise UserError(
                        f"'{path}' needs more than the {free / 1e6:,.0f} MB that are free in '{cache}' to be read: "
                        "make room, or set data.cache or CONVSMITH_CACHE to another disk"
                    )
                plain.write(block)
        on_error.pop_all()
    return plain


def _listed(path: Path, content: BinaryIO) -> list[Member]:
    """The files in a .tar."""
    found: list[Member] = []
    for member, _ in tar_members(path, content):
        found.append(member)
        _refuse_growth(path, 0, len(found))
    return found


def tar_members(path: Path | str, content: BinaryIO) -> Iterator[tuple[Member, bytes]]:
    """The files in the .tar at `path`, each with its header, as they are found in `content`, which may only go forward.

    tarfile's own loop never ends on some sizes, and takes minutes for some attributes. Raises what `DAMAGED` lists.
    """
    common: dict[bytes, bytes] = {}  # attributes of all members that follow
    own: dict[bytes, bytes] = {}  # and of the next one
    start = 0
    while True:
        content.seek(start)
        block = content.read(tarfile.BLOCKSIZE)
        if len(block) < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("its end is missing")
        if block == bytes(tarfile.BLOCKSIZE):
            return
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        start += tarfile.BLOCKSIZE
        if info.size < 0:
            raise tarfile.ReadError("a size is negative")
        if info.type in _BEFORE_MEMBERS:
            if info.size > _LARGEST_HEADER:
                raise tarfile.ReadError("a header is too large")
            _take_attributes(content.read(info.size), info.type, common if info.type == tarfile.XGLTYPE else own)
            start += _in_blocks(info.size)
            continue
        attributes, own = {**common, **own}, {}
        if info.isdir():
            continue
        name = attributes[_PATH].decode("utf-8", "surrogateescape") if _PATH in attributes else info.name
        if not info.isreg() or info.type == tarfile.GNUTYPE_SPARSE or _SPARSE in attributes:
            raise _link(path, name)
        if "\0" in name:
            raise tarfile.ReadError("a name holds a NUL")
        size = int(attributes.get(_SIZE, info.size))
        yield Member(_plain(name.rstrip("/")), size, start), block
        start += _in_blocks(size)


def _take_attributes(content: bytes, kind: bytes, into: dict[bytes, bytes]) -> None:
    """Put what `content`, which precedes a member, says of its path and its size `into` a mapping.

    A pax header (POSIX.1-2008, pax, "pax Extended Header") has records ``LENGTH KEY=VALUE\\n``.
    """
    if kind == tarfile.GNUTYPE_LONGNAME:
        into.setdefault(_PATH, content.partition(b"\0")[0])
    if kind not in _PAX:
        return
    at = count = 0
    while at < len(content):
        record = _RECORD.match(content, at)
        end = at + int(record[1]) if record else 0
        value = content.find(b"=", at, end) + 1
        count += 1
        if record is None or not value or content[end - 1 : end] != b"\n" or count > _MOST_RECORDS:
            raise tarfile.ReadError("a header is damaged")
        key = content[record.end() : value - 1]
        if key in (_PATH, _SIZE):
            into[key] = content[value : end - 1]
        elif key.startswith(_SPARSE):
            into[_SPARSE] = b""
        at = end
    if not into.get(_SIZE, b"0").isdigit():
        raise tarfile.ReadError("a size is no number")


def _in_blocks(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
