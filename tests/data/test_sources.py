from __future__ import annotations

import gzip
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from convsmith.data.config import DataConfig, DecodeRules
from convsmith.data.decode import decode
from convsmith.data.named import remove_damaged
from convsmith.data.rows import Rows
from convsmith.data.source import HIDDEN, NO_IMAGE, OUTSIDE, SYSTEM, split_of, walk
from convsmith.data.sources import SOURCES, Source, cache_folder, from_arrays, open_source
from convsmith.errors import UserError
from data.small import png

Plant = Callable[..., Path]


def opened(path: Path | str) -> Source:
    return open_source(DataConfig(source=str(path)))


def truth(source: Source) -> dict[str, tuple[str, str]]:
    return {
        name: (source.classes[label], split)
        for name, label, split in zip(source.ids, source.labels, source.given.tolist(), strict=True)
    }


def write_parquet(
    path: Path, labels: list[object], names: list[str] | None = None, column: str = "label", image: str = "img"
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = [{"bytes": png(row % 256), "path": f"{row}.png"} for row in range(len(labels))]
    table = pa.table({image: pixels, column: labels})
    if names:
        features = {"info": {"features": {column: {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, path, row_group_size=300)


def test_class_folders_alone(plant: Plant) -> None:
    root = plant("owl/b.png", "owl/deep/er/a.png", "cat/a.png", "cat/ç ü/日本.png")
    source = opened(root)
    assert truth(source) == {
        "cat/a.png": ("cat", ""),
        "cat/ç ü/日本.png": ("cat", ""),
        "owl/b.png": ("owl", ""),
        "owl/deep/er/a.png": ("owl", ""),
    }
    assert [source.read(row) for row in range(4)] == [root / name for name in source.ids]
    assert (source.val_fraction, source.test_fraction) == (0.15, 0.15)


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_folders_of_splits(plant: Plant, val: str) -> None:
    root = plant("train/a/1.png", "train/b/1.png", f"{val}/a/1.png", f"{val}/b/1.png", "test/a/1.png", "test/b/1.png")
    assert truth(opened(root)) == {
        "train/a/1.png": ("a", "train"),
        "train/b/1.png": ("b", "train"),
        f"{val}/a/1.png": ("a", "val"),
        f"{val}/b/1.png": ("b", "val"),
        "test/a/1.png": ("a", "test"),
        "test/b/1.png": ("b", "test"),
    }


def test_what_is_no_record_is_listed_as_unused(plant: Plant) -> None:
    root = plant("a/1.PNG", "b/1.jpg", "loose.png", "a/.hidden.png", ".git/a/1.png")
    for name in ("README.md", "a/Thumbs.db", "a/.DS_Store", "b/note.txt"):
        (root / name).write_text("x")
    source = opened(root)
    assert source.ids == ("a/1.PNG", "b/1.jpg")
    assert source.unused == {
        HIDDEN: (".git/a/1.png", "a/.hidden.png"),
        SYSTEM: ("a/.DS_Store", "a/Thumbs.db"),
        NO_IMAGE: ("README.md", "b/note.txt"),
        OUTSIDE: ("loose.png",),
    }


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("data/train-00000-of-00001.parquet", "train"),
        ("default/train/0000.parquet", "train"),
        ("beans_train.parquet", "train"),
        ("beans-test/0000.parquet", "test"),
        ("Testing", "test"),
        ("TRAINING", "train"),
        ("seg_train", "train"),
        ("val2017", "val"),
        ("TestSet", "test"),
        ("Dev.Data", "val"),
        ("x valid", "val"),
        ("eval", "val"),
        ("test/train-0", "train"),
        ("train_test_split", ""),
        ("invalid", ""),
        ("contest", ""),
        ("entra\u00eenement/trains", ""),
        ("evaluation", ""),
    ],
)
def test_names_tell_a_split_by_a_word(path: str, split: str) -> None:
    assert split_of(path) == split


def test_links_are_followed_but_not_in_circles(plant: Plant, tmp_path: Path) -> None:
    root = plant("a/1.png", "b/1.png")
    elsewhere = plant("2.png", root="elsewhere")
    (root / "a" / "loop").symlink_to(root)
    (root / "b" / "more").symlink_to(elsewhere)
    (root / "b" / "gone.png").symlink_to(tmp_path / "nowhere")
    assert opened(root).ids == ("a/1.png", "b/1.png", "b/gone.png", "b/more/2.png")


def test_links_that_multiply_are_refused(plant: Plant) -> None:
    root = plant("a/1.png", "b/1.png")
    for depth in range(30):  # 2^30 ways to the last one
        folder = root / f"{depth:02d}"
        folder.mkdir()
        for name in ("left", "right"):
            (folder / name).symlink_to(root / f"{depth + 1:02d}")
    with pytest.raises(UserError, match="in more than 100 ways: remove some"):
        walk(root)


@pytest.mark.skipif(os.name != "posix", reason="names that are not UTF-8 exist on POSIX alone")
def test_names_that_are_not_utf8(plant: Plant) -> None:
    root = plant("a/1.png", "b/1.png")
    os.rename(os.fsencode(root / "a" / "1.png"), os.fsencode(root) + b"/a/\xff.png")
    source = opened(root)
    assert decode(source.read(0), DecodeRules()).shape == (12, 12, 3)  # type: ignore[arg-type]
    assert json.loads(json.dumps(source.ids)) == list(source.ids)


def test_the_fingerprint_changes_with_the_files_and_only_then(plant: Plant) -> None:
    root = plant("a/1.png", "b/1.png")
    first = opened(root).fingerprint
    assert opened(root).fingerprint == first
    os.utime(root / "a/1.png", ns=(0, 0))
    second = opened(root).fingerprint
    plant("b/2.png")
    assert len({first, second, opened(root).fingerprint}) == 3


@pytest.mark.parametrize(
    ("paths", "folders", "message"),
    [
        (["a/1.png", "b/1.png"], ["c"], "class folder '{root}/c' contains no images"),
        (["train/a/1.png", "train/b/1.png"], ["train/c/d"], "class folder '{root}/train/c' contains no images"),
        (["a/1.png"], [], "{root} holds a single class, 'a'"),
        (["1.png"], [], "no images in class folders below '{root}'"),
        ([], ["a"], "no images in class folders below '{root}'"),
        (["val/a/1.png", "val/b/1.png", "test/a/1.png"], [], "'{root}' has test and val, but no train folder"),
        (
            ["train/a/1.png", "val/a/1.png", "valid/a/1.png"],
            [],
            "'{root}' has the folders val and valid for the val split",
        ),
        (
            ["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/c/1.png"],
            [],
            "the classes of the test split of '{root}' differ from those of train (not in train: c; missing: b)",
        ),
    ],
)
def test_a_folder_that_is_wrong_is_named(
    plant: Plant, tmp_path: Path, paths: list[str], folders: list[str], message: str
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    plant(*paths)
    for folder in folders:
        (root / folder).mkdir(parents=True)
    with pytest.raises(UserError) as caught:
        opened(root)
    assert str(caught.value).startswith(message.format(root=root))
    assert "\n" not in str(caught.value)


def test_classes_that_differ_only_by_unicode_form_are_seen_to_differ(plant: Plant) -> None:
    root = plant("train/caf\u00e9/1.png", "train/b/1.png", "test/cafe\u0301/1.png", "test/b/1.png")
    with pytest.raises(UserError, match=r"not in train: cafe\\u0301; missing: caf\u00e9"):
        opened(root)


def test_a_class_may_be_called_test(plant: Plant) -> None:
    assert opened(plant("test/1.png", "exam/1.png")).classes == ("exam", "test")


def test_a_source_that_does_not_exist(tmp_path: Path, plant: Plant) -> None:
    with pytest.raises(
        UserError, match=r"'cifar' does not exist\. Did you mean 'cifar10'\? Choices: cifar10.*or the path"
    ):
        opened("cifar")
    with pytest.raises(UserError, match=r"nowhere' was not found"):
        opened(tmp_path / "nowhere")
    file = plant("a/1.png") / "a" / "1.png"
    with pytest.raises(UserError, match=r"1\.png' is a file: give a folder"):
        opened(file)


def test_parquet_of_the_hub(tmp_path: Path) -> None:
    names = ["ant", "bee", "fly"]
    labels = {"data/train-00000-of-00002.parquet": [0, 1] * 400, "data/train-00001-of-00002.parquet": [2, 2, 1]}
    for path, column in {**labels, "data/test-00000-of-00001.parquet": [1, 0]}.items():
        write_parquet(tmp_path / path, column, names)
    for _ in range(2):  # read, then remembered
        source = opened(tmp_path)
        assert source.classes == ("ant", "bee", "fly")
        assert source.labels.tolist() == [1, 0] + [0, 1] * 400 + [2, 2, 1]
        assert source.ids[:3] == ("test/000000", "test/000001", "train/000000")
        assert source.given.tolist() == ["test"] * 2 + ["train"] * 803
    expected = [png(row % 256) for count in (2, 800, 3) for row in range(count)]
    assert [source.read(row) for row in range(805)] == expected
    for row in (804, 0, 400, 401, 3, 801, 802):
        assert source.read(row) == expected[row]


def test_parquet_is_read_on_from_a_row_that_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("train", "test"):
        write_parquet(tmp_path / f"{name}.parquet", [0, 1] * 600, ["a", "b"])
    source, opened_groups = opened(tmp_path), []
    monkeypatch.setattr(Rows, "_open_group", lambda rows, row: (opened_groups.append(row), open_group(rows, row))[1])
    for row in range(5, 2400, 7):
        assert source.read(row) == png(row % 1200 % 256)
    assert len(opened_groups) <= 8  # of 300 rows, each at most once


open_group = Rows._open_group


def test_parquet_variants(tmp_path: Path) -> None:
    write_parquet(tmp_path / "one" / "train.parquet", [3, 7, 3])
    alone = opened(tmp_path / "one" / "train.parquet")
    assert (alone.classes, alone.labels.tolist(), alone.given.tolist()) == (("3", "7"), [0, 1, 0], ["", "", ""])
    write_parquet(tmp_path / "two" / "default" / "train" / "0000.parquet", ["x", "y"], image="image")
    write_parquet(tmp_path / "two" / "default" / "validation" / "0000.parquet", ["y", "x"], image="image")
    folders = opened(tmp_path / "two")
    assert (folders.classes, folders.labels.tolist()) == (("x", "y"), [0, 1, 1, 0])
    assert folders.given.tolist() == ["train", "train", "val", "val"]
    write_parquet(tmp_path / "three.parquet", [1, 0], ["p", "q"], column="fine_label")
    assert opened(tmp_path / "three.parquet").classes == ("p", "q")
    write_parquet(tmp_path / "four.parquet", [5, 6], column="target")
    assert opened(tmp_path / "four.parquet").classes == ("5", "6")


def test_parquet_whose_images_lie_beside_it(plant: Plant) -> None:
    root = plant("pictures/1.png")
    table = pa.table(
        {"img": [{"bytes": None, "path": "pictures/1.png"}, {"bytes": png(1), "path": None}], "label": [0, 1]}
    )
    pq.write_table(table, root / "train.parquet")
    source = opened(root / "train.parquet")
    assert source.read(0) == root / "pictures/1.png"
    assert source.read(1) == png(1)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"img": [b"x"], "tag": [["a"]]},
            r"has no label column that is found .*: set --data\.label_column to one of img, tag",
        ),
        ({"img": [b"x"], "a": ["a"], "b": ["b"]}, r"several columns that may hold the labels: set .* to one of a, b"),
        ({"picture": [b"x"], "label": [1]}, r"holds a single class, '1'"),
        (
            {"img": [b"x", b"y"], "label": [1, None]},
            r"rows without a label, the first of which is row 1 of '.*train\.parquet'",
        ),
        ({"img": [b"x", b"y"], "label": [0, 0]}, r"holds a single class, '0'"),
        ({"img": [1, 2], "label": [0, 1]}, r"column 'img' of '.*' is of type int64, but must hold encoded images"),
        (
            {"img": [b"x", b"y"], "label": [[0], [1]]},
            r"column 'label' of '.*' is of type list<.*>, but must hold one label per image",
        ),
        ({"img": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}, r"contains no rows"),
    ],
)
def test_parquet_that_is_wrong_is_named(tmp_path: Path, table: dict[str, object], message: str) -> None:
    pq.write_table(pa.table(table), tmp_path / "train.parquet")
    with pytest.raises(UserError, match=message):
        opened(tmp_path / "train.parquet")


