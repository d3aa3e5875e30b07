"""Labels of images that are not in class folders: from a table, or from their paths by a pattern. Decodes nothing."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from convsmith.data.config import COLUMN_KEYS, DataConfig
from convsmith.data.decode import IMAGE_SUFFIXES, has_image_suffix
from convsmith.data.source import (
    NO_IMAGE,
    Record,
    Source,
    Tree,
    fingerprint_files,
    readable,
    split_of,
    unused_files,
)
from convsmith.data.tables import Names, Table, existing_table, only_other, read_table, refuse_missing
from convsmith.errors import UserError

KEY = "data.labels"
LABEL_NAMES = frozenset(
    "label labels class classes classname category target y labelname classid labelid categoryid".split()
)
SPLIT_COLUMNS = frozenset("split set subset partition".split())
NO_LABEL, NO_ROW, NO_FILE = "not matched by data.labels", "without a row in the table", "rows without an image"
UNLABELLED = "test images without a label"
LONGEST = 5  # seconds that a pattern may take for one name
LONGEST_PATTERN, MOST_REPEATED = 1_000, 100_000  # beyond which it may take minutes to compile, which nothing can end
_COUNT = re.compile(r"\{(?:[0-9]*,)?([0-9]+)\}")
_EXPECTED = r"a CSV or TSV file or a pattern with one capture group such as '(cat|dog)\.\d+'"


class _Labelled(NamedTuple):
    """The label, and the split or '', of the images that have one, by their numbers; what is not used, by reason."""

    labels: dict[int, str]
    splits: dict[int, str]
    unused: dict[str, list[str]]


def open_labelled(root: Path, tree: Tree, read: Callable[[str], Record], config: DataConfig) -> Source:
    """The images of `tree` (what `walk` lists below `root`) that `config.labels`, a table or a pattern, gives a label.

    `read` returns what lies at a path of the tree. The splits are those of the table, else those of the folders that
    the images lie in. Raises UserError if the setting is neither a table nor a pattern or does not fit the images, for
    an image with two labels, and for a row without one.
    """
    assert config.labels is not None
    images = [file for file in tree.files if has_image_suffix(file.path)]
    if not images:
        raise UserError(f"no images below '{root}' with suffixes {', '.join(sorted(IMAGE_SUFFIXES))}")
    paths = [readable(file.path) for file in images]
    found = _labelled(root, tree, paths, read, config)
    rows = sorted(found.labels)
    splits = found.splits or _splits_of_folders(root, paths, found.labels)
    classes = in_order(found.labels.values())
    position = {name: at for at, name in enumerate(classes)}
    labels = np.array([position[found.labels[row]] for row in rows], dtype=np.int64)
    given = np.array([splits.get(row, "") for row in rows], dtype="<U5")
    records = [images[row] for row in rows]
    digest = hashlib.sha256(repr((fingerprint_files(root, records), classes)).encode())
    digest.update(labels.tobytes() + given.tobytes())
    others = [file.path for file in tree.files if not has_image_suffix(file.path)]
    return Source(
        name=str(root),
        classes=classes,
        ids=tuple(paths[row] for row in rows),
        labels=labels,
        given=given,
        fingerprint=digest.hexdigest(),
        read=lambda index: read(records[index].path),
        unused=unused_files(tree.ignored, {NO_IMAGE: others}, found.unused),
    )


def pattern(key: str, setting: str, expected: str) -> Callable[[str], str]:
    """What the capture group of a pattern matches in a name, or ''. Raises UserError that says what is `expected`.

    So does the function where one name takes more than LONGEST seconds: `regex` reads what `re` does, and can be ended.
    """
    import regex

    if len(setting) > LONGEST_PATTERN or math.prod(int(n) for n in _COUNT.findall(setting) if int(n)) > MOST_REPEATED:
        raise UserError(
            f"{key} '{setting[:80]}' is no file, and too large for a pattern, of at most {LONGEST_PATTERN:,} "
            f"characters whose counts in braces multiply to at most {MOST_REPEATED:,}: give {expected}"
        )
    try:
        compiled = regex.compile(setting)
    except (regex.error, OverflowError, RecursionError, ValueError) as error:
        raise UserError(f"{key} '{setting}' is neither a file nor a valid pattern ({error}): give {expected}") from None
    if compiled.groups != 1:
        raise UserError(
            f"{key} '{setting}' is not a file, and as a pattern it has {compiled.groups} capture groups "
            f"instead of one ((?:...) does not count): give {expected}"
        )

    def found(name: str) -> str:
        try:
            match = compiled.search(name, timeout=LONGEST)
        except TimeoutError:
            raise UserError(
                f"{key} '{setting}' takes more than {LONGEST} s for '{name}': write it without repeats in repeats, as "
                "in (a+)+"
            ) from None
        return (match[1] or "") if match else ""

    return found


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct names of classes, sorted: by value where all of them are whole numbers."""
    distinct = set(names)
    numbers = all(name.isdecimal() and name.isascii() and len(name) < 20 for name in distinct)
    return tuple(sorted(distinct, key=(lambda name: (int(name), name)) if numbers else None))


