"""`Source`, the common form of all data sources: labelled records and a fingerprint. Decodes nothing."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from convsmith.data.stored import Form, read_arrays, write_arrays
from convsmith.errors import UserError

Labels = npt.NDArray[np.int64]
Given = npt.NDArray[np.str_]
Record = bytes | Path | npt.NDArray[np.uint8]

SPLITS = ("train", "val", "test")
MOST_WAYS = 100  # in which links below a folder may lead to one and the same folder
#: A word in the name of a folder or a file, in any case -> the split that it holds.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_BETWEEN_WORDS = re.compile(r"[\W\d_]+|(?<=[a-z])(?=[A-Z])")

#: What operating systems and editors leave in folders; names that begin with ._ are resource forks of macOS.
LITTER = frozenset(
    (".ds_store", ".ipynb_checkpoints", "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin")
)
SYSTEM, HIDDEN = "left by systems and editors", "hidden"
NO_IMAGE, OUTSIDE = "not images by their suffix", "outside the class folders"


class Shards(NamedTuple):
    """The files in which records lie one after the other, so that reading in their order is fast, and any other slow.

    `names`, sizes in bytes and `digests` of what is in their index belong to the files; `of` int64 [N] is the number of
    each record's file.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    digests: tuple[str, ...]
    of: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Source:
    """N labelled images that have not been decoded yet.

    `ids` are stable names of the records; `labels` int64 [N] index `classes`; `given` [N] is the split
    that the source itself assigns ('train', 'val', 'test', or '' for none). `read(i)` returns record i
    (encoded bytes, a path, or uint8 pixels); reading in order is fastest, and with Parquet any other order is slow.
    `unused` names the files of a folder that are not records, by the reason. `native_size` is (height, width).
    Records that lie in `shards` may be streamed, and splits keep each shard whole.
    """

    name: str
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    labels: Labels
    given: Given
    fingerprint: str
    read: Callable[[int], Record]
    val_fraction: float = 0.15
    test_fraction: float = 0.15
    native_size: tuple[int, int] | None = None
    native_channels: int | None = None
    unused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    shards: Shards | None = None

    def __post_init__(self) -> None:
        assert len(self.ids) == len(self.labels) == len(self.given)
        if not self.ids:
            raise UserError(f"{self.name} holds no images")

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, rows: npt.NDArray[np.int64]) -> Source:
        """The images in `rows` alone, in that order, under all classes."""
        return replace(
            self,
            ids=tuple(self.ids[row] for row in rows.tolist()),
            labels=self.labels[rows],
            given=self.given[rows],
            fingerprint=hashlib.sha256(self.fingerprint.encode() + rows.astype("<i8").tobytes()).hexdigest(),
            read=lambda index: self.read(int(rows[index])),
            shards=self.shards and self.shards._replace(of=self.shards.of[rows]),
        )

    def of_classes(self, fewest: int) -> Source:
        """The source itself; UserError if it has fewer classes. To train takes two, and to evaluate a model one."""
        if len(self.classes) < fewest:
            raise UserError(f"{self.name} holds a single class, '{self.classes[0]}': a classifier needs two or more")
        return self


class File(NamedTuple):
    """A file below a folder: its relative POSIX path, its size and its modification time."""

    path: str
    size: int
    mtime_ns: int

    @classmethod
    def at(cls, path: Path, root: Path) -> File:
        """The file at a path below `root`. Raises OSError."""
        status = path.stat()
        return cls(path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns)


class Tree(NamedTuple):
    """The files and folders below a folder, sorted, as relative POSIX paths.

    Those that `ignored` names are in neither list: `ignored` holds their files by reason.
    """

    files: list[File]
    folders: list[str]
    ignored: dict[str, list[str]]


class Index(NamedTuple):
    """The part of a source that is worth caching: classes, labels [N], given splits [N]."""

    classes: tuple[str, ...]
    labels: Labels
    given: Given


