"""Groups of images that must share a split, such as those of one patient or video. Makes no splits."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from convsmith.errors import UserError
from convsmith.files import open_text

GroupNumbers = npt.NDArray[np.int64]

_COLUMNS = ("id", "group")
_EXPECTED = r"a CSV file with the columns id,group or a pattern with one capture group such as '(patient\d+)_'"


class Groups(NamedTuple):
    """`numbers` int64 [N] is the group of each image, numbered by first appearance; `names` is indexed by them."""

    numbers: GroupNumbers
    names: tuple[str, ...]


def groups_file(setting: str) -> Path | None:
    """The absolute path of the CSV file that `data.groups` names; None if it is a pattern.

    A setting is a file if a file of this name exists. Raises UserError for a missing file that ends in .csv.
    """
    path = os.path.expanduser(setting)
    if os.path.isfile(path):  # not Path.is_file, which raises an error for a long pattern
        return Path(path).resolve()
    if setting.lower().endswith(".csv"):
        raise UserError(f"data.groups '{setting}' was not found: there is no such file")
    return None


def read_groups(setting: str, ids: Sequence[str]) -> Groups:
    """The groups of `ids`, as `data.groups` defines them.

    A CSV file lists the group of each id. A regular expression is searched for in each id, and the text that its
    capture group matches is the group. Raises UserError if either is malformed or leaves an id without a group.
    """
    file = groups_file(setting)
    group_of = _by_pattern(setting) if file is None else _by_table(file)
    found = [group_of(name) for name in ids]
    if without := [name for name, group in zip(ids, found, strict=True) if not group]:
        hint = "change the pattern" if file is None else "add rows for their ids, written as in splits.json"
        raise UserError(
            f"data.groups '{setting}' assigns no group to {len(without)} of {len(ids)} images, "
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


def _by_pattern(setting: str) -> Callable[[str], str]:
    try:
        pattern = re.compile(setting)
    except (re.error, OverflowError) as error:
        raise UserError(
            f"data.groups '{setting}' is neither a file nor a valid pattern ({error}): give {_EXPECTED}"
        ) from None
    if pattern.groups != 1:
        raise UserError(
            f"data.groups '{setting}' is not a file, and as a pattern it has {pattern.groups} capture groups "
            f"instead of one ((?:...) does not count): give {_EXPECTED}"
        )

    def group_of(name: str) -> str:
        match = pattern.search(name)
        return (match[1] or "") if match else ""

    return group_of


def _by_table(path: Path) -> Callable[[str], str]:
    table: dict[str, str] = {}
    try:
        with open_text(path, "utf-8-sig") as file:  # -sig: spreadsheets write a byte order mark
            reader = csv.DictReader(file, skipinitialspace=True)
            columns = reader.fieldnames or []
            if not set(_COLUMNS) <= set(columns):
                raise UserError(
                    f"data.groups '{path}' needs the columns id,group, but has {', '.join(columns) or 'none'}"
                )
            for row in reader:
                group = (row["group"] or "").strip()  # 'p1 ' is 'p1': a stray space must not divide a group
                if (first := table.setdefault(row["id"], group)) != group:
                    raise UserError(
                        f"data.groups '{path}' puts '{row['id']}' into two groups, '{first}' and '{group}': keep one"
                    )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"data.groups '{path}' cannot be read as CSV: {reason}") from None
    return lambda name: table.get(name, "")
