from __future__ import annotations

import csv
import itertools
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from convsmith.data.config import DataConfig
from convsmith.data.dataset import Dataset, open_dataset, unseal_test
from convsmith.data.groups import Groups, read_groups
from convsmith.data.sources import from_arrays
from convsmith.data.splits import make_splits
from convsmith.errors import UserError

Plant = Callable[..., Path]
FRACTION = st.floats(0.05, 0.3)
SEED = st.integers(0, 2**31)
PATIENTS = [f"{name}/p{i % 7}_{i}.png" for name in ("cat", "owl") for i in range(28)]  # each patient in both classes
PATTERN = r"/(p\d+)_"


def patient(name: str) -> str:
    found = re.search(PATTERN, name)
    assert found
    return found[1]


def cut(labels: np.ndarray, groups: np.ndarray, val: float, test: float, seed: int = 0) -> dict[str, np.ndarray]:
    return make_splits(labels, np.full(len(labels), "", dtype="<U5"), val, test, seed, groups=groups)


def table(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels [N] and groups [N], shuffled, from rows by group and class [G, K]."""
    groups, labels = np.nonzero(counts)
    rows = counts[groups, labels]
    order = np.random.default_rng(0).permutation(rows.sum())
    return np.repeat(labels, rows)[order], np.repeat(groups, rows)[order]


# ---- the cut


@given(
    sizes=st.lists(st.lists(st.integers(1, 12), min_size=3, max_size=12), min_size=2, max_size=4),
    val=FRACTION,
    test=FRACTION,
    seed=SEED,
)
def test_groups_of_one_class_stay_whole_and_each_part_is_a_group_from_its_share(
    sizes: list[list[int]], val: float, test: float, seed: int
) -> None:
    groups_of_class = np.repeat(np.arange(len(sizes)), [len(own) for own in sizes])
    rows = np.concatenate([np.array(own) for own in sizes])
    labels, groups = table(np.eye(len(sizes), dtype=int)[groups_of_class] * rows[:, None])
    splits = cut(labels, groups, val, test, seed)
    assert list(splits) == ["train", "val", "test"]
    np.testing.assert_array_equal(np.sort(np.concatenate(list(splits.values()))), np.arange(len(labels)))
    parts = [set(groups[part].tolist()) for part in splits.values()]
    assert all(one.isdisjoint(other) for one, other in itertools.combinations(parts, 2))
    for split, share in (("train", 1 - val - test), ("val", val), ("test", test)):
        counts = np.bincount(labels[splits[split]], minlength=len(sizes))
        assert (counts >= 1).all()
        for own, count in zip(sizes, counts, strict=True):
            assert -2 * max(own) - 1e-9 <= count - share * sum(own) <= max(own) + 1e-9
    for split, again in cut(labels, groups, val, test, seed).items():
        assert again.dtype == np.int64
        assert (np.diff(again) > 0).all()
        np.testing.assert_array_equal(again, splits[split])


@given(data=st.data(), seed=SEED)
def test_groups_that_classes_share_stay_whole_or_are_refused(data: st.DataObject, seed: int) -> None:
    count = data.draw(st.integers(2, 80))
    labels = np.array(data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count)))
    groups = np.array(data.draw(st.lists(st.integers(0, 30), min_size=count, max_size=count)))
    try:
        splits = cut(labels, groups, 0.15, 0.15, seed)
    except UserError:
        return
    np.testing.assert_array_equal(np.sort(np.concatenate(list(splits.values()))), np.arange(count))
    for one, other in itertools.combinations(splits.values(), 2):
        assert not np.intersect1d(groups[one], groups[other]).size
    enough = {int(k) for k in np.unique(labels) if len(np.unique(groups[labels == k])) >= 3}
    found = {split: set(labels[rows].tolist()) for split, rows in splits.items()}
    assert found == {"train": set(labels.tolist()), "val": enough, "test": enough}


def test_each_class_is_in_each_part_wherever_that_can_be() -> None:
    """Against all ways there are, for tables of up to 7 groups and 3 classes that share them."""
    rng = np.random.default_rng(0)
    ways = {size: np.array(list(itertools.product(range(3), repeat=size))) for size in range(3, 8)}
    outcomes = []
    for seed in range(150):
        counts = rng.integers(1, 5, (rng.integers(3, 8), 3)) * (rng.random(3) < rng.choice([0.6, 0.9], (1, 3)))
        counts *= rng.random(counts.shape) < 0.7
        counts = counts[counts.any(axis=1)][:, counts.any(axis=0)]
        if len(counts) < 3:
            continue
        home = ways[len(counts)]
        reached = np.stack([((home == part)[:, :, None] & (counts > 0)).any(axis=1).all(axis=1) for part in range(3)])
        possible = bool(reached.all(axis=0).any())
        labels, groups = table(counts)
        if possible:
            splits = cut(labels, groups, 0.15, 0.15, seed)
            assert all(len(np.unique(labels[part])) == counts.shape[1] for part in splits.values())
        else:
            rare = (counts > 0).sum(axis=0) < 3
            try:
                splits = cut(labels, groups, 0.15, 0.15, seed)
            except UserError as error:
                assert re.search("no class has enough groups|no way was found", str(error))  # noqa: PT017
            else:  # all classes of enough groups are in every part, the others in train alone
                assert rare.any()
                parts = [set(labels[splits[part]]) for part in ("train", "val", "test")]
                assert parts[0] == set(range(counts.shape[1]))
                assert parts[1] == parts[2] == set(np.flatnonzero(~rare))
        outcomes.append(possible)
    assert 30 < sum(outcomes) < len(outcomes) - 30


@pytest.mark.parametrize("kind", ["shared", "rare"])
def test_the_cut_is_about_as_stratified_as_that_of_scikit_learn(kind: str) -> None:
    """The largest deviation of a class's share, in the mean of 20 tables of 60 groups: at most a tenth worse."""
    rng = np.random.default_rng(0)
    ours, theirs = [], []
    for seed in range(20):
        if kind == "shared":
            counts = rng.integers(0, 8, (60, 4)) * (rng.random((60, 4)) < 0.5)
        else:
            counts = np.c_[rng.integers(10, 60, 60), rng.integers(1, 4, (60, 3)) * (rng.random((60, 3)) < 0.2)]
        labels, groups = table(counts)
        folds = StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(labels, labels, groups)
        for deviations, rows in ((ours, cut(labels, groups, 0.2, 0.0, seed)["val"]), (theirs, next(folds)[1])):
            deviations.append(np.abs(np.bincount(labels[rows], minlength=4) / np.bincount(labels) - 0.2).max())
    assert np.mean(ours) <= 1.1 * np.mean(theirs)


def test_seeds_decide_among_equal_groups_and_val_may_be_cut_from_train_alone() -> None:
    labels, groups = np.tile([0, 1], 60), np.repeat(np.arange(40), 3)
    one, two = (cut(labels, groups, 0.15, 0.15, seed) for seed in (1, 2))
    assert one["val"].tolist() != two["val"].tolist()
    assert [len(part) for part in one.values()] == [len(part) for part in two.values()] == [84, 18, 18]
    given_splits = np.repeat(np.array(["train", "test"]), 60)
    splits = make_splits(labels, given_splits, 0.1, 0.5, 0, groups=groups)
    assert splits["test"].tolist() == list(range(60, 120))
    assert len(splits["val"]) == 6
    assert len(np.unique(groups[splits["val"]])) == 2


def test_a_limit_leaves_what_it_keeps_in_its_part() -> None:
    labels, groups = np.tile([0, 1], 60), np.repeat(np.arange(40), 3)
    whole = cut(labels, groups, 0.2, 0.2)
    part = make_splits(labels, np.full(120, ""), 0.2, 0.2, 0, limit=40, groups=groups)
    assert len(part["train"]) + len(part["val"]) == 40
    assert all(set(part[split]) <= set(whole[split]) for split in part)


def test_a_class_of_too_few_groups_is_in_train() -> None:
    labels, groups = np.repeat([0, 1], 10), np.r_[np.arange(10), np.repeat([10, 11], 5)]
    parts = cut(labels, groups, 0.2, 0.2)
    assert [set(labels[parts[split]]) for split in ("train", "val", "test")] == [{0, 1}, {0}, {0}]
    with pytest.raises(UserError, match=r"no class has enough groups to be in train, val and test \(.*'1', is 2\)"):
        cut(labels[10:], groups[10:], 0.2, 0.2)
    assert set(labels[cut(labels, groups, 0.2, 0.0)["val"]]) == {0, 1}
    both = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 1, 1]])  # three groups a class, but never three apart
    with pytest.raises(UserError, match=r"no way was found to put class '.' in train, val and test with whole groups"):
        cut(*table(both), 0.2, 0.2)


