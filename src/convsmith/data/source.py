"""`Source`, the common form of all data sources: labelled records and a fingerprint. Decodes nothing."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from convsmith.data.stored import Form, read_arrays, write_arrays
from convsmith.errors import UserError

Labels = npt.NDArray[np.int64]
Given = npt.NDArray[np.str_]
Record = bytes | Path | npt.NDArray[np.uint8]

SPLITS = ("train", "val", "test")
MOST_WAYS = 100  # in which links below a folder may lead to one and the same folder
#: What folders and files are called -> the split that they hold.
SPLIT_NAMES = {"train": "train", "validation": "val", "valid": "val", "val": "val", "test": "test"}


@dataclass(frozen=True, eq=False)
class Source:
    """N labelled images that have not been decoded yet.

    `ids` are stable names of the records; `labels` int64 [N] index `classes`; `given` [N] is the split
    that the source itself assigns ('train', 'val', 'test', or '' for none). `read(i)` returns record i
    (encoded bytes, a path, or uint8 pixels); reading in order is fastest, and with Parquet any other order is slow.
    `unused` names the files of a folder that are not records. `native_size` is (height, width).
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
    native_channels: Literal[1, 3] | None = None
    unused: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.ids) == len(self.labels) == len(self.given)
        if not self.ids:
            raise UserError(f"{self.name} holds no images")

    def __len__(self) -> int:
        return len(self.ids)

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


class Tree(NamedTuple):
    """The files and folders below a folder, sorted, as relative POSIX paths."""

    files: list[File]
    folders: list[str]


class Index(NamedTuple):
    """The part of a source that is worth caching: classes, labels [N], given splits [N]."""

    classes: tuple[str, ...]
    labels: Labels
    given: Given


def readable(path: str) -> str:
    """A file's name as text that can be written anywhere: bytes that are not UTF-8 are escaped, as in ``\\xfc``."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def walk(root: Path) -> Tree:
    """List everything below `root`, following symbolic links but never in a loop. Hidden folders are left out.

    A broken link is listed as a file, so that it is reported rather than lost. Raises UserError where links lead to the
    same folder in more than MOST_WAYS ways: a few links to each other's folders would make millions of files.
    """
    files: list[File] = []
    folders: list[str] = []
    ways: Counter[tuple[int, int]] = Counter()

    def visit(folder: Path, prefix: str, above: frozenset[tuple[int, int]]) -> None:
        status = folder.stat()
        here = (status.st_dev, status.st_ino)
        if here in above:
            return
        ways[here] += 1
        if ways[here] > MOST_WAYS:
            raise UserError(f"links below '{root}' lead to '{folder}' in more than {MOST_WAYS} ways: remove some")
        if prefix:
            folders.append(prefix[:-1])
        with os.scandir(folder) as entries:
            for entry in entries:
                path = prefix + entry.name
                if entry.is_dir():
                    if not entry.name.startswith("."):
                        visit(folder / entry.name, path + "/", above | {here})
                elif entry.is_file() or not os.path.exists(entry.path):
                    status = entry.stat(follow_symlinks=entry.is_file())
                    files.append(File(path, status.st_size, status.st_mtime_ns))

    try:
        visit(root, "", frozenset())
    except OSError as error:
        raise UserError(f"cannot read the folder '{error.filename}': {error.strerror}") from error
    return Tree(sorted(files), sorted(folders))


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