def _labelled(
    root: Path, tree: Tree, paths: Sequence[str], read: Callable[[str], Record], config: DataConfig
) -> _Labelled:
    assert config.labels is not None
    where = f"'{root}'"
    member = config.labels.removeprefix(f"{root.resolve()}/")
    if (file := existing_table(config.labels, root)) is not None:
        names = Names(where, paths, root, file.parent)
        return _by_table(config, read_table(KEY, file), names, paths)
    if member in {file.path for file in tree.files}:  # in an archive
        content = read(member)
        assert isinstance(content, bytes)
        names = Names(where, paths, root, (root / member).parent)
        return _by_table(config, Table(f"{KEY} '{root / member}'", content), names, paths)
    refuse_missing(KEY, config.labels, root)
    for key in COLUMN_KEYS:
        if getattr(config, key) is not None:
            raise UserError(f"data.{key} needs a table, but data.labels '{config.labels}' is not a file")
    label_of = pattern(KEY, config.labels, _EXPECTED)
    labels = {row: name for row, path in enumerate(paths) if (name := label_of(path))}
    if not labels:
        raise UserError(
            f"data.labels '{config.labels}' matches none of {len(paths):,} images, the first of which is "
            f"'{paths[0]}': change the pattern"
        )
    return _Labelled(labels, {}, {NO_LABEL: [path for row, path in enumerate(paths) if row not in labels]})


def _by_table(config: DataConfig, table: Table, names: Names, paths: Sequence[str]) -> _Labelled:
    image = table.image_column("data.image_column", config.image_column, names)
    split = _split_column(config, table)
    if config.label_column is not None:
        label = table.named("data.label_column", config.label_column)
    else:
        label = only_other(table, "labels", "set --data.label_column to one of", LABEL_NAMES, (image, split))
    labels: dict[int, str] = {}
    splits: dict[int, str] = {}
    missing: list[str] = []

    def add(cell: str, name: str, part: str) -> None:
        if not cell:
            raise UserError(f"no image in the column '{image}': write its path, or remove the row")
        if (row := names.find(cell)) is None:
            missing.append(cell)
            return
        if split is not None:
            if not (home := split_of(part)):
                raise UserError(f"'{part}' in the column '{split}' is no split: write train, val or test")
            if splits.setdefault(row, home) != home:
                raise UserError(f"'{paths[row]}' is in {home}, but a row above says {splits[row]}: keep one")
        if not name and splits.get(row) != "test":
            raise UserError(f"no label for '{cell}' in the column '{label}': add it, or remove the row")
        if labels.setdefault(row, name) != name:
            raise UserError(f"'{paths[row]}' is '{name}', but a row above says '{labels[row]}': keep one")

    for line, (cell, name, part) in table.rows(image, label, split or label):
        try:
            add(cell, name, part)
        except UserError as error:
            raise UserError(f"line {line} of {table.what}: {error}") from None
    if not labels:
        first = f", the first of which names '{missing[0]}'," if missing else ""
        raise UserError(
            f"none of the {len(missing):,} rows of {table.what}{first} is about an image below {names.where}: write "
            f"paths below it into the column '{image}', or set --data.image_column"
        )
    unused = {
        NO_ROW: [path for row, path in enumerate(paths) if row not in labels],
        NO_FILE: missing,
        UNLABELLED: [paths[row] for row, name in labels.items() if not name],
    }
    labels = {row: name for row, name in labels.items() if name}
    splits = {row: splits[row] for row in labels} if split else {}
    if splits and "train" not in splits.values():
        raise UserError(
            f"{table.what} has no images for train, only for {', '.join(sorted(set(splits.values())))}: "
            f"correct the column '{split}'"
        )
    return _Labelled(labels, splits, unused)


def _split_column(config: DataConfig, table: Table) -> str | None:
    """The column of splits: the one that is named, or one that is called so and holds splits alone."""
    if config.split_column is not None:
        return table.named("data.split_column", config.split_column)
    found = []
    for column in table.by_names(SPLIT_COLUMNS):
        cells = set(table.cells(column))
        known = {cell for cell in cells if split_of(cell)}
        if known == cells and known:
            found.append(column)
        elif known:
            other = min(cells - known)
            raise UserError(
                f"the column '{column}' of {table.what} holds splits such as '{min(known)}', but also '{other}': write "
                f"train, val or test, or rename the column"
            )
    if len(found) > 1:
        raise UserError(f"{table.what} has several columns of splits: set --data.split_column to {' or '.join(found)}")
    return found[0] if found else None


def _splits_of_folders(root: Path, paths: Sequence[str], labels: dict[int, str]) -> dict[int, str]:
    """The split of each image by the folder in which the paths part, or by those below it if these are the classes."""
    folders = {row: paths[row].rpartition("/")[0] for row in labels}
    parts = {folder: folder.split("/") if folder else [] for folder in set(folders.values())}
    depth = 0
    while len(tops := {tuple(above[: depth + 1]) for above in parts.values()}) == 1 and len(min(tops)) > depth:
        depth += 1
    home = {folder: above[depth] if len(above) > depth else "" for folder, above in parts.items()}
    if all(home[folders[row]] == label for row, label in labels.items()):
        home = {folder: above[depth + 1] if len(above) > depth + 1 else "" for folder, above in parts.items()}
        if not all(map(split_of, home.values())):
            return {}
    named = {top for top in home.values() if split_of(top)}
    if not named:
        return {}
    if others := set(home.values()) - named:
        raise UserError(
            f"of the folders with labelled images below '{root}', {', '.join(sorted(named))} look like splits, but not "
            f"{', '.join(sorted(other or 'those that lie in none' for other in others))}: name the split of each in a "
            f"table's data.split_column or in the folders' names, or name one folder as data.source"
        )
    splits = {folder: split_of(top) for folder, top in home.items()}
    if "train" not in splits.values():
        raise UserError(
            f"below '{root}' there are {' and '.join(sorted(named))}, but no train folder with labelled images"
        )
    return {row: splits[folder] for row, folder in folders.items()}
