from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from convsmith.data.splits import make_splits
from convsmith.errors import UserError

SIZES = st.lists(st.integers(3, 60), min_size=2, max_size=6)
FRACTION = st.floats(0.05, 0.3)
SEED = st.integers(0, 2**31)


def labelled(sizes: list[int], seed: int = 0) -> np.ndarray:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return np.random.default_rng(seed).permutation(labels)


def nothing_given(labels: np.ndarray) -> np.ndarray:
    return np.full(len(labels), "", dtype="<U5")


@given(sizes=SIZES, val=FRACTION, test=FRACTION, seed=SEED)
def test_splits_are_disjoint_complete_stratified_and_repeatable(
    sizes: list[int], val: float, test: float, seed: int
) -> None:
    labels = labelled(sizes)
    splits = make_splits(labels, nothing_given(labels), val, test, seed)
    assert list(splits) == ["train", "val", "test"]
    np.testing.assert_array_equal(np.sort(np.concatenate(list(splits.values()))), np.arange(len(labels)))
    for split, fraction in (("val", val), ("test", test)):
        counts = np.bincount(labels[splits[split]], minlength=len(sizes))
        assert (counts >= 1).all()
        assert (np.abs(counts - np.array(sizes) * fraction) <= 1).all()
        floors = np.maximum(np.floor(np.array(sizes) * fraction), 1).sum()
        assert len(splits[split]) <= max(int(len(labels) * fraction + 0.5), floors)  # a half may go either way
    assert (np.bincount(labels[splits["train"]], minlength=len(sizes)) >= 1).all()
    for split, rows in make_splits(labels, nothing_given(labels), val, test, seed).items():
        assert rows.dtype == np.int64
        assert (np.diff(rows) > 0).all()
        np.testing.assert_array_equal(rows, splits[split])


@given(sizes=SIZES, seed=SEED, order=SEED)
def test_the_choice_within_a_class_does_not_depend_on_where_the_others_stand(
    sizes: list[int], seed: int, order: int
) -> None:
    def ranks(labels: np.ndarray, label: int, split: str) -> list[int]:
        rows = make_splits(labels, nothing_given(labels), 0.2, 0.2, seed)[split]
        return np.flatnonzero(np.isin(np.flatnonzero(labels == label), rows)).tolist()

    one, other = labelled(sizes, 0), labelled(sizes, order)
    for label in range(len(sizes)):
        for split in ("train", "val", "test"):
            assert ranks(one, label, split) == ranks(other, label, split)


@given(size=st.integers(2, 9).map(lambda n: n * 10), classes=st.integers(2, 5), seed=SEED)
def test_sizes_are_those_of_scikit_learn_where_the_classes_divide(size: int, classes: int, seed: int) -> None:
    labels = labelled([size] * classes)
    splits = make_splits(labels, nothing_given(labels), 0.1, 0.2, seed)
    rest, expected = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    np.testing.assert_array_equal(np.bincount(labels[splits["test"]]), np.bincount(labels[expected]))
    assert len(splits["val"]) == round(0.1 * len(labels))
    assert len(splits["train"]) + len(splits["val"]) == len(rest)


def test_seeds_differ_and_a_big_class_keeps_its_share_beside_many_small_ones() -> None:
    labels = labelled([1000] + [3] * 100)
    one, two = (make_splits(labels, nothing_given(labels), 0.15, 0.15, seed) for seed in (1, 2))
    assert one["val"].tolist() != two["val"].tolist()
    assert (labels[one["val"]] == 0).sum() == 150
    assert len(one["train"]) == 700 + 100


def test_what_is_given_is_kept() -> None:
    labels = np.tile([0, 1], 30)
    given_splits = np.repeat(np.array(["train", "val", "test"]), 20).astype("<U5")
    whole = make_splits(labels, given_splits, 0.5, 0.5, seed=0)
    assert {split: (rows.min(), rows.max()) for split, rows in whole.items()} == {
        "train": (0, 19),
        "val": (20, 39),
        "test": (40, 59),
    }
    no_test = make_splits(labels[:40], given_splits[:40], 0.5, 0.5, seed=0)
    assert {split: len(rows) for split, rows in no_test.items()} == {"train": 20, "val": 20}
    kept = np.r_[0:20, 40:60]
    cut = make_splits(labels[kept], given_splits[kept], 0.1, 0.5, seed=0)
    assert {split: len(rows) for split, rows in cut.items()} == {"train": 18, "val": 2, "test": 20}
    assert cut["test"].tolist() == list(range(20, 40))
    assert np.bincount(labels[cut["val"]]).tolist() == [1, 1]
    train_alone = make_splits(labels[:20], given_splits[:20], 0.1, 0.2, seed=0)
    assert {split: len(rows) for split, rows in train_alone.items()} == {"train": 14, "val": 2, "test": 4}
    assert "test" not in make_splits(labels[:20], given_splits[:20], 0.1, 0.0, seed=0)


@given(sizes=SIZES, seed=SEED, data=st.data())
def test_a_limit_keeps_a_stratified_part_of_train_and_val_and_all_of_test(
    sizes: list[int], seed: int, data: st.DataObject
) -> None:
    labels = labelled(sizes)
    whole = make_splits(labels, nothing_given(labels), 0.2, 0.2, seed)
    pool = len(whole["train"]) + len(whole["val"])
    limit = data.draw(st.integers(2 * len(sizes), pool + 5))
    part = make_splits(labels, nothing_given(labels), 0.2, 0.2, seed, limit=limit)
    assert len(part["train"]) + len(part["val"]) == min(limit, pool)
    assert part["test"].tolist() == whole["test"].tolist()
    for split in ("train", "val"):
        assert set(part[split]) <= set(whole[split])
        assert (np.bincount(labels[part[split]], minlength=len(sizes)) >= 1).all()


def test_a_limit_is_shared_in_proportion() -> None:
    labels = labelled([300, 100])
    part = make_splits(labels, nothing_given(labels), 0.2, 0.2, seed=0, limit=32)
    assert np.bincount(labels[part["train"]]).tolist() == [18, 6]
    assert np.bincount(labels[part["val"]]).tolist() == [6, 2]


def test_what_cannot_be_split_is_named() -> None:
    labels = np.array([0] * 9 + [1] * 2)
    rare = make_splits(labels, nothing_given(labels), 0.1, 0.1, seed=0, classes=["cat", "owl"])
    assert {split: labels[rows].tolist().count(1) for split, rows in rare.items()} == {"train": 2, "val": 0, "test": 0}
    with pytest.raises(UserError, match=r"no class has enough images to be in train, val and test \(.*'cat', has 2\)"):
        make_splits(labels[7:], nothing_given(labels[7:]), 0.1, 0.1, seed=0, classes=["cat", "owl"])
    assert len(make_splits(labels, nothing_given(labels), 0.1, 0.0, seed=0)["val"]) == 2
    with pytest.raises(UserError, match=r"data\.limit 3 is too small: .* at least 4"):
        make_splits(labels, nothing_given(labels), 0.1, 0.0, seed=0, limit=3)
