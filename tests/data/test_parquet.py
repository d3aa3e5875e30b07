"""Parquet and Arrow: columns, splits by file and by column, test rows without labels, paths that stay inside."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from convsmith.data.config import DataConfig
from convsmith.data.parquet import UNLABELLED
from convsmith.data.source import Source
from convsmith.data.sources import open_source
from data.small import png, refused

Plant = Callable[..., Path]


IMAGES = [png(level) for level in range(6)]
LABELS = [0, 1, 0, 1, 0, 1]


def opened(path: Path, **settings: str) -> Source:
    return open_source(DataConfig(source=str(path), **settings))  # type: ignore[arg-type]


def named(table: pa.Table, **classes: list[str]) -> pa.Table:
    features = {column: {"names": names, "_type": "ClassLabel"} for column, names in classes.items()}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=2)
    elif path.suffix == ".feather":
        pyarrow.feather.write_feather(table, path)
    else:
        with pa.ipc.new_stream(path, table.schema) as file:
            file.write_table(table, max_chunksize=2)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".feather"])
def test_the_formats_hold_the_same(tmp_path: Path, suffix: str) -> None:
    for split in ("train", "test"):
        write(
            tmp_path / f"beans_{split}{suffix}", named(pa.table({"image": IMAGES, "label": LABELS}), label=["a", "b"])
        )
    for _ in range(2):  # read, then remembered
        source = opened(tmp_path)
        assert source.classes == ("a", "b")
        assert source.labels.tolist() == LABELS * 2
        assert source.given.tolist() == ["test"] * 6 + ["train"] * 6
        assert [source.read(row) for row in range(12)] == IMAGES * 2
        assert [source.read(row) for row in (7, 0, 11)] == [IMAGES[1], IMAGES[0], IMAGES[5]]
    assert set(opened(tmp_path / f"beans_test{suffix}").given.tolist()) == {""}


@pytest.mark.parametrize(
    ("columns", "settings"),
    [
        ({"image": IMAGES, "label": LABELS}, {}),
        ({"picture": [{"bytes": image, "path": None} for image in IMAGES], "kind": LABELS}, {}),
        ({"picture": IMAGES, "Class-Name": ["ab"[label] for label in LABELS], "n": [*range(6)], "note": ["x"] * 6}, {}),
        ({"picture": IMAGES, "kind": LABELS, "n": [*range(6)]}, {"label_column": "kind"}),
        ({"one": IMAGES, "two": IMAGES[::-1], "label": LABELS}, {"image_column": "one"}),
        ({"image": IMAGES, "label": pa.array(["ab"[label] for label in LABELS]).dictionary_encode()}, {}),
        ({"image": pa.array(IMAGES, pa.binary_view()), "label": pa.array([*"ababab"], pa.string_view())}, {}),
    ],
)
def test_columns_are_found_or_named(tmp_path: Path, columns: dict[str, object], settings: dict[str, str]) -> None:
    write(tmp_path / "t.arrow", pa.table(columns))
    source = opened(tmp_path / "t.arrow", **settings)
    assert len(source.classes) == 2
    assert source.labels.tolist() == LABELS
    assert [source.read(row) for row in range(6)] == IMAGES


def test_class_labels_are_told_from_other_numbers_and_several_are_listed(tmp_path: Path) -> None:
    table = pa.table({"image": IMAGES, "kind": LABELS, "size": LABELS[::-1]})
    write(tmp_path / "t.parquet", named(table, kind=["x", "y"]))
    assert opened(tmp_path / "t.parquet").classes == ("x", "y")
    write(tmp_path / "t.parquet", named(table, kind=["x", "y"], size=["s", "l"]))
    assert "set --data.label_column to one of kind, size" in refused(lambda: opened(tmp_path / "t.parquet"))
    assert opened(tmp_path / "t.parquet", label_column="size").classes == ("s", "l")
    assert "'seize' does not exist. Did you mean 'size'?" in refused(
        lambda: opened(tmp_path / "t.parquet", label_column="seize")
    )


def test_a_column_of_splits_divides_one_file(tmp_path: Path) -> None:
    homes = ["train", "train", "val", "val", "Test", "Test"]
    write(tmp_path / "all.parquet", pa.table({"image": IMAGES, "label": LABELS, "split": homes}))
    assert opened(tmp_path / "all.parquet").given.tolist() == ["train", "train", "val", "val", "test", "test"]
    write(tmp_path / "all.parquet", pa.table({"image": IMAGES, "label": LABELS, "split": [*homes[:5], "extra"]}))
    assert "'extra' in the column 'split' of" in refused(lambda: opened(tmp_path / "all.parquet"))
    write(tmp_path / "all.parquet", pa.table({"image": IMAGES, "label": LABELS, "split": [*"abcabc"]}))
    assert set(opened(tmp_path / "all.parquet").given.tolist()) == {""}
    assert "'a' in the column" in refused(lambda: opened(tmp_path / "all.parquet", split_column="split"))


@pytest.mark.parametrize("missing", [-1, None])
def test_test_rows_without_a_label_are_counted_and_left_out(tmp_path: Path, missing: int | None) -> None:
    write(tmp_path / "train.parquet", named(pa.table({"image": IMAGES, "label": LABELS}), label=["a", "b"]))
    test = named(pa.table({"image": IMAGES, "label": [missing, 1, 0, missing, 1, 0]}), label=["a", "b"])
    write(tmp_path / "test.parquet", test)
    source = opened(tmp_path)
    assert source.unused[UNLABELLED] == ("test/000000", "test/000003")
    assert source.ids[:4] == ("test/000001", "test/000002", "test/000004", "test/000005")
    assert source.labels[:4].tolist() == [1, 0, 1, 0]
    assert [source.read(row) for row in range(5)] == [*(IMAGES[row] for row in (1, 2, 4, 5)), IMAGES[0]]
    write(
        tmp_path / "test.parquet",
        named(pa.table({"image": IMAGES, "label": pa.array([missing] * 6, pa.int64())}), label=["a", "b"]),
    )
    assert set(opened(tmp_path).given.tolist()) == {"train"}
    write(tmp_path / "train.parquet", test)
    assert re.search(
        r"(label -1 in|the first of which is) row 0 of '.*train\.parquet'", refused(lambda: opened(tmp_path))
    )


def test_minus_one_is_a_class_where_train_has_it(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / f"{split}.parquet", pa.table({"image": IMAGES, "label": [-1, 1] * 3}))
    assert opened(tmp_path).classes == ("-1", "1")
    assert len(opened(tmp_path)) == 12


def test_paths_in_a_column_stay_below_the_folder(plant: Plant) -> None:
    root = plant("pictures/1.png", "2.png")
    table = pa.table({"path": ["pictures/1.png", "2.png", "pictures\\..\\2.png"], "label": [0, 1, 1]})
    write(root / "train.parquet", table)
    source = opened(root)
    assert [source.read(row) for row in range(3)] == [root / "pictures/1.png", root / "2.png", root / "2.png"]
    for wrong in ("../2.png", "/etc/passwd", "pictures/../../x.png"):
        write(root / "train.parquet", pa.table({"img": [{"bytes": None, "path": wrong}] * 2, "label": [0, 1]}))
        outside = opened(root / "train.parquet")
        assert "lies outside" in refused(lambda outside=outside: outside.read(0))  # type: ignore[misc]


def test_folders_that_datasets_saved(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    data = {"image": [{"bytes": image, "path": None} for image in IMAGES], "label": LABELS}
    whole = datasets.Dataset.from_dict(data, features=features)
    datasets.disable_progress_bars()
    datasets.DatasetDict({"train": whole, "test": whole.select([0, 1])}).save_to_disk(tmp_path / "saved")
    write(tmp_path / "saved/train/cache-123.arrow", pa.table({"image": IMAGES, "label": LABELS}))
    source = opened(tmp_path / "saved")
    assert source.classes == ("a", "b")
    assert source.given.tolist() == ["test"] * 2 + ["train"] * 6
    assert source.read(2) == IMAGES[0]
    state = tmp_path / "saved/train/state.json"
    for text in ("{}", "[]", '{"_data_files": [1]}'):
        state.write_text(text)
        assert "does not list the files of the data set" in refused(lambda: opened(tmp_path / "saved"))


def test_files_that_do_not_go_together_or_are_damaged(tmp_path: Path) -> None:
    table = pa.table({"image": IMAGES, "label": LABELS})
    write(tmp_path / "train.parquet", table)
    write(tmp_path / "train.arrow", table)
    assert "holds Parquet and Arrow files" in refused(lambda: opened(tmp_path))
    for name in ("train.arrow", "x.feather"):
        write(tmp_path / name, table)
        content = (tmp_path / name).read_bytes()
        for damaged in (b"", b"ARROW1 but not really", content[: len(content) // 2], content[8:]):
            (tmp_path / name).write_bytes(damaged)
            assert "cannot be read as Arrow" in refused(lambda name=name: opened(tmp_path / name))  # type: ignore[misc]


def test_offsets_that_lead_out_of_an_arrow_file_are_noticed(tmp_path: Path) -> None:
    """pyarrow itself would read whatever lies there in memory, or crash."""
    write(tmp_path / "t.arrow", pa.table({"image": [b"x" * 100, b"y" * 100], "label": [0, 1]}))
    content = (tmp_path / "t.arrow").read_bytes()
    offsets = b"".join(number.to_bytes(4, "little") for number in (0, 100, 200))
    assert content.count(offsets) == 1
    (tmp_path / "t.arrow").write_bytes(content.replace(offsets, offsets[:8] + (2**30).to_bytes(4, "little")))
    source = opened(tmp_path / "t.arrow")
    assert "cannot be read as Arrow" in refused(lambda: source.read(0))


NOT_UTF8 = pa.StringArray.from_buffers(6, pa.py_buffer(bytes(4) + b"".join(bytes([n, 0, 0, 0]) for n in range(1, 7))),
                                       pa.py_buffer(b"\xff" * 6))  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "settings", "said"),
    [
        *(
            ({"label": pa.array(values, kind)}, {}, "must hold one label per image")
            for values, kind in (
                ([1, 2] * 3, pa.date32()),
                ([2**62, 1] * 3, pa.timestamp("us")),
                ([2**60, 1] * 3, pa.date64()),
                ([2**62, 2] * 3, pa.duration("s")),
                ([b"a", b"\xff"] * 3, pa.binary()),
                ([[1], [2]] * 3, None),
            )
        ),
        ({"label": [0.0, float("nan"), 1.0] * 2}, {}, "rows without a label, the first of which is row 1"),
        ({"label": ["", "b"] * 3}, {}, "rows without a label, the first of which is row 0"),
        ({"label": ["cat", "cat\0"] * 3}, {}, "holds a NUL"),
        ({"label": NOT_UTF8}, {}, "cannot be read as Parquet"),
        ({"split": NOT_UTF8}, {"split_column": "split"}, "cannot be read as Parquet"),
        ({"image": NOT_UTF8}, {}, "t.parquet' cannot be read as Parquet"),
        ({"split": LABELS}, {"split_column": "split"}, "must hold train, val or test as text"),
        ({"split": [["train"]] * 6}, {"split_column": "split"}, "must hold train, val or test as text"),
        ({"image": [{"bytes": 1}] * 6}, {}, "must hold encoded images"),
        ({"image": [{"bytes": [1, 2]}] * 6}, {}, "must hold encoded images"),
        ({"image": [{"bytes": None, "path": 5}] * 6}, {}, "must hold encoded images"),
    ],
)
def test_columns_of_other_types_are_refused(
    tmp_path: Path, columns: dict[str, object], settings: dict[str, str], said: str
) -> None:
    write(tmp_path / "t.parquet", pa.table({"image": IMAGES, "label": LABELS, **columns}))
    assert said in refused(lambda: opened(tmp_path / "t.parquet", **settings).read(0))


@pytest.mark.parametrize(
    ("labels", "names", "said"),
    [
        (["x", "y"] * 3, ["x", "y"], "labels of an integer type"),
        ([0.7, 1.2] * 3, ["x", "y"], "labels of an integer type"),
        (pa.array(["x", "y"] * 3).dictionary_encode(), ["x", "y"], "labels of an integer type"),
        (pa.array([2**64 - 1, 1] * 3, pa.uint64()), ["x", "y"], f"label {2**64 - 1} in row 0"),
        (LABELS, ["x", "x"], "the class name 'x'"),
        (LABELS, [["a"], ["b"]], "is no text or occurs twice"),
    ],
)
def test_classes_that_the_schema_states_must_fit(tmp_path: Path, labels: object, names: list[str], said: str) -> None:
    write(tmp_path / "t.parquet", named(pa.table({"image": IMAGES, "label": labels}), label=names))
    assert said in refused(lambda: opened(tmp_path / "t.parquet"))


def test_large_numbers_stay_apart_and_types_are_not_mixed(tmp_path: Path) -> None:
    labels = pa.array([2**64 - 1, 2**64 - 2, 1] * 2, pa.uint64())
    write(tmp_path / "t.parquet", pa.table({"image": IMAGES, "label": labels}))
    assert opened(tmp_path / "t.parquet").classes == ("1", str(2**64 - 2), str(2**64 - 1))
    write(tmp_path / "train.parquet", pa.table({"image": IMAGES, "label": LABELS}))
    write(tmp_path / "val.parquet", pa.table({"image": IMAGES, "label": [*"010101"]}))
    (tmp_path / "t.parquet").unlink()
    assert "int and str: write those of all as one type" in refused(lambda: opened(tmp_path))
    write(tmp_path / "val.parquet", pa.table({"image": IMAGES, "label": [0, 1, -1] * 2}))
    assert "rows without a label, the first of which is row 2 of" in refused(lambda: opened(tmp_path))
