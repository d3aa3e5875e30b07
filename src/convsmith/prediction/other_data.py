"""Labelled images for a trained model, from anywhere: under its classes, by its preprocessing. Runs no model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count, product
from pathlib import Path

import numpy as np

from convsmith import records
from convsmith.data.cache import open_images
from convsmith.data.classes import with_classes
from convsmith.data.config import DataConfig, DecodeRules
from convsmith.data.dataset import Subset
from convsmith.data.parallel import Progress
from convsmith.data.places import folder_of
from convsmith.data.source import SPLIT_WORDS, SPLITS
from convsmith.data.sources import Source, cache_folder, open_source
from convsmith.errors import UserError, command, nearest
from convsmith.prediction.model_file import ModelCard
from convsmith.rundir import RunDir, default_name

TAKEN = frozenset({*SPLITS, "oof", "held-out"})  # what the evaluations of a run and its study are called
LONGEST = 100  # characters of a name that becomes a part of names of files


@dataclass(frozen=True, eq=False)
class OtherData:
    """Images of `source`, prepared for a model and under its classes; `images` are all that can be decoded.

    `config` has the absolute paths of the data. `hash` identifies the images, and `given` [N] are the splits that the
    source assigns.
    """

    config: DataConfig
    source: Source
    images: Subset
    given: Sequence[str]
    hash: str
    skipped: int

    def split(self, name: str | None) -> Subset:
        """The images of one of the source's own splits, or all; UserError if it has no such split."""
        if name is None:
            return self.images
        if name not in self.given:
            own = [split for split in SPLITS if split in self.given]
            raise UserError(
                f"{self.config.title} has no {name} split of its own: "
                + (f"choose --split {' or '.join(own)}, or " if own else "")
                + "leave --split out to evaluate on all its images"
            )
        return self.images.at(np.flatnonzero(np.array(self.given) == name))


def source_for(config: DataConfig, card: ModelCard, source: Source | None) -> Source:
    """What `config.source` names (or arrays, `source`) under the classes of the model of `card`; raises UserError."""
    source = with_classes(source or open_source(config, fewest_classes=1), config.classes)
    return under_classes(source, card.classes)


def open_other(config: DataConfig, source: Source, card: ModelCard, progress: Progress | None) -> OtherData:
    """Prepare the images of `source`, which is under the model's classes, for the model of `card`.

    `config` has absolute paths. Raises what `open_images` raises.
    """
    rules = DecodeRules.of(card.preprocessing)
    images = open_images(source, rules, cache_folder(config), config.on_error, progress)
    ids = [source.ids[row] for row in images.kept]
    subset = Subset(images.pixels, np.arange(len(ids)), source.labels[images.kept], ids, images.moments)
    given = source.given[images.kept].tolist()
    return OtherData(config, source, subset, given, images.hash, len(images.failures))


def under_classes(source: Source, classes: tuple[str, ...]) -> Source:
    """The source with its labels as indices of a model's `classes`, by name; UserError for other classes."""
    if source.classes == classes:
        return source
    held = [source.classes[label] for label in np.unique(source.labels)]
    if unknown := [name for name in held if name not in classes]:
        others = f" and {len(unknown) - 1:,} more" if len(unknown) > 1 else ""
        raise UserError(
            f"{source.name} holds the class '{unknown[0]}'{others}, which the model does not have."
            f"{nearest(unknown[0], classes)} Classes of the model: {', '.join(classes)}; of the data: "
            f"{', '.join(held)} (--data.classes leaves some out)"
        )
    index = {name: at for at, name in enumerate(classes)}
    positions = np.array([index.get(name, -1) for name in source.classes], dtype=np.int64)
    # The cache keeps images with their labels: under other classes they are another entry.
    digest = hashlib.sha256(repr((source.fingerprint, classes)).encode()).hexdigest()
    return replace(source, classes=classes, labels=positions[source.labels], fingerprint=digest)


def refuse_sealed(run: RunDir, config: DataConfig, sealed: Collection[str], other: OtherData, images: Subset) -> None:
    """Raise UserError if `images` of `other` are files of the run's own test split, whose ids are `sealed`.

    `config` is the run's. Files are recognised by their place, through links of both kinds; copies of them are not.
    What has no file for each image (Parquet, archives) is refused if it is the run's own source, or a part of it.
    """
    same_place = any(_overlap(*pair) for pair in product(config.sources, other.config.sources))
    if not sealed or not (same_place or any(Path(source).is_dir() for source in config.sources)):
        return
    own = _sealed_files(config, sealed)
    known = {mark for place in own for mark in _marks(place)}
    for name, place in _files(other.source, images.ids):
        unclear = same_place and (not place or "" in own)
        if unclear or not known.isdisjoint(_marks(place)):
            raise UserError(
                f"'{name}' of {other.config.title} may be of the sealed test split of run '{run.path}', since both "
                f"have the same place: evaluate on that split by {command('evaluate', run.path, '--split', 'test')}, "
                "which is recorded, or name data that it is not in"
            )


