"""Folds against scikit-learn's own, and what must hold of any."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedKFold

from convsmith.data.config import DataConfig
from convsmith.data.dataset import open_dataset
from convsmith.errors import UserError
from convsmith.studies.folds import make_folds
from convsmith.studies.study import folds_record, recorded_folds

NAMES = ("ant", "bee", "wasp")


@given(
    st.lists(st.integers(12, 40), min_size=2, max_size=3),
    st.integers(2, 6),
    st.integers(1, 3),
    st.integers(0, 1000),
)
@settings(max_examples=40)
def test_each_image_is_held_out_once_a_repeat(counts: list[int], folds: int, repeats: int, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    made = make_folds(labels, folds, repeats, 0.2, seed, NAMES[: len(counts)])
    assert len(made) == folds * repeats
    for repeat in range(1, repeats + 1):
        held_out = np.concatenate([fold.held_out for fold in made if fold.repeat == repeat])
        np.testing.assert_array_equal(np.sort(held_out), np.arange(len(labels)))
    for fold in made:
        together = np.concatenate([fold.train, fold.val, fold.held_out])
        np.testing.assert_array_equal(np.sort(together), np.arange(len(labels)))
        assert set(labels[fold.train]) == set(labels[fold.val]) == set(labels)


def test_the_held_out_parts_are_those_of_scikit_learn() -> None:
    labels = np.random.default_rng(3).integers(0, 3, 90)
    made = make_folds(labels, 5, 2, 0.1, 7, NAMES)
    for repeat in (0, 1):
        theirs = StratifiedKFold(5, shuffle=True, random_state=7 + repeat).split(labels, labels)
        for fold, (_, held_out) in zip(made[5 * repeat : 5 * repeat + 5], theirs, strict=True):
            np.testing.assert_array_equal(fold.held_out, held_out)


def test_the_inner_division_does_not_depend_on_the_labels_held_out() -> None:
    labels = np.random.default_rng(0).integers(0, 3, 120)
    fold = make_folds(labels, 4, 1, 0.2, 0, NAMES)[0]
    others = np.setdiff1d(np.arange(120), fold.held_out)
    same = make_folds(labels[others], 2, 1, 0.2, 0, NAMES)  # another division of the rest: it must work alone
    assert {row for part in same for row in part.held_out} == set(range(len(others)))
    np.testing.assert_array_equal(np.sort(np.concatenate([fold.train, fold.val])), others)


@given(st.integers(6, 20), st.integers(2, 4), st.integers(0, 1000))
@settings(max_examples=25)
def test_no_group_is_divided(count: int, folds: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(3 * count), rng.integers(2, 5, 3 * count))
    labels = groups % 3  # a group is of one class, as a patient is
    for fold in make_folds(labels, folds, 1, 0.2, seed, NAMES, groups):
        parts = [set(groups[rows]) for rows in (fold.train, fold.val, fold.held_out)]
        assert not parts[0] & parts[1]
        assert not parts[0] & parts[2]
        assert not parts[1] & parts[2]


def test_more_folds_than_the_smallest_class_has_images_are_refused() -> None:
    labels = np.array([0] * 20 + [1] * 4 + [2] * 20)
    with pytest.raises(UserError, match=r"--folds 5 exceeds the images of the smallest class \('bee' has 4\): use at"):
        make_folds(labels, 5, 1, 0.2, 0, NAMES)


def test_more_folds_than_groups_are_refused() -> None:
    labels = np.tile([0, 1, 2], 10)
    with pytest.raises(UserError, match="--folds 4 exceeds the 3 groups"):
        make_folds(labels, 4, 1, 0.2, 0, NAMES, labels)


def test_folds_are_read_as_they_were_recorded() -> None:
    dataset = open_dataset(DataConfig(source="digits", limit=100))
    pool = dataset.pool()
    made = make_folds(pool.labels, 3, 2, 0.2, 0, dataset.classes)
    read = recorded_folds(json.loads(json.dumps(folds_record(dataset, made))))
    for ours, theirs in zip(read, made, strict=True):
        assert (ours.repeat, ours.number) == (theirs.repeat, theirs.number)
        for part in ("train", "val", "held_out"):
            np.testing.assert_array_equal(getattr(ours, part), getattr(theirs, part))