def readable(path: str) -> str:
    """A file's name as text that can be written anywhere: bytes that are not UTF-8 are escaped, as in ``\\xfc``."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def split_of(path: str) -> str:
    """The split that a relative path names, its last part first: 'train', 'val', 'test', or '' for none.

    A part names a split if one of its words does: ``Training``, ``seg_train``, ``val2017``, ``beans-test.parquet``.
    Words of two splits, as in ``train_test_split``, name none.
    """
    for part in reversed(path.split("/")):
        named = {SPLIT_WORDS.get(word.casefold(), "") for word in _BETWEEN_WORDS.split(part)} - {""}
        if named:
            return named.pop() if len(named) == 1 else ""
    return ""


def ignored(path: str) -> str:
    """Why the file or folder at a relative path is never read as data: SYSTEM or HIDDEN; '' if it may be data."""
    parts = path.split("/")
    if any(part.casefold() in LITTER or part.startswith("._") for part in parts):
        return SYSTEM
    return HIDDEN if any(part.startswith(".") for part in parts) else ""


def walk(root: Path) -> Tree:
    """List everything below `root`, following symbolic links but never in a loop.

    A broken link is listed as a file, so that it is reported rather than lost. Raises UserError where links lead to the
    same folder in more than MOST_WAYS ways: a few links to each other's folders would make millions of files.
    """
    tree = Tree([], [], {})
    ways: Counter[tuple[int, int]] = Counter()

    def leave_out(path: str, reason: str) -> None:
        tree.ignored.setdefault(reason, []).append(path)

    def visit(folder: Path, prefix: str, above: frozenset[tuple[int, int]]) -> None:
        status = folder.stat()
        here = (status.st_dev, status.st_ino)
        if here in above:
            return
        ways[here] += 1
        if ways[here] > MOST_WAYS:
            raise UserError(f"links below '{root}' lead to '{folder}' in more than {MOST_WAYS} ways: remove some")
        if prefix:
            tree.folders.append(prefix[:-1])
        with os.scandir(folder) as entries:
            for entry in entries:
                path, reason = prefix + entry.name, ignored(entry.name)
                if entry.is_dir():
                    if not reason:
                        visit(folder / entry.name, path + "/", above | {here})
                    elif not entry.is_symlink():
                        for inside, _, names in os.walk(entry.path):
                            below = os.path.relpath(inside, folder).replace(os.sep, "/")
                            for name in names:
                                leave_out(f"{prefix}{below}/{name}", reason)
                elif entry.is_file() or not os.path.exists(entry.path):
                    if reason:
                        leave_out(path, reason)
                        continue
                    status = entry.stat(follow_symlinks=entry.is_file())
                    tree.files.append(File(path, status.st_size, status.st_mtime_ns))

    try:
        visit(root, "", frozenset())
    except OSError as error:
        raise UserError(f"cannot read the folder '{error.filename}': {error.strerror}") from error
    by_reason = {reason: sorted(paths) for reason, paths in tree.ignored.items()}
    return Tree(sorted(tree.files), sorted(tree.folders), by_reason)


def unused_files(*parts: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, ...]]:
    """Files by the reason why they are not used, from several such mappings, readable and sorted."""
    together: dict[str, list[str]] = {}
    for part in parts:
        for reason, paths in part.items():
            together.setdefault(reason, []).extend(map(readable, paths))
    return {reason: tuple(sorted(paths)) for reason, paths in together.items() if paths}


def fingerprint_files(root: Path, files: Iterable[File]) -> str:
    """SHA-256 of the folder's absolute path and of each file's relative path, size and modification time."""
    digest = hashlib.sha256(os.fsencode(root.resolve()))
    for file in files:
        digest.update(b"\0" + os.fsencode(file.path) + b"\0%d\0%d" % (file.size, file.mtime_ns))
    return digest.hexdigest()


def numbered_ids(given: Given) -> tuple[str, ...]:
    """Ids for records without names: their number within their split, for example ``train/000123``."""
    counts: dict[str, int] = {}
    ids = []
    for split in given.tolist():
        number = counts.get(split, 0)
        counts[split] = number + 1
        ids.append(f"{split}/{number:06d}" if split else f"{number:06d}")
    return tuple(ids)


def recall(cache: Path, fingerprint: str) -> Index | None:
    """The index cached for a fingerprint, so that a second start needs neither pyarrow nor torchvision."""
    forms: dict[str, Form] = {"classes": (np.str_, (None,)), "labels": (np.int64, (None,)), "given": (np.str_, (None,))}
    stored = read_arrays(_index_path(cache, fingerprint), **forms)
    return None if stored is None else Index(tuple(stored["classes"].tolist()), stored["labels"], stored["given"])


def remember(cache: Path, fingerprint: str, index: Index) -> Index:
    """Store an index in the cache. If that fails, the next start takes longer; nothing else is lost."""
    with contextlib.suppress(OSError):
        arrays = {"classes": np.array(index.classes), "labels": index.labels, "given": index.given}
        write_arrays(_index_path(cache, fingerprint), arrays)
    return index


def _index_path(cache: Path, fingerprint: str) -> Path:
    return cache / "sources" / f"{fingerprint}.npz"