def named_alike(own: DataConfig, splits: Mapping[str, Sequence[str]], other: DataConfig, images: Subset) -> str:
    """A sentence if images have the names of the run's own, in `splits`: they may be copies, which no place tells.

    Data may have been opened at another depth than the run's: names are alike, too, if with the folder that was opened
    one is the end of the other (``val/ants/1.jpg`` of ``val``), or without it the end of a single name of the run. The
    latter does not hold for a folder of a split, since numbered files have the same names in all of them.
    """
    whole = {name: split for split, ids in splits.items() for name in ids}
    here, there = (Path(config.sources[0]).name if len(config.sources) == 1 else "" for config in (own, other))
    wanted, below, single = set(images.ids), dict[str, str](), dict[str, str | None]()
    for name, split in whole.items():
        for end in _ends(f"{here}/{name}"):
            folder, _, rest = end.partition("/")
            if folder == there and rest in wanted:
                below[rest] = split
        for end in _ends(name):
            if end in wanted:
                single[end] = None if end in single else split
    counts = dict.fromkeys(splits, 0)
    for name in images.ids:
        above = (end.removeprefix(f"{here}/") for end in _ends(f"{there}/{name}") if end.startswith(f"{here}/"))
        found = whole.get(name) or below.get(name) or next((whole[end] for end in above if end in whole), None)
        if found is None and there.casefold() not in SPLIT_WORDS:
            found = single.get(name)
        if found:
            counts[found] += 1
    if not (total := sum(counts.values())):
        return ""
    of_each = ", ".join(f"{number:,} of {split}" for split, number in counts.items() if number)
    return (
        f"{total:,} of {len(images):,} images have names of images of this run ({of_each}): if they are copies of "
        "them, these are no scores on new images"
    )


def _ends(name: str) -> list[str]:
    """A name, and it without its first folder, first two folders and so on, as long as one folder is left."""
    parts = name.split("/")
    return ["/".join(parts[first:]) for first in range(max(1, len(parts) - 1))]


def _sealed_files(config: DataConfig, sealed: Collection[str]) -> set[str]:
    """The real paths of the run's sealed test images, '' for those without a file of their own or of unknown place."""
    try:
        return {place for _, place in _files(open_source(config), sealed)}
    except UserError:  # the source is not there any more, or not as it was
        # In a folder, an id is the path below it: its test images may lie there although it cannot be opened whole.
        places = [[Path(folder, name) for folder in config.sources] for name in sealed]
        return {next((os.path.realpath(place) for place in of_one if place.is_file()), "") for of_one in places}


def _files(source: Source, ids: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each of these records with the real path of its file, '' for one without a file of its own."""
    wanted = set(ids)
    for row, name in enumerate(source.ids):
        if name in wanted:
            record = source.read(row)
            yield name, os.path.realpath(record) if isinstance(record, Path) else ""


def _marks(place: str) -> set[str | tuple[int, int]]:
    """What identifies a file: its real path, and where it has hard links, the numbers of its device and inode."""
    if not place:
        return set()
    try:
        status = os.stat(place)
    except OSError:
        return {place}
    return {place, (status.st_dev, status.st_ino)} if status.st_ino else {place}


def _overlap(one: str, other: str) -> bool:
    """Whether two sources are the same, or one lies within the other."""
    places = folder_of(one), folder_of(other)
    return one == other or Path(places[0]).is_relative_to(places[1]) or Path(places[1]).is_relative_to(places[0])


def name_of(run: RunDir, other: OtherData, split: str | None) -> str:
    """The name of an evaluation on other data, a part of its files' names: the data's own name, and the split.

    The same data have the same name again; others of the same name get a number.
    """
    words = [split] if split else []
    for path in map(Path, reversed(other.config.sources)):
        words = [path.parent.name] * (path.stem.casefold() in SPLIT_WORDS) + [path.stem, *words]
    plain = default_name(*words).strip("-.")[:LONGEST]
    plain = f"data-{plain}" if plain.casefold() in TAKEN or not plain else plain
    names = chain([plain], (f"{plain}-{number}" for number in count(2)))
    return next(name for name in names if _is_free(run.evaluation(name), other, split))


def _is_free(file: Path, other: OtherData, split: str | None) -> bool:
    """Whether an evaluation on these data may have this file: it is a new one, or is of the same data."""
    if not file.exists():
        return True
    before = records.read(file, records.Evaluation).get("data") or {}
    known = before.get("hash") == other.hash if other.config.is_own else before.get("source") == other.config.title
    return known and before.get("split") == split
