from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from convsmith.config import flag_layer, validate
from convsmith.data.config import DataConfig
from convsmith.data.source import OUTSIDE
from convsmith.data.sources import Source, open_source, with_absolute_paths
from convsmith.errors import UserError
from convsmith.spec import spec_of
from convsmith.verbs.flags import add_config_arguments, given_words, read_settings
from convsmith.verbs.parser import Parser

Plant = Callable[..., Path]


def opened(*paths: Path) -> Source:
    return open_source(DataConfig(source=tuple(map(str, paths))))


def test_folders_are_joined_with_ids_that_tell_them_apart(plant: Plant) -> None:
    root = plant("f/1/cat/a.png", "f/1/dog/a.png", "f/2/cat/a.png", "f/2/cover.png", "f/2/dog/b.png", "f/2/dog/c.png")
    source = opened(root / "f/1", root / "f/2")
    assert source.ids == ("1/cat/a.png", "1/dog/a.png", "2/cat/a.png", "2/dog/b.png", "2/dog/c.png")
    assert [source.classes[label] for label in source.labels] == ["cat", "dog", "cat", "dog", "dog"]
    assert [source.read(row) for row in (4, 0, 2)] == [root / "f" / source.ids[row] for row in (4, 0, 2)]
    assert source.unused == {OUTSIDE: ("2/cover.png",)}
    assert source.fingerprint != opened(root / "f/2", root / "f/1").fingerprint
    assert set(source.given.tolist()) == {""}


def test_a_class_may_be_absent_from_some_and_labels_follow_the_names(plant: Plant) -> None:
    root = plant("a/bee/1.png", "a/cat/1.png", "b/ant/1.png", "b/bee/1.png", "b/cat/1.png")
    source = opened(root / "a", root / "b")
    assert source.classes == ("ant", "bee", "cat")
    assert [source.classes[label] for label in source.labels] == ["bee", "cat", "ant", "bee", "cat"]


def test_folders_that_are_called_by_splits_are_these_splits(plant: Plant) -> None:
    root = plant(*(f"x/{split}/{name}/1.png" for split in ("train", "testing", "more") for name in "ab"))
    assert opened(root / "x/train", root / "x/testing").given.tolist() == ["train"] * 2 + ["test"] * 2
    assert set(opened(root / "x/train", root / "x/more").given.tolist()) == {""}
    with pytest.raises(UserError, match=r"called by a split: '.*/testing' \(test\), '.*/more' \(no split\)"):
        opened(root / "x/testing", root / "x/more")
    divided = plant(*(f"y/{split}/{name}/1.png" for split in ("train", "val") for name in "ab"))
    with pytest.raises(UserError, match=r"y' is divided into train and val, but '.*more' has no splits"):
        opened(divided / "y", root / "x/more")


def test_what_cannot_be_joined_is_named(plant: Plant) -> None:
    root = plant("a/cat/1.png", "a/dog/1.png", "b/cat/1.png", "b/fox/1.png")
    with pytest.raises(UserError, match=r"'.*/b' has the classes fox, which '.*/a' has not"):
        opened(root / "a", root / "b")
    with pytest.raises(UserError, match=r"names '.*/a', which '.*/a/\.\./a' holds already"):
        opened(root / "a", root / "a/../a")
    with pytest.raises(UserError, match=r"names 'x' twice"):
        validate({"data": {"source": ["x", "x"]}})
    for value in ([], [1], ["a", ""], 5):
        with pytest.raises(UserError, match=r"data\.source: must be a name or a path, or a list of them"):
            validate({"data": {"source": value}})


def test_one_source_is_written_as_plain_text(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    root = plant("a/1.png", "b/1.png")
    monkeypatch.chdir(root.parent)
    assert validate(flag_layer({"data.source": ["digits"]})).data.source == "digits"
    config = DataConfig(source=(root.name, "digits"))
    assert with_absolute_paths(config).sources == (str(root), "digits")
    assert (config.title, config.short_name) == (f"{root.name}, digits", f"{root.name}+digits")
    assert config.model_dump(mode="json")["source"] == [root.name, "digits"]


def test_files_of_parquet_are_joined(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for name in ("x_train", "x_test"):
        pq.write_table(pa.table({"img": [b"1", name.encode()], "label": ["a", "b"]}), tmp_path / f"{name}.parquet")
    source = opened(tmp_path / "x_train.parquet", tmp_path / "x_test.parquet")
    assert source.given.tolist() == ["train", "train", "test", "test"]
    assert source.ids[0] == "x_train.parquet/000000"
    assert source.read(3) == b"x_test"
    np.testing.assert_array_equal(source.labels, [0, 1, 0, 1])


def test_flags_and_python_name_several_sources(plant: Plant) -> None:
    parser = Parser()
    add_config_arguments(parser)
    args = parser.parse_args(["--data", "a", "--epochs", "3", "--data", "b c"])
    assert read_settings(args).config.data.sources == ("a", "b c")
    assert given_words(args) == ["--data", "a", "--data", "b c", "--epochs", "3"]
    for data in (["a", "b"], [Path("a"), "b"], ("a", "b"), {"source": ["a", "b"]}):
        assert spec_of(data, None, None, None, None, {}).config.data.sources == ("a", "b")


def test_the_same_images_by_another_way_are_refused(plant: Plant) -> None:
    root = plant(*(f"{top}/{name}/{number}.png" for top in ("in", "b", "c") for name in "xy" for number in range(2)))
    packed = Path(shutil.make_archive(str(root / "a"), "zip", root, "in"))
    for twice in ((f"{packed}", f"{packed}/in"), (f"{packed}/in", f"{packed}/in/")):
        with pytest.raises(UserError, match=r"which '.*' holds already"):
            open_source(DataConfig(source=twice))
    assert set(opened(packed / "in", root / "b").ids) >= {"a.zip/in/x/0.png", "b/x/0.png"}
    (root / "c/x/2.png").symlink_to(root / "b/x/0.png")
    with pytest.raises(UserError, match=r"hold one file, '.*c/x/2\.png', twice"):
        opened(root / "b", root / "c")


def test_splits_with_classes_below_are_no_classes(plant: Plant) -> None:
    root = plant(*(f"{top}/{name}/1.png" for top in ("A/train", "B/test") for name in ("cat", "dog")))
    with pytest.raises(UserError, match=r"A/train, B/test look like splits with classes"):
        opened(root)
    assert opened(root / "A/train", root / "B/test").given.tolist() == ["train"] * 2 + ["test"] * 2