def test_parquet_files_that_do_not_fit_together(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", [0, 1], ["a", "b"])
    write_parquet(tmp_path / "other.parquet", [0, 1], ["a", "b"])
    with pytest.raises(UserError, match=r"other\.parquet' belongs to no split"):
        opened(tmp_path)
    (tmp_path / "other.parquet").rename(tmp_path / "test-0.parquet")
    write_parquet(tmp_path / "test-1.parquet", [0, 1], ["a", "c"])
    with pytest.raises(UserError, match=r"the classes of .*test-1.parquet' differ from those of .*test-0.parquet'"):
        opened(tmp_path)
    write_parquet(tmp_path / "test-1.parquet", [0, 2], ["a", "b"])
    with pytest.raises(UserError, match=r"label 2 in row 1 of '.*test-1\.parquet' is not an index of the 2 classes"):
        opened(tmp_path)
    (tmp_path / "test-1.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(UserError, match=r"test-1.parquet' cannot be read as Parquet"):
        opened(tmp_path)


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    source = opened("digits")
    images, labels = load_digits(return_X_y=True)
    assert source.labels.tolist() == labels.tolist()
    assert (source.val_fraction, source.test_fraction, source.native_size) == (0.1, 0.2, (8, 8))
    read = np.stack([source.read(row) for row in range(0, 1797, 100)])  # type: ignore[arg-type]
    np.testing.assert_allclose(read.reshape(-1, 64) / 255, images[::100] / 16, atol=1 / 510 + 1e-9)


def test_a_torchvision_set_is_found_again_offline(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")
    images = {"train": np.arange(8 * 784).astype(np.uint8), "t10k": np.arange(4 * 784).astype(np.uint8)[::-1]}
    for part, pixels in images.items():
        raw = cache / "downloads" / "mnist" / "MNIST" / "raw"
        raw.mkdir(parents=True, exist_ok=True)
        count = len(pixels) // 784
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + bytes(range(count)))
    for _ in range(2):
        source = opened("mnist")
        assert source.classes == tuple("0123456789")
        assert source.labels.tolist() == [*range(8), *range(4)]
        assert source.given.tolist() == ["train"] * 8 + ["test"] * 4
        np.testing.assert_array_equal(source.read(1), images["train"][784:1568].reshape(28, 28))
        np.testing.assert_array_equal(source.read(8), images["t10k"][:784].reshape(28, 28))
        # From now on torchvision must not even be asked for the labels.
        monkeypatch.setattr("convsmith.data.named._index", None)


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "digits"])
def test_without_a_network_the_error_says_what_to_do(name: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    for place in ("torchvision.datasets.utils.urllib.request.urlopen", "urllib.request.urlretrieve"):
        monkeypatch.setattr(place, offline)
    with pytest.raises(
        UserError, match=rf"cannot download or read '{name}' in '{cache}/downloads/{name}'.*--data PATH"
    ):
        opened(name)


def test_an_unpacked_file_that_differs_from_its_archive_is_unpacked_again(tmp_path: Path) -> None:
    for name, content in (("whole", b"1234"), ("damaged", b"1235")):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(b"1234"))
        (tmp_path / name).write_bytes(content)
    (tmp_path / "packed.gz").write_bytes(gzip.compress(b"1234"))
    remove_damaged(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged.gz", "packed.gz", "whole", "whole.gz"]


def test_arrays_with_labels_of_any_kind() -> None:
    images = np.arange(4 * 6 * 5, dtype=np.uint8).reshape(4, 6, 5)
    by_name = from_arrays(images, ["b", "a", "b", "c"])
    assert (by_name.classes, by_name.labels.tolist()) == (("a", "b", "c"), [1, 0, 1, 2])
    by_number = from_arrays(images, [5, 9, 5, 9])
    assert (by_number.classes, by_number.labels.tolist()) == (("5", "9"), [0, 1, 0, 1])
    named = from_arrays(images, np.array([0, 2, 0, 2]), classes=["x", "y", "z"], given=["train", "val", "train", "val"])
    assert (named.classes, named.given.tolist()) == (("x", "y", "z"), ["train", "val", "train", "val"])
    assert (named.native_size, named.native_channels) == ((6, 5), 1)
    assert from_arrays(images, list("babc"), classes=["c", "b", "a"]).labels.tolist() == [1, 2, 1, 0]
    np.testing.assert_array_equal(named.read(2), images[2])
    prints = {source.fingerprint for source in (by_name, by_number, named, from_arrays(images + 1, list("babc")))}
    assert len(prints) == 4


def test_arrays_that_are_wrong_are_named() -> None:
    images = np.zeros((4, 6, 5), dtype=np.uint8)
    for call, message in (
        (lambda: from_arrays(images / 1.0, [0, 1, 0, 1]), r"images must be uint8 .* not float64 \[4, 6, 5\]"),
        (lambda: from_arrays(images, [0, 1, 0]), r"there are 4 images, but labels of shape \[3\]"),
        (
            lambda: from_arrays(images, [0, 1, 0, 2], classes=["a", "b"]),
            "labels run from 0 to 2, but there are 2 classes",
        ),
        (lambda: from_arrays(images, list("abcd"), classes=["a", "b"]), "label 'c' does not exist"),
        (lambda: from_arrays(images, [0.5] * 4), "labels must be integers or strings, not float64"),
        (lambda: from_arrays(images, [1, 1, 1, 1]), "a single class, '1'"),
        (lambda: from_arrays(images, [0, 1, 0, 1], given=["dev"] * 4), "split 'dev' does not exist"),
        (lambda: from_arrays(images[:0], []), "labels must be integers|contains no images"),
    ):
        with pytest.raises(UserError, match=message):
            call()


def test_the_cache_folder_is_where_it_was_put(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder(DataConfig(cache="/a/b")) == Path("/a/b")
    assert cache_folder(DataConfig()) == cache
    monkeypatch.delenv("CONVSMITH_CACHE")
    assert cache_folder(DataConfig()).name == "convsmith"


def test_opening_changes_nothing_in_the_users_folder(plant: Plant) -> None:
    root = plant("a/1.png", "b/1.png")
    before = walk(root)
    opened(root)
    assert walk(root) == before


def test_pickles_in_the_place_of_mnist_are_refused(tmp_path: Path) -> None:
    """torchvision reads files of its first editions with torch's loader for weights, which has errors of its own."""
    pytest.importorskip("torchvision")
    folder = tmp_path / "downloads/mnist/MNIST/processed"
    folder.mkdir(parents=True)
    for name in ("training.pt", "test.pt"):
        torch.save({"run": os.system}, folder / name)
    with pytest.raises(UserError, match="cannot download or read 'mnist'"):
        SOURCES["mnist"](tmp_path)
