"""What `auto` looks at before its race: files, duplicates, balance, sizes; and the groups that duplicates form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convsmith.data.audit import Audit, check_data
from convsmith.data.config import DataConfig
from convsmith.data.dataset import Dataset
from convsmith.data.source import Source
from convsmith.data.sources import open_source
from convsmith.events import Listener

CHECKED_UP_TO = 5_000  # images, beyond which the check would take what the race needs
UNBALANCED = 3.0  # times the smallest class, from which on the largest one is worth a word
RARE = 10  # images below which a class is


@dataclass(frozen=True)
class Checked:
    """`lines` are sentences on what matters; `side` is the shorter side of most images in pixels.

    `together` holds ids of identical images, which have to be in one fold.
    """

    lines: tuple[str, ...]
    side: int
    together: tuple[tuple[str, ...], ...]


def check(config: DataConfig, source: Source | None, dataset: Dataset, listener: Listener) -> Checked:
    """Check the images of a data set, as `data check` does, and say in a few lines what matters for a classifier."""
    lines = list(_classes(dataset))
    source = source or open_source(config)
    if len(source) > CHECKED_UP_TO:
        lines.append(f"more than {CHECKED_UP_TO:,} images: duplicates are not looked for (`convsmith data check` does)")
        height, width, _ = dataset.train.shape
        return Checked(tuple(lines), min(height, width), ())
    audit = check_data(config, source, None, listener)
    known = set(dataset.pool().ids)
    together = tuple(ids for group in audit.duplicates if len(ids := tuple(i for i in group.ids if i in known)) > 1)
    lines += _files(audit)
    sides = [min(file.width, file.height) for file in audit.files if file.width]
    low, middle, high = np.quantile(sides, (0, 0.5, 1)).astype(int)
    lines.append(
        f"the shorter side is {low} pixels in all images"
        if low == high
        else f"shorter sides from {low} to {high} pixels"
    )
    return Checked(tuple(lines), int(middle), together)


def groups_of(dataset: Dataset, together: Sequence[Sequence[str]]) -> NDArray[np.int64] | None:
    """The group of each image of the pool, int64 [N]: `pool_wholes`, joined by what is identical; or None."""
    groups = dataset.pool_wholes()
    if groups is None:
        if not together:
            return None
        groups = np.arange(len(dataset.pool()), dtype=np.int64)
    groups, row_of = groups.copy(), {name: row for row, name in enumerate(dataset.pool().ids)}
    for ids in together:
        rows = [row_of[name] for name in ids]
        groups[np.isin(groups, groups[rows])] = groups[rows[0]]
    return groups


def _classes(dataset: Dataset) -> list[str]:
    counts = np.bincount(dataset.pool().labels, minlength=len(dataset.classes))
    most, least = int(counts.argmax()), int(counts.argmin())
    lines = []
    if counts[most] >= UNBALANCED * max(counts[least], 1):
        lines.append(
            f"the classes are not balanced: '{dataset.classes[most]}' has {counts[most]:,} images, "
            f"'{dataset.classes[least]}' {counts[least]:,}; balanced accuracy is the number to watch"
        )
    if rare := [name for name, count in zip(dataset.classes, counts, strict=True) if count < RARE]:
        words = "class has" if len(rare) == 1 else "classes have"
        lines.append(f"{len(rare)} {words} fewer than {RARE} images, too few to be sure of: {', '.join(rare[:5])}")
    return lines


def _files(audit: Audit) -> list[str]:
    lines = []
    wrong = {
        name: count for name, count in audit.verdicts.items() if name not in ("ok", "duplicate", "wrong-extension")
    }
    if wrong:
        listed = ", ".join(f"{count:,} {name}" for name, count in wrong.items())
        first = next(file for file in audit.files if file.verdict in wrong)
        lines.append(f"files that cannot be decoded are left out: {listed}, such as '{first.id}' ({first.message})")
    if groups := audit.duplicates:
        lines.append(f"{len(groups):,} groups of identical images: each is kept in one fold")
    if conflicting := [group for group in groups if group.conflicting]:
        lines.append(
            f"{len(conflicting):,} of them have different labels, such as {' = '.join(conflicting[0].ids[:2])}"
        )
    if leaking := [group for group in groups if group.leaking]:
        lines.append(
            f"{len(leaking):,} of them are in different splits, such as {' = '.join(leaking[0].ids[:2])}: scores on "
            "those splits would be too good"
        )
    return lines
