"""Joins several sources into one, such as the folders of a data set that comes in folds. Decodes nothing."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from convsmith.data.archives import exists
from convsmith.data.source import Given, Record, Shards, Source, split_of, unused_files
from convsmith.errors import UserError


def join(sources: Sequence[Source], names: Sequence[str]) -> Source:
    """The images of all `sources` in this order; `names` are their paths or names, as the user gave them.

    An id begins with the source's path, from the folder that all of them lie in. Classes are matched by name: one
    source must have all of them, and the others may lack some. Folders that are called by splits, such as ``train``
    and ``test``, are these splits; otherwise all sources must be divided alike. Raises UserError.
    """
    prefixes = _prefixes(names)
    most = max(sources, key=lambda source: len(source.classes))
    for name, source in zip(names, sources, strict=True):
        if unknown := sorted(set(source.classes) - set(most.classes)):
            raise UserError(
                f"'{name}' has the classes {', '.join(unknown)}, which '{most.name}' has not: the classes of all that "
                "data.source names must have the same names"
            )
    _refuse_same_files(sources, names)
    position = {name: label for label, name in enumerate(most.classes)}
    ends = np.cumsum([len(source) for source in sources])
    digest = hashlib.sha256()
    for prefix, source in zip(prefixes, sources, strict=True):
        digest.update(repr((prefix, source.fingerprint)).encode())

    def read(row: int) -> Record:
        at = int(np.searchsorted(ends, row, side="right"))
        return sources[at].read(row - int(ends[at - 1] if at else 0))

    def same(name: str) -> set[object]:
        return {getattr(source, name) for source in sources}

    return Source(
        name=", ".join(names),
        classes=most.classes,
        ids=tuple(f"{prefix}/{name}" for prefix, source in zip(prefixes, sources, strict=True) for name in source.ids),
        labels=np.concatenate(
            [np.array([position[name] for name in source.classes], np.int64)[source.labels] for source in sources]
        ),
        given=np.concatenate(_given(sources, names)),
        fingerprint=digest.hexdigest(),
        read=read,
        val_fraction=max(source.val_fraction for source in sources),
        test_fraction=max(source.test_fraction for source in sources),
        native_size=sources[0].native_size if len(same("native_size")) == 1 else None,
        native_channels=sources[0].native_channels if len(same("native_channels")) == 1 else None,
        unused=unused_files(
            *(
                {reason: [f"{prefix}/{path}" for path in paths] for reason, paths in source.unused.items()}
                for prefix, source in zip(prefixes, sources, strict=True)
            )
        ),
        shards=_shards(sources, prefixes),
    )


def _shards(sources: Sequence[Source], prefixes: Sequence[str]) -> Shards | None:
    """The shards of all sources; None if some lie in none."""
    own = [source.shards for source in sources if source.shards]
    if len(own) < len(sources):
        return None
    firsts = np.cumsum([0, *(len(shards.names) for shards in own)])
    return Shards(
        tuple(f"{prefix}/{name}" for prefix, shards in zip(prefixes, own, strict=True) for name in shards.names),
        tuple(size for shards in own for size in shards.sizes),
        tuple(digest for shards in own for digest in shards.digests),
        np.concatenate([first + shards.of for first, shards in zip(firsts[:-1], own, strict=True)]),
    )


def _refuse_same_files(sources: Sequence[Source], names: Sequence[str]) -> None:
    """Raise UserError for a file that two of the sources hold, by a link: it could be in train and in test."""
    seen: dict[tuple[int, int], str] = {}
    for name, source in zip(names, sources, strict=True):
        root = Path(name).expanduser()
        if not (root / source.ids[0]).is_file():  # a data set, an archive or Parquet
            continue
        for record in source.ids:
            with contextlib.suppress(OSError):  # which decoding reports
                status = os.stat(root / record)
                if (other := seen.setdefault((status.st_dev, status.st_ino), name)) != name:
                    raise UserError(
                        f"data.source names '{other}' and '{name}', which hold one file, '{root / record}', twice: "
                        "remove the link"
                    )


def _prefixes(names: Sequence[str]) -> list[str]:
    """The path of each source from the folder that all of them lie in; a data set's name stays as it is."""
    places = {name: Path(name).expanduser() for name in names}
    paths = {name: place.resolve() for name, place in places.items() if exists(place)}
    for name, path in paths.items():
        for other, above in paths.items():
            if name != other and above in (path, *path.parents):
                raise UserError(f"data.source names '{name}', which '{other}' holds already: leave it out")
    try:
        common = os.path.commonpath([path.parent for path in paths.values()]) if paths else ""
    except ValueError:  # on different drives
        common = ""
    prefixes = [
        os.path.relpath(paths[name], common).replace(os.sep, "/")
        if common and name in paths
        else paths[name].as_posix()
        if name in paths
        else name
        for name in names
    ]
    for one, other in pairwise(sorted(prefixes)):
        if one == other:
            raise UserError(f"data.source names two sources that are called '{one}': rename one of them")
    return prefixes


def _given(sources: Sequence[Source], names: Sequence[str]) -> list[Given]:
    """The split of each image of each source."""
    own = [sorted(set(source.given.tolist())) for source in sources]
    if own == [[""]] * len(sources):
        called = [split_of(Path(name).name) for name in names]
        if not {"val", "test"} & set(called):  # folders of the train split, and others
            return [source.given for source in sources]
        if "" in called or "train" not in called:
            seen = ", ".join(f"'{name}' ({split or 'no split'})" for name, split in zip(names, called, strict=True))
            raise UserError(
                f"some of data.source are called by a split: {seen}; name all that are to be divided anew by names "
                "without train, val or test, or give a train split as well"
            )
        return [np.full(len(source), split, dtype="<U5") for source, split in zip(sources, called, strict=True)]
    for name, splits in zip(names[1:], own[1:], strict=True):
        if splits != own[0]:
            raise UserError(f"'{names[0]}' {_divided(own[0])}, but '{name}' {_divided(splits)}: name folders alike")
    return [source.given for source in sources]


def _divided(splits: list[str]) -> str:
    return f"is divided into {' and '.join(splits)}" if any(splits) else "has no splits"
