"""Groups of images that must share a split, such as those of one patient or video. Makes no splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from convsmith.data.config import DataConfig
from convsmith.data.labels import pattern
from convsmith.data.tables import Names, Table, existing_table, only_other, read_table, refuse_missing
from convsmith.errors import UserError

GroupNumbers = npt.NDArray[np.int64]

KEY = "data.groups"
GROUP_NAMES = frozenset("group groups groupid patient patientid subject subjectid".split())
_EXPECTED = r"a CSV or TSV file or a pattern with one capture group such as '(patient\d+)_'"


class Groups(NamedTuple):
    """`numbers` int64 [N] is the group of each image, numbered by first appearance; `names` is indexed by them."""

    numbers: GroupNumbers
    names: tuple[str, ...]


def read_groups(config: DataConfig, ids: Sequence[str], root: Path | None = None) -> Groups:
    """The groups of `ids`, as `config.groups` defines them; `root` is the folder below which the ids are paths.

    A table lists the group of each image. A regular expression is searched for in each id, and the text that its
    capture group matches is the group. Raises UserError if either is malformed or leaves an id without a group.
    """
    assert config.groups is not None
    file = existing_table(config.groups, root)
    if file is None:
        refuse_missing(KEY, config.groups, root)
        if config.group_column is not None:
            raise UserError(f"data.group_column needs a table, but data.groups '{config.groups}' is not a file")
        found = list(map(pattern(KEY, config.groups, _EXPECTED), ids))
    else:
        found = _by_table(config, read_table(KEY, file), Names("the data", ids, root, file.parent), ids)
    if without := [name for name, group in zip(ids, found, strict=True) if not group]:
        hint = "change the pattern" if file is None else "add rows for them"
        raise UserError(
            f"data.groups '{config.groups}' assigns no group to {len(without)} of {len(ids)} images, "
            f"the first of which is '{without[0]}': {hint}"
        )
    number_of = {group: number for number, group in enumerate(dict.fromkeys(found))}
    return Groups(np.array([number_of[group] for group in found], dtype=np.int64), tuple(number_of))


def refuse_divided(groups: Groups, splits: Mapping[str, npt.NDArray[np.int64]], hint: str) -> None:
    """Raise a UserError that ends with `hint` if a group has rows in more than one of `splits`."""
    home: dict[int, str] = {}
    for split, rows in splits.items():
        for number in np.unique(groups.numbers[rows]).tolist():
            if (first := home.setdefault(number, split)) != split:
                raise UserError(f"group '{groups.names[number]}' is in both {first} and {split}: {hint}")


def _by_table(config: DataConfig, table: Table, names: Names, ids: Sequence[str]) -> list[str]:
    shared = config.image_column if config.image_column in table.columns else None  # it may be that of data.labels
    image = table.image_column("data.image_column", shared, names)
    if config.group_column is not None:
        column = table.named("data.group_column", config.group_column)
    else:
        column = only_other(table, "groups", "set --data.group_column to one of", GROUP_NAMES, (image,))
    groups = [""] * len(ids)
    for line, (cell, group) in table.rows(image, column):
        try:
            row = names.find(cell)
        except UserError as error:
            raise UserError(f"line {line} of {table.what}: {error}") from None
        if row is None:
            continue
        if groups[row] not in ("", group):
            raise UserError(
                f"{table.what} puts '{ids[row]}' into two groups, '{groups[row]}' and '{group}' (line {line}): keep one"
            )
        groups[row] = group
    return groups
