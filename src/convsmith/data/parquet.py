"""Opens Parquet and Arrow files: a column of images, encoded or as paths, and a column of labels. Decodes nothing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from convsmith.data.arrow import ARROW, PARQUET, open_columns
from convsmith.data.columns import find_columns
from convsmith.data.config import DataConfig
from convsmith.data.parallel import CHUNK_BYTES, thread_map
from convsmith.data.places import Place, names_below
from convsmith.data.rows import Rows
from convsmith.data.source import (
    File,
    Given,
    Index,
    Labels,
    Record,
    Source,
    Tree,
    fingerprint_files,
    numbered_ids,
    recall,
    remember,
    split_of,
    unused_files,
)
from convsmith.errors import UserError
from convsmith.files import read_json

STATE = "state.json"
UNLABELLED = "rows of the test split without a label"


def open_parquet(root: Path, files: Sequence[File], cache: Path, config: DataConfig) -> Source:
    """The rows of Parquet or Arrow `files` below `root`, divided by the names of files or folders, or else by a column.

    If all names are of the same split, the data counts as not divided. Raises UserError.
    """
    splits = _splits_by_name([file.path for file in files], lambda path: str(root / path))
    return open_rows(str(root), root, files, splits, cache, config)


def open_parquet_at(name: str, places: Sequence[Place], cache: Path, config: DataConfig) -> Source:
    """The rows of Parquet files that a pattern names, here or at addresses, as `open_parquet` has those of a folder."""
    splits = _splits_by_name(names_below(places), lambda path: path)
    if places[0].is_address:
        return open_addresses(name, places, splits, cache, config)
    root = Path(os.path.commonpath([Path(place.name).parent for place in places]))
    return open_rows(name, root, [File.at(Path(place.name), root) for place in places], splits, cache, config)


def _splits_by_name(paths: Sequence[str], shown: Callable[[str], str]) -> list[str]:
    """The split of each file by its path, '' where no path has one. Raises UserError where only some have."""
    splits = [split_of(path) for path in paths]
    if "" in splits and any(splits):
        stray = shown(paths[splits.index("")])
        raise UserError(f"'{stray}' belongs to no split: name it train-*, validation-* or test-*, or remove it")
    return splits


def open_rows(
    name: str,
    root: Path,
    files: Sequence[File],
    splits: Sequence[str],
    cache: Path,
    config: DataConfig,
    unused: Mapping[str, Iterable[str]] | None = None,
) -> Source:
    """The rows of Parquet or Arrow `files` below `root`, each file of one of `splits` or, where all are '', of none.

    Class names come from the schema's ClassLabel, else from the labels themselves. Rows of the test split whose label
    is missing or -1 are `unused`, beside those that the caller names. With data.stream they lie in shards. Raises
    UserError.
    """
    paths, sizes = [root / file.path for file in files], [file.size for file in files]
    fingerprint = fingerprint_files(root, files)
    return _open(name, root, paths, sizes, fingerprint, splits, cache, config, unused, streams=bool(config.stream))


def open_addresses(
    name: str,
    places: Sequence[Place],
    splits: Sequence[str],
    cache: Path,
    config: DataConfig,
    unused: Mapping[str, Iterable[str]] | None = None,
) -> Source:
    """The rows of Parquet files at addresses, as `open_rows` has those of files; shards unless data.stream is false."""
    fingerprint = hashlib.sha256(repr(list(places)).encode()).hexdigest()
    paths, sizes = [place.name for place in places], [place.size for place in places]
    streams = config.stream is not False
    return _open(name, Path("/"), paths, sizes, fingerprint, splits, cache, config, unused, streams)


def _open(
    name: str,
    root: Path,
    paths: Sequence[Path | str],
    sizes: Sequence[int],
    fingerprint: str,
    splits: Sequence[str],
    cache: Path,
    config: DataConfig,
    unused: Mapping[str, Iterable[str]] | None,
    streams: bool,
) -> Source:
    if len(set(splits)) == 1:
        splits = [""] * len(paths)
    if any(splits) and "train" not in splits:
        raise UserError(f"'{name}' has no files for train, only for {', '.join(sorted(set(splits)))}: add them")
    columns = (config.image_column, config.label_column, config.split_column)
    if any(columns):
        fingerprint = hashlib.sha256(repr((fingerprint, columns)).encode()).hexdigest()
    # An older edition may have read other splits from the same names.
    key = hashlib.sha256(repr((fingerprint, list(splits))).encode()).hexdigest()
    index = recall(cache, key) or remember(cache, key, _read_index(paths, splits, config))
    ids, rows = numbered_ids(index.given), Rows(root, paths, config)
    kept = np.flatnonzero(index.labels >= 0)

    def read(row: int) -> Record:
        return rows.read(int(kept[row]))

    unlabelled = [ids[row] for row in np.flatnonzero(index.labels < 0)]
    return Source(
        name=name,
        classes=index.classes,
        ids=tuple(ids[row] for row in kept),
        labels=index.labels[kept],
        given=index.given[kept],
        fingerprint=fingerprint,
        read=read,
        unused=unused_files(unused or {}, {UNLABELLED: unlabelled}),
        shards=rows.shards(sizes, index.labels, kept) if streams else None,
    )


class _Rows(NamedTuple):
    """What is known of the rows of a file: the classes that its schema states, their labels and their splits."""

    classes: tuple[str, ...] | None
    labels: list[Any]
    given: list[str]


def _rows_of(path: Path | str, split: str, config: DataConfig, by_column: bool) -> _Rows:
    file = open_columns(path)
    columns = find_columns(file, config)
    labels = file.column(columns.label)
    cells = file.column(columns.split) if columns.split and by_column else []
    return _Rows(columns.classes, labels, _splits_of(path, config, columns.split or "", cells) or [split] * len(labels))


def _read_index(paths: Sequence[Path | str], splits: Sequence[str], config: DataConfig) -> Index:
    """The index of all rows; the label of a row of the test split that has none is -1."""
    by_column = config.split_column is not None or not any(splits)
    read = thread_map(
        lambda at: _rows_of(*at, config, by_column), zip(paths, splits, strict=True), result_bytes=CHUNK_BYTES
    )
    files = list(read)
    names = files[0].classes
    for path, found in zip(paths, files, strict=True):
        if found.classes != names:
            raise UserError(f"the classes of '{path}' differ from those of '{paths[0]}': {found.classes} and {names}")
    labels, given = [found.labels for found in files], [found.given for found in files]
    home = os.path.dirname(paths[0])
    if len(paths) > 1 and len({bool(own and own[0]) for own in given if own}) > 1:
        raise UserError(f"some files below '{home}' have a column of splits and others none: name a split in all")
    values = [value for own in labels for value in own]
    homes: Given = np.array([home for own in given for home in own], dtype="<U5")
    if not values:
        raise UserError(f"'{paths[0]}' contains no rows")
    if "train" not in homes and any(homes):
        raise UserError(f"'{home}' has no rows for train, only for {', '.join(sorted(set(homes.tolist())))}")
    trained = {value for value, home in zip(values, homes.tolist(), strict=True) if home in ("train", "")}
    without = {None, "", -1} if names is not None or -1 not in trained else {None, ""}
    kept = np.array([value not in without and value == value for value in values])  # NaN differs from itself

    def place(row: int) -> str:
        for path, own in zip(paths, labels, strict=True):
            if row < len(own):
                return f"row {row} of '{path}'"
            row -= len(own)
        raise AssertionError("row beyond the last")

    used = [value for value, keep in zip(values, kept.tolist(), strict=True) if keep]
    lacking = np.flatnonzero(~kept & (homes != "test"))
    if len(lacking):
        raise UserError(
            f"there are rows without a label, the first of which is {place(int(lacking[0]))}: add it, or remove the row"
        )
    coded: Labels = np.full(len(values), -1, dtype=np.int64)
    if names is None:
        classes, coded[kept] = _encode(used, str(paths[0]))
        return Index(classes, coded, homes)
    coded[kept] = [value if value < len(names) else -1 for value in used]
    outside = np.flatnonzero(kept & ((coded < 0) | (coded >= len(names))))
    if len(outside):
        row = int(outside[0])
        raise UserError(f"label {values[row]} in {place(row)} is not an index of the {len(names)} classes")
    return Index(names, coded, homes)


def _encode(labels: list[Any], path: str) -> tuple[tuple[str, ...], list[int]]:
    """The classes, which are the distinct labels, sorted, and the class of each label."""
    kinds = {type(label) for label in labels}
    if kinds == {int, float}:  # of a file in which some are missing
        labels = list(map(float, labels))
    elif len(kinds) > 1:
        found = " and ".join(sorted(kind.__name__ for kind in kinds))
        raise UserError(f"the labels of '{path}' and the files beside it are {found}: write those of all as one type")
    position = {label: number for number, label in enumerate(sorted(set(labels)))}
    if any("\0" in str(label) for label in position):
        raise UserError(f"a label of '{path}', or of a file beside it, holds a NUL: remove it from the text")
    return tuple(map(str, position)), [position[label] for label in labels]


def _splits_of(path: Path | str, config: DataConfig, column: str, cells: Sequence[str | None]) -> list[str]:
    """The splits that a column names; empty if the column was only found and holds other things."""
    found = [split_of(cell or "") for cell in cells]
    if all(found) or (not any(found) and config.split_column is None):
        return found if all(found) else []
    other = next(cell for cell, split in zip(cells, found, strict=True) if not split)
    raise UserError(
        f"'{other}' in the column '{column}' of '{path}' is no split: write train, val or test, or rename the column"
    )


def column_files(root: Path, tree: Tree) -> list[File]:
    """The Parquet or Arrow files of a tree; of a folder that `datasets` saved, those that its state.json lists.

    Such a folder may hold what the library computed, too, in files that look alike. Raises UserError for files of both.
    """
    files = [file for file in tree.files if file.path.lower().endswith((*PARQUET, *ARROW))]
    kinds = {file.path.lower().endswith(PARQUET) for file in files}
    if len(kinds) > 1:
        raise UserError(f"'{root}' holds Parquet and Arrow files: name one of them, or its folder, as data.source")
    paths = {file.path for file in tree.files}
    listed: dict[str, set[str]] = {}
    for folder in {file.path[: file.path.rfind("/") + 1] for file in files}:
        if folder + STATE in paths:
            listed[folder] = {folder + name for name in _saved(root / folder / STATE)}
    return [file for file in files if file.path in listed.get(file.path[: file.path.rfind("/") + 1], (file.path,))]


def _saved(path: Path) -> list[str]:
    """The files of a data set that `datasets` saved with `save_to_disk`."""
    state = read_json(path)
    try:
        if state.get("_indices_data_files"):
            raise UserError(f"'{path}' selects rows of its files: save the data set with flatten_indices() first")
        return [str(file["filename"]) for file in state["_data_files"]]
    except (AttributeError, KeyError, TypeError):
        raise UserError(f"'{path}' does not list the files of the data set: save it with save_to_disk again") from None