# ---- what data.groups says


def groups_of(setting: str, ids: list[str], **settings: str) -> Groups:
    return read_groups(DataConfig(groups=setting, **settings), ids)  # type: ignore[arg-type]


def written(folder: Path, text: str, name: str = "groups.csv", encoding: str = "utf-8") -> str:
    (folder / name).write_text(text, encoding=encoding)
    return str(folder / name)


def test_a_pattern_and_a_table_give_the_same_groups_in_order_of_first_appearance(tmp_path: Path) -> None:
    ids = ["b/p10_1.png", "a/p2_1.png", "b/p10_2.png", "a/p1_1.png"]
    groups = groups_of(PATTERN, ids)
    assert groups.numbers.tolist() == [0, 1, 0, 2]
    assert groups.numbers.dtype == np.int64
    assert groups.names == ("p10", "p2", "p1")
    rows = "".join(f"{name},{patient(name)}\n" for name in [*reversed(ids), "of/another/p1_data set.png"])
    for text, encoding in (
        (f"id,group\n{rows}", "utf-8"),
        (f"id,group\n{rows}".replace("\n", "\r\n"), "utf-8-sig"),
        (f"id, group\n{rows}".replace(",p1\n", ", p1 \n"), "utf-8"),
        (f"image,who\n{rows}".replace(",", "\t"), "utf-8"),
        (f"id,group\n{rows}".replace(".png", "").replace("a/p", "p"), "utf-8"),
    ):
        same = groups_of(written(tmp_path, text, encoding=encoding), ids)
        assert same.names == groups.names
        np.testing.assert_array_equal(same.numbers, groups.numbers)
    other = written(tmp_path, 'place,group,id\n"Köln, Dom",g,b/p10_1.png\n', name="(x).txt")
    assert groups_of(other, ids[:1]).names == ("g",)
    assert groups_of(other, ids[:1], group_column="place").names == ("Köln, Dom",)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("(patient", r"data\.groups '\(patient' is neither a file nor a valid pattern \(missing \)"),
        (r"p\d+", r"is not a file, and as a pattern it has 0 capture groups instead of one .*give a CSV or TSV file"),
        (r"(p)(\d+)", r"it has 2 capture groups instead of one"),
        ("groups.tsv", r"data\.groups 'groups\.tsv' was not found: there is no such file"),
        ("missing/groups.CSV", r"data\.groups 'missing/groups\.CSV' was not found: there is no such file"),
        (r"(p\d)_", r"assigns no group to 2 of 3 images, the first of which is 'a/x\.png': change the pattern"),
        (r"p(\d*)", r"assigns no group to 2 of 3 images, the first of which is 'a/x\.png'"),
    ],
)
def test_wrong_patterns_are_one_line(setting: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        groups_of(setting, ["a/p1_1.png", "a/x.png", "a/p_z.png"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("id|group\na/1.png|p\n", r"has one column, 'id\|group'"),
        (
            "id,eye,age\na/1.png,l,3\n",
            r"several columns that may hold the groups: set --data\.group_column to one of eye, age",
        ),
        ("id,group\n1,p\n../x.png,p\n", r"line 3 of .*: '\.\./x\.png' lies outside the data: give paths below it"),
        ("id,group\na/1.png,p\n", r"assigns no group to 1 of 2 images, the first of which is 'a/2\.png': add rows"),
        ("id,group\na/1.png,p\na/2.png\n", r"assigns no group to 1 of 2 images"),
        ("id,group\na/1.png,p\na/2.png, \n", r"assigns no group to 1 of 2 images"),
        (
            "id,group\na/1.png,p\na/2.png,p\na/1.png,q\n",
            r"puts 'a/1\.png' into two groups, 'p' and 'q' \(line 4\): keep one",
        ),
        ("id,group\na/1.png,ä\n", r"is not UTF-8 \(line 2\): save it as UTF-8"),
    ],
)
def test_wrong_tables_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        groups_of(written(tmp_path, text, encoding="latin-1"), ["a/1.png", "a/2.png"])
    assert str(tmp_path / "groups.csv") in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- in a data set


def opened(root: Path, **settings: object) -> Dataset:
    return open_dataset(DataConfig(source=str(root), **settings))  # type: ignore[arg-type]


def test_a_data_set_keeps_patients_in_one_split_and_tells_the_groups_of_its_pool(plant: Plant) -> None:
    root = plant(*PATIENTS)
    dataset = opened(root, groups=PATTERN)
    ids = [dataset.train.ids, dataset.val.ids, unseal_test(dataset).ids]
    assert sorted(itertools.chain(*ids)) == sorted(PATIENTS)
    assert sorted(len({patient(name) for name in part}) for part in ids) == [1, 1, 5]
    groups = dataset.pool_groups()
    assert groups is not None
    assert groups.dtype == np.int64
    assert len(set(groups.tolist())) == 6
    assert len({(number, patient(name)) for number, name in zip(groups, dataset.pool().ids, strict=True)}) == 6
    bare = opened(root)
    assert bare.pool_groups() is None
    assert bare.hash == dataset.hash
    limited = opened(root, groups=PATTERN, limit=12)
    np.testing.assert_array_equal(limited.pool_groups(), groups[np.isin(dataset.pool().ids, limited.pool().ids)])
    assert len(limited.pool()) == 12


def test_splits_given_back_keep_the_groups_and_may_not_divide_them(plant: Plant) -> None:
    dataset = opened(plant(*PATIENTS), groups=PATTERN)
    again = dataset.with_splits(dataset.splits_record()["splits"])
    assert again.splits_record() == dataset.splits_record()
    np.testing.assert_array_equal(again.pool_groups(), dataset.pool_groups())
    pool = dataset.pool().ids
    last = patient(pool[-1])
    fold = dataset.with_splits(
        {"train": [name for name in pool if patient(name) != last], "val": [n for n in pool if patient(n) == last]}
    )
    assert {patient(name) for name in fold.val.ids} == {last}
    with pytest.raises(UserError, match=r"group 'p\d' is in both train and val: has data\.groups changed"):
        dataset.with_splits({"train": pool[1:], "val": pool[:1]})


def test_given_splits_that_divide_a_group_are_refused_before_anything_is_decoded(plant: Plant) -> None:
    paths = [f"{split}/{name}/p{n}_{i}.png" for split, n in (("train", 1), ("val", 2)) for name in "ab" for i in "12"]
    root = plant(*paths)
    assert set(opened(root, groups=PATTERN).val.ids) == set(paths[4:])
    (root / "val/b/p1_9.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"group 'p1' is in both train and val: move its images in .* or leave"):
        opened(root, groups=PATTERN)


def test_the_config_holds_the_place_of_a_table(plant: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = plant(*PATIENTS)
    with (tmp_path / "groups.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("id", "group"), *((name, patient(name)) for name in PATIENTS)])
    monkeypatch.chdir(tmp_path)
    dataset = opened(root, groups="groups.csv")
    assert dataset.config.groups == str((tmp_path / "groups.csv").resolve())
    assert opened(root, groups=PATTERN).config.groups == PATTERN
    monkeypatch.chdir(root)
    assert open_dataset(dataset.config).splits_record() == dataset.splits_record()
    assert dataset.splits_record() == opened(root, groups=PATTERN).splits_record()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert opened(root, groups="~/groups.csv").config == dataset.config


def test_files_that_do_not_decode_leave_the_groups_of_the_others_alone(plant: Plant) -> None:
    root = plant(*PATIENTS)
    (root / PATIENTS[0]).write_bytes(b"")
    dataset = opened(root, groups=PATTERN, on_error="skip", test_fraction=0)
    groups = dataset.pool_groups()
    assert groups is not None
    assert PATIENTS[0] not in dataset.pool().ids
    assert len({(number, patient(name)) for number, name in zip(groups, dataset.pool().ids, strict=True)}) == 7


def test_numbered_images_have_groups_too() -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    dataset = open_dataset(DataConfig(groups=r"(\d+)\d$"), source=from_arrays(images, np.arange(60) % 2))
    assert sorted(len(part.ids) for part in (dataset.train, dataset.val, unseal_test(dataset))) == [10, 10, 40]


def test_a_run_from_the_command_line_keeps_patients_together(
    plant: Plant, tmp_path: Path, convsmith: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    plant(*PATIENTS)
    words = "--data data --epochs 1 --train.threads 1 --track.wandb off --name grouped".split()
    convsmith("train", *words, "--data.groups", PATTERN)
    run = tmp_path / "runs" / "grouped"
    splits = json.loads((run / "splits.json").read_text())["splits"]
    patients = {split: {patient(name) for name in ids} for split, ids in splits.items()}
    assert sorted(itertools.chain(*splits.values())) == sorted(PATIENTS)
    assert sum(map(len, patients.values())) == len(set().union(*patients.values())) == 7
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["groups"] == PATTERN
    convsmith("evaluate", "runs/grouped", "--split", "test")
