"""The division of images into folds: stratified, seeded, and grouped on request. Pure functions; no training here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from convsmith.data.splits import Rows, make_splits
from convsmith.errors import UserError

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Fold:
    """Positions in the pool: `train` is trained on, `val` decides the epoch, `held_out` is scored once, at the end."""

    repeat: int  # from 1
    number: int  # from 1, within its repeat
    train: Rows
    val: Rows
    held_out: Rows


def make_folds(
    labels: Labels,
    folds: int,
    repeats: int,
    val_fraction: float,
    seed: int,
    classes: Sequence[str],
    groups: NDArray[np.int64] | None = None,
) -> list[Fold]:
    """`repeats` times `folds` divisions of a pool of images; within a repeat each image is held out exactly once.

    This is scikit-learn's StratifiedKFold, or StratifiedGroupKFold where `groups` [N] says which images belong
    together. An inner validation part of `val_fraction` is cut from the images that a fold trains on, using their
    labels only: nothing that the training of a fold sees depends on the labels of the images held out. UserError where
    a class has too few images, or where there are too few groups.
    """
    _refuse_small(labels, folds, classes)
    if groups is not None and (count := len(np.unique(groups))) < folds:
        raise UserError(
            f"--folds {folds} exceeds the {count} groups (of data.groups, or shards), which stay whole: use at most "
            f"{count}"
        )
    result = []
    for repeat in range(repeats):
        for number, (others, held_out) in enumerate(divided(labels, folds, seed + repeat, groups), start=1):
            train, val = cut(labels, others, val_fraction, seed + repeat, classes, groups)
            result.append(Fold(repeat + 1, number, train, val, held_out))
    return result


def divided(
    labels: Labels, folds: int, seed: int, groups: NDArray[np.int64] | None = None
) -> Iterator[tuple[Rows, Rows]]:
    """Of each fold the positions outside it and those in it."""
    divider = StratifiedKFold if groups is None else StratifiedGroupKFold
    found: Iterator[tuple[Rows, Rows]] = divider(folds, shuffle=True, random_state=seed).split(labels, labels, groups)
    return found


def cut(
    labels: Labels,
    rows: Rows,
    val_fraction: float,
    seed: int,
    classes: Sequence[str],
    groups: NDArray[np.int64] | None = None,
) -> tuple[Rows, Rows]:
    """Of the positions `rows` those to train on, and a stratified `val_fraction` of them to validate on."""
    given, within = np.full(len(rows), ""), None if groups is None else groups[rows]
    parts = make_splits(labels[rows], given, val_fraction, 0.0, seed, classes, groups=within)
    return rows[parts["train"]], rows[parts["val"]]


def _refuse_small(labels: Labels, folds: int, classes: Sequence[str]) -> None:
    counts = np.bincount(labels, minlength=len(classes))
    least = int(counts.argmin())
    if counts[least] < folds:
        raise UserError(
            f"--folds {folds} exceeds the images of the smallest class ('{classes[least]}' has {counts[least]}): "
            f"use at most {counts[least]} folds, add images, or leave such classes out, "
            f"--data.classes 'min_images: {folds}'"
        )
