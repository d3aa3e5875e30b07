"""Opens WebDataset shards: .tar files whose members `KEY.jpg`, `KEY.cls` lie side by side. Decodes nothing.

One pass over the headers of each shard finds its samples: their labels, and where their images begin. This is kept in
the cache folder; the images never are. The library `webdataset` is not used: it reads a shard as a stream in which no
position is known, so that an exact resume would read again all that was read before; it runs names of files that begin
with ``pipe:`` as commands, and unpickles. Here the rules of `archives` hold.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from convsmith.data.archives import DAMAGED, FREE_GROWTH, GROWTH, TAR, UNPACKED, tar_members
from convsmith.data.config import DataConfig
from convsmith.data.decode import IMAGE_SUFFIXES
from convsmith.data.labels import LABEL_NAMES, UNLABELLED
from convsmith.data.limits import MAX_BYTES
from convsmith.data.parallel import CHUNK_BYTES, thread_map
from convsmith.data.places import Place, is_address, names_below, opened
from convsmith.data.source import Shards, Source, ignored, readable, split_of, unused_files
from convsmith.data.stored import read_arrays, write_arrays
from convsmith.data.tables import plain
from convsmith.errors import UserError, first_line
from convsmith.files import parse_json

CLS, TXT, JSON = "cls", "txt", "json"  # the members that may hold a label, the first that a sample has
LONGEST = 200  # characters of a label; a longer text is a caption
_LARGEST_LABEL = 2**16  # bytes of a member that holds one
_NUMBER = re.compile(r"-?[0-9]{1,18}")
_KEY = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)", re.S)  # as webdataset divides a member's path
_OPEN = 4  # shards that are kept open
WITHOUT_IMAGE = "samples without an image"


def open_shards(name: str, found: Sequence[Place], cache: Path, config: DataConfig) -> Source:
    """The samples of shards, divided by the names of the shards. Raises UserError that names shard and sample.

    The classes are the distinct labels. Where all of these are numbers, `data.classes` may name them, in their order.
    """
    names = names_below(found)
    splits = [split_of(shard) for shard in names]
    if "" in splits and any(splits):
        stray = names[splits.index("")]
        raise UserError(f"'{stray}' of '{name}' belongs to no split: name it train-*, val-* or test-*, or leave it out")
    if len(set(splits)) == 1:
        splits = [""] * len(splits)
    if any(splits) and "train" not in splits:
        raise UserError(f"'{name}' has no shards for train, only for {', '.join(sorted(set(splits)))}: add them")
    index = partial(_index, cache=cache, config=config)
    # Each shard is a task of its own.
    samples = list(thread_map(index, found, result_bytes=CHUNK_BYTES))
    counts = [len(own.keys) for own in samples]
    of = np.repeat(np.arange(len(found)), counts)
    given = np.repeat(np.array(splits, dtype="<U5"), counts)
    ids = [f"{shard}/{readable(key)}" for shard, own in zip(names, samples, strict=True) for key in own.keys.tolist()]
    labels = np.concatenate([own.labels for own in samples])
    lacking = np.flatnonzero((labels == "") & (given != "test"))
    if len(lacking):
        raise UserError(
            f"'{ids[lacking[0]]}' has no label: a sample needs a member .{CLS}, .{TXT} or .{JSON} beside its image, or "
            "one that data.label_column names"
        )
    kept = np.flatnonzero(labels != "")
    classes, coded = _encode(labels[kept], config, name)
    digests = tuple(own.digest for own in samples)
    starts, sizes = (np.concatenate([getattr(own, key) for own in samples]) for key in ("starts", "sizes"))
    return Source(
        name=name,
        classes=classes,
        ids=tuple(ids[row] for row in kept.tolist()),
        labels=coded,
        given=given[kept],
        fingerprint=hashlib.sha256(repr((names, digests, classes)).encode()).hexdigest(),
        read=_Reader(found, of[kept], starts[kept], sizes[kept], [ids[row] for row in kept.tolist()]).read,
        unused=unused_files(
            {UNLABELLED: [ids[row] for row in np.flatnonzero(labels == "")]},
            {WITHOUT_IMAGE: [f"{s}/{key}" for s, own in zip(names, samples, strict=True) for key in own.without]},
        ),
        shards=Shards(tuple(names), tuple(place.size for place in found), digests, of[kept]),
    )


def is_shard(path: str) -> bool:
    """Whether a path or an address is that of a .tar by its name, compressed or not."""
    return path.partition("?")[0].lower().endswith(TAR)


@dataclass
class _Samples:
    """The N samples of a shard; a label may be ''. `digest` is that of headers and labels, `without` have no image."""

    keys: npt.NDArray[np.str_]
    labels: npt.NDArray[np.str_]
    starts: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    digest: str
    without: list[str] = field(default_factory=list)


def _index(place: Place, cache: Path, config: DataConfig) -> _Samples:
    """The samples of a shard, from the cache or by a pass over its headers and labels."""
    key = repr((place, config.image_column, config.label_column))
    file = cache / "shards" / f"{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()}.npz"
    text, number = (np.str_, (None,)), (np.int64, (None,))
    stored = read_arrays(file, keys=text, labels=text, starts=number, sizes=number, digest=(np.str_, ()), without=text)
    if stored is not None:
        keys, labels, starts, sizes = (stored[name] for name in ("keys", "labels", "starts", "sizes"))
        return _Samples(keys, labels, starts, sizes, str(stored["digest"]), stored["without"].tolist())
    with _reading(place.name), opened(place) as content, _plain_tar(place.name, content) as tar:
        samples = _pass(place, tar, config)
    arrays = dict(vars(samples)) | {"digest": np.array(samples.digest), "without": np.array(samples.without, np.str_)}
    with contextlib.suppress(OSError):  # a failure only makes the next start take longer
        write_arrays(file, arrays)
    return samples


@contextlib.contextmanager
def _reading(shard: str, sample: str = "") -> Iterator[None]:
    """Turn what the reader of .tar raises into a UserError that names the shard, and the sample in it."""
    try:
        yield
    except (MemoryError, UserError):
        raise
    except Exception as error:
        if not (isinstance(error, DAMAGED) or is_address(shard)):  # each client of a server has errors of its own
            raise
        where = f"sample '{sample}' of the shard '{shard}'" if sample else f"the shard '{shard}'"
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{where} cannot be read ({reason}): fetch or make the shard again") from error


@contextlib.contextmanager
def _plain_tar(name: str, content: BinaryIO) -> Iterator[BinaryIO]:
    """The .tar in a file, unpacked while it is read where it is compressed."""
    unpack = next((unpack for suffix, unpack in UNPACKED.items() if name.lower().endswith(suffix)), None)
    if unpack is None:
        yield content
    else:
        with unpack(content) as plain_content:
            yield plain_content


def _pass(place: Place, content: BinaryIO, config: DataConfig) -> _Samples:
    found: list[tuple[str, str, int, int]] = []
    without: list[str] = []
    digest = hashlib.sha256()
    key, images, labels = "", dict[str, tuple[int, int]](), dict[str, str]()
    most = max(GROWTH * place.size, FREE_GROWTH)

    def close() -> None:
        if images:
            found.append((key, _label(place, key, labels, config), *_image(place, key, images, config)))
        elif labels:
            without.append(readable(key))

    for member, header in tar_members(place.name, content):
        digest.update(header)
        match = _KEY.fullmatch(member.path)
        if match is None or ignored(member.path) or member.path.startswith("__"):
            continue
        if match[1] != key:
            close()
            key, images, labels = match[1], {}, {}
        suffix = match[2].lower()
        if member.start > most or len(found) > most:
            raise UserError(f"the shard '{place.name}' is a bomb: it unpacks to {member.start:,} bytes or more")
        if f".{suffix.rpartition('.')[2]}" in IMAGE_SUFFIXES:
            images[suffix] = member.start, member.size
        elif suffix in (CLS, TXT, JSON, config.label_column) and member.size <= _LARGEST_LABEL:
            content.seek(member.start)
            text = content.read(member.size)
            if len(text) < member.size:
                raise EOFError("it ends too soon")
            digest.update(text)
            labels[suffix] = text.decode("utf-8", "replace")
    close()
    keys = [sample[0] for sample in found]
    if len(set(keys)) < len(keys):
        twice = next(name for name in keys if keys.count(name) > 1)
        raise UserError(f"the shard '{place.name}' holds the sample '{readable(twice)}' twice: make the shard again")
    columns: tuple[Sequence[Any], ...] = tuple(zip(*found, strict=True)) or ((), (), (), ())
    starts, sizes = (np.array(column, np.int64) for column in columns[2:])
    return _Samples(
        np.array(columns[0], np.str_), np.array(columns[1], np.str_), starts, sizes, digest.hexdigest(), without
    )


def _image(place: Place, key: str, images: dict[str, tuple[int, int]], config: DataConfig) -> tuple[int, int]:
    """Where the image of a sample begins, and its size."""
    named = config.image_column
    if named in images:
        return images[named]
    if named is None and len(images) == 1:
        return next(iter(images.values()))
    said = "has several images" if named is None else f"has no .{named}"
    raise UserError(
        f"sample '{readable(key)}' of the shard '{place.name}' {said}: set --data.image_column to one of "
        f"{', '.join(sorted(images))}"
    )


def _label(place: Place, key: str, labels: dict[str, str], config: DataConfig) -> str:
    """The label of a sample as text, '' if it has none."""
    named = config.label_column
    value: Any = None
    if named in labels:
        value = labels[named]
    elif named is None and CLS in labels:
        value = labels[CLS]
    elif JSON in labels:
        value = _from_json(place, key, labels[JSON], named)
    if value is None and named is None:
        value = labels.get(TXT)
    if value is None:
        return ""
    text = str(value).strip() if isinstance(value, str | int) else ""
    if not text or len(text) > LONGEST or "\0" in text:
        raise UserError(
            f"sample '{readable(key)}' of the shard '{place.name}' has a label that is no number or short text: set "
            "--data.label_column to the member (cls, txt) or to the field of its .json that holds the class"
        )
    return text


def _from_json(place: Place, key: str, text: str, named: str | None) -> Any:
    try:
        fields = parse_json(text)
    except ValueError as error:
        raise UserError(
            f"the .json of sample '{readable(key)}' of the shard '{place.name}' cannot be read ({first_line(error)})"
        ) from None
    if not isinstance(fields, dict):
        return None if named else fields
    if named is not None:
        return fields.get(named)
    values = [value for name, value in fields.items() if plain(str(name)) in LABEL_NAMES]
    texts = [value for value in values if isinstance(value, str)]  # a name says more than a number
    return next(iter(texts or values), None)


def _encode(
    labels: npt.NDArray[np.str_], config: DataConfig, name: str
) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """The names of the classes, and labels that index them."""
    distinct, coded = np.unique(labels, return_inverse=True)
    texts = distinct.tolist()
    if not all(_NUMBER.fullmatch(text) for text in texts):
        return tuple(texts), coded.astype(np.int64)
    numbers = np.array([int(text) for text in texts], dtype=np.int64)
    if isinstance(config.classes, tuple) and not set(config.classes) & set(texts):
        if texts and not 0 <= numbers.min() <= numbers.max() < len(config.classes):
            raise UserError(
                f"the labels of '{name}' are the numbers {numbers.min()} to {numbers.max()}, of which data.classes "
                f"names {len(config.classes)}: give a name for each, from 0 on"
            )
        return config.classes, numbers[coded]
    distinct_numbers, position = np.unique(numbers, return_inverse=True)
    return tuple(map(str, distinct_numbers.tolist())), position[coded].astype(np.int64)


class _Reader:
    """Reads the images of samples by number; fastest in the order of a shard. It is thread-safe."""

    def __init__(
        self,
        found: Sequence[Place],
        of: npt.NDArray[np.int64],
        starts: npt.NDArray[np.int64],
        sizes: npt.NDArray[np.int64],
        ids: Sequence[str],
    ) -> None:
        self._found, self._of, self._starts, self._sizes, self._ids = found, of, starts, sizes, ids
        self._lock = threading.Lock()
        self._open: dict[int, tuple[BinaryIO, Callable[[], None]]] = {}

    def __del__(self) -> None:
        for _, close in self._open.values():
            close()

    def read(self, row: int) -> bytes:
        shard, start = int(self._of[row]), int(self._starts[row])
        size = min(int(self._sizes[row]), MAX_BYTES + 1)  # decoding refuses more
        place = self._found[shard]
        with self._lock, _reading(place.name, self._ids[row].rpartition("/")[2]):
            content = self._content(shard)
            content.seek(start)
            found = content.read(size)
            if len(found) != size:
                raise EOFError("it ends too soon")
        return found

    def _content(self, shard: int) -> BinaryIO:
        if shard not in self._open:
            while len(self._open) >= _OPEN:
                self._open.pop(next(iter(self._open)))[1]()
            with contextlib.ExitStack() as stack:
                content = stack.enter_context(opened(self._found[shard]))
                tar = stack.enter_context(_plain_tar(self._found[shard].name, content))
                self._open[shard] = tar, stack.pop_all().close
        return self._open[shard][0]
