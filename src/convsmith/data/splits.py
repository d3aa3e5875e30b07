"""Divides images into train, val and test: stratified, seeded, with groups kept whole. Reads no files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from convsmith.data.source import Given, Labels
from convsmith.errors import UserError

Rows = npt.NDArray[np.int64]

ORDERS = 50  # orders of the groups to try before giving up; small random data with shared groups needed up to 18


def make_splits(
    labels: Labels,
    given: Given,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    classes: Sequence[str] | None = None,
    limit: int | None = None,
    groups: npt.NDArray[np.int64] | None = None,
) -> dict[str, Rows]:
    """Rows of 'train', 'val' (empty for fraction 0) and, if there is one, 'test': disjoint, sorted, and complete.

    `labels` is int [N]; `given` [N] is the split that the source assigns to each row. If it assigns

    - none, or train alone: val and test are cut off, as fractions of all rows (no test split for fraction 0);
    - train and test: val is cut from train, as a fraction of it;
    - train and val: there is no test split;
    - all three: nothing is cut.

    A cut takes ``round(N * fraction)`` rows, distributed over the classes by largest remainders, so that each class
    deviates from its exact fraction by at most one row. Each class has at least one row in every part; a class with
    fewer rows than there are parts is in train alone. Which rows of a class are taken depends only on `seed` and the
    class. With `groups` int [N], a cut takes whole groups instead and comes as close to those fractions of each class
    as the groups allow; groups with a class that has fewer groups than there are parts are in train.
    `limit` then keeps that many rows of train and val together, stratified; test stays complete.
    `classes` names the labels in messages. Raises UserError if no class is large enough for all parts.
    """
    present = set(given.tolist())
    assert "" not in present or present == {""}, "either every row has a given split or none has"
    assert present & {"", "train"}, "no rows to train on"
    splits = {split: np.flatnonzero(given == split) for split in ("train", "val", "test") if split in present}
    splits.setdefault("train", np.arange(len(labels)))
    fractions = {}
    if "val" not in present:
        if val_fraction:
            fractions["val"] = val_fraction
        if "test" not in present and test_fraction:
            fractions["test"] = test_fraction
    if fractions:
        train = splits.pop("train")
        if groups is None:
            parts = _cut(labels[train], fractions, seed, classes)
        else:
            parts = _cut_groups(labels[train], groups[train], fractions, seed, classes)
        splits |= {split: train[rows] for split, rows in parts.items()}
    splits.setdefault("val", np.empty(0, dtype=np.int64))
    if limit is not None and limit < len(splits["train"]) + len(splits["val"]):
        splits |= _limited(
            {split: splits[split] for split in ("train", "val") if len(splits[split])}, labels, limit, seed
        )
    return {split: np.sort(splits[split]).astype(np.int64) for split in ("train", "val", "test") if split in splits}


def _cut(labels: Labels, fractions: dict[str, float], seed: int, classes: Sequence[str] | None) -> dict[str, Rows]:
    """Cut off rows for each of `fractions`; the remaining rows are 'train'."""
    by_class = _shuffled_by_class(labels, seed)
    members = {label: rows for label, rows in by_class.items() if len(rows) > len(fractions)}
    if not members:
        label, rows = max(by_class.items(), key=lambda item: len(item[1]))
        raise UserError(
            f"no class has enough images to be in train, {' and '.join(fractions)} (the largest, "
            f"'{classes[label] if classes is not None else label}', has {len(rows)}): add images, or train on all, "
            "--data.val_fraction 0 --data.test_fraction 0"
        )
    sizes = np.array([len(rows) for rows in members.values()])
    left = sizes.copy()
    parts: dict[str, list[Rows]] = {split: [] for split in fractions}
    for done, (split, fraction) in enumerate(fractions.items(), start=1):
        most = left - 1 - (len(fractions) - done)  # leaves one row for train and for each part that follows
        ideal = sizes * fraction
        least = np.clip(np.floor(ideal), 1, most).sum()
        taken = _apportion(ideal, max(round(float(ideal.sum())), int(least)), most)
        for rows, end, count in zip(members.values(), left, taken, strict=True):
            parts[split].append(rows[end - count : end])
        left -= taken
    train = [rows[:end] for rows, end in zip(members.values(), left, strict=True)]
    train += [rows for label, rows in by_class.items() if label not in members]
    return {split: np.concatenate(rows) for split, rows in {"train": train, **parts}.items()}


def _cut_groups(
    labels: Labels,
    groups: npt.NDArray[np.int64],
    fractions: dict[str, float],
    seed: int,
    classes: Sequence[str] | None,
) -> dict[str, Rows]:
    """Like `_cut`, but the rows of a group stay together."""
    present, coded = np.unique(labels, return_inverse=True)
    distinct, numbers = np.unique(groups, return_inverse=True)
    names = [classes[label] if classes is not None else str(label) for label in present]
    pairs, rows = np.unique(numbers * len(present) + coded, return_counts=True)
    of_group, of_class = np.divmod(pairs, len(present))
    spread = np.bincount(of_class)  # the number of groups of each class
    parts = ["train", *fractions]
    where = f"{', '.join(parts[:-1])} and {parts[-1]}"
    rare = spread < len(parts)
    if rare.all():
        raise UserError(
            f"no class has enough groups to be in {where} (the largest number, of class '{names[spread.argmax()]}', is "
            f"{spread.max()}), since groups are kept whole: add images of other groups, or train on all, "
            "--data.val_fraction 0 --data.test_fraction 0"
        )
    trained = np.unique(of_group[rare[of_class]])
    starts = np.searchsorted(of_group, np.arange(1, len(distinct)))
    own = list(zip(np.split(of_class, starts), np.split(rows, starts), strict=True))
    shares = np.array([1 - sum(fractions.values()), *fractions.values()])
    rng = np.random.default_rng(seed)
    for attempt in range(ORDERS):
        order = rng.permutation(len(distinct))
        if attempt == 0:
            order = order[np.argsort(-np.bincount(numbers)[order], kind="stable")]
        order = np.concatenate([trained, order[~np.isin(order, trained)]])
        home, lacks = _assign(own, order, np.outer(shares, np.bincount(coded)), len(trained))
        lacks[:, rare] = False
        if not lacks.any():
            return {part: np.flatnonzero(home[numbers] == number) for number, part in enumerate(parts)}
    raise UserError(
        f"no way was found to put class '{names[np.flatnonzero(lacks.any(axis=0))[0]]}' in {where} with whole groups: "
        f"add images of other groups or leave the class out"
    )


def _assign(
    own: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]],
    order: Rows,
    target: npt.NDArray[np.float64],
    trained: int,
) -> tuple[Rows, npt.NDArray[np.bool_]]:
    """The part of each group [G], and which classes are missing in which part [P, K].

    `own` holds the classes of each group and its number of rows of each; `target` [P, K] is the number of rows of
    each class that each part should get. The first `trained` groups of `order` are put into the first part. The rest
    is greedy: each group in `order` is put where it reduces the sum
    of squared deviations from `target` most. The squares of a class are divided by its size, as in Pearson's
    chi-squared, so that a large class does not outweigh a rare one. Parts that lack a class take precedence once they
    need all remaining groups of the class. If no group has two classes, each class thus gets into every part, and
    no part exceeds its target for a class by more than one group's rows.
    """
    missing = target.copy()
    sizes = target.sum(axis=0)
    lacks = np.ones(target.shape, dtype=np.bool_)
    left = np.bincount(np.concatenate([labels for labels, _ in own]))
    home = np.empty(len(own), dtype=np.int64)
    for at, group in enumerate(order):
        labels, rows = own[group]
        gain = (missing[:, labels] * rows / sizes[labels]).sum(axis=1)  # up to a term that is equal for all parts
        needed = lacks[:, labels] & (left[labels] <= lacks[:, labels].sum(axis=0))
        first = needed.sum(axis=1)
        part = 0 if at < trained else np.argmax(np.where(first == first.max(), gain, -np.inf))
        home[group] = part
        missing[part, labels] -= rows
        lacks[part, labels] = False
        left[labels] -= 1
    return home, lacks


def _limited(splits: dict[str, Rows], labels: Labels, limit: int, seed: int) -> dict[str, Rows]:
    cells = [
        (split, rows[chosen])
        for split, rows in splits.items()
        for chosen in _shuffled_by_class(labels[rows], seed).values()
    ]
    if limit < len(cells):
        raise UserError(
            f"data.limit {limit} is too small: it must be at least {len(cells)} to have each class in train and val"
        )
    sizes = np.array([len(rows) for _, rows in cells])
    counts = _apportion(sizes * (limit / sizes.sum()), limit, sizes)
    kept = [(split, rows[:count]) for (split, rows), count in zip(cells, counts, strict=True)]
    return {split: np.concatenate([rows for at, rows in kept if at == split]) for split in splits}


def _shuffled_by_class(labels: Labels, seed: int) -> dict[int, Rows]:
    """The rows of each class that occurs, in a random order that depends only on the seed and the class."""
    return {
        int(label): np.random.default_rng([seed, int(label)]).permutation(np.flatnonzero(labels == label))
        for label in np.unique(labels)
    }


def _apportion(ideal: npt.NDArray[np.float64], total: int, most: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Largest-remainder (Hamilton) apportionment of `total` by `ideal` shares, each from 1 to `most`."""
    counts = np.clip(np.floor(ideal), 1, most).astype(np.int64)
    total = min(max(total, len(counts)), int(most.sum()))
    while (missing := total - int(counts.sum())) != 0:
        step = 1 if missing > 0 else -1
        room = counts < most if missing > 0 else counts > 1
        counts[np.argmax(np.where(room, (ideal - counts) * step, -np.inf))] += step
    return counts
