"""Labels from tables and from names: what is found, what is refused, and that a config repeats it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

import convsmith
from convsmith.cli import main
from convsmith.data.config import DataConfig
from convsmith.data.dataset import open_dataset
from convsmith.data.labels import NO_FILE, NO_LABEL, NO_ROW, UNLABELLED
from convsmith.data.source import Source
from convsmith.data.sources import open_source
from convsmith.data.tables import Names, Table, keep_frame, read_table
from convsmith.errors import UserError
from convsmith.spec import spec_of
from data.small import refused

Plant = Callable[..., Path]
ROWS = "image,label\n1.png,cat\n2.png,owl\n3.png,cat\n"
FILES = ("1.png", "2.png", "3.png")


def opened(root: Path, labels: str | Path, **settings: object) -> Source:
    return open_source(DataConfig(source=str(root), labels=str(labels), **settings))  # type: ignore[arg-type]


def written(root: Path, text: str, name: str = "labels.csv", encoding: str = "utf-8") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(text.encode(encoding))
    return root / name


def truth(source: Source) -> dict[str, str]:
    return {name: source.classes[label] for name, label in zip(source.ids, source.labels, strict=True)}


@pytest.mark.parametrize(
    ("text", "name", "encoding"),
    [
        (ROWS, "labels.csv", "utf-8"),
        (ROWS.replace("\n", "\r\n"), "labels.csv", "utf-8-sig"),
        (ROWS.replace(",", ";"), "labels.csv", "utf-8"),
        (ROWS.replace(",", "\t"), "labels.tsv", "utf-8"),
        (ROWS.replace(".png", ""), "labels.csv", "utf-8"),
        (ROWS.replace("image,label", "Image ID, Class-Name").replace("\n", "\n\n"), "labels.txt", "utf-8"),
        (ROWS.replace("image,label", "foto,art"), "labels.csv", "utf-8"),
        (
            "art,foto,x\n" + "".join(f"{c},{n}.png,x{n}\n" for n, c in ((1, "cat"), (2, "owl"), (3, "cat"))),
            "l.csv",
            "utf-8",
        ),
    ],
)
def test_tables_as_people_write_them(plant: Plant, tmp_path: Path, text: str, name: str, encoding: str) -> None:
    root = plant(*FILES)
    table = written(tmp_path, text, name, encoding)
    settings = {"label_column": "art"} if "art,foto" in text else {}
    source = opened(root, table, **settings)
    assert truth(source) == {"1.png": "cat", "2.png": "owl", "3.png": "cat"}
    assert set(source.given.tolist()) == {""}
    assert source.read(1) == root / "2.png"


@pytest.mark.parametrize(
    ("file", "cell"),
    [
        ("deep/er/1.png", "1.png"),
        ("deep/er/1.png", "1"),
        ("deep/er/1.png", "er/1.png"),
        ("deep/er/1.png", "er/1"),
        ("deep/er/1.png", "./deep/er/1.png"),
        ("deep/er/1.png", "deep\\er\\1.png"),
        ("deep/er/1.png", "data/deep/er/1.png"),
        ("deep/er/1.png", "{root}/deep/er/1.png"),
        ("deep/er/1.png", "../deep/er/1.png"),  # seen from the table's folder
        ("deep/er/1.2.png", "1.2"),
        ("ç ü/日本.png", "日本"),
    ],
)
def test_images_are_found_wherever_they_lie(plant: Plant, file: str, cell: str) -> None:
    root = plant(file, "other/2.png")
    table = written(root / "tables", f"image,label\n{cell.format(root=root)},a\n2,b\n")
    assert truth(opened(root, table)) == {file: "a", "other/2.png": "b"}


def test_names_agree_with_a_slow_search() -> None:
    """The end of exactly one path, with or without its suffix; a whole path before the end of one."""
    paths = ["a/1.png", "b/1.png", "b/2.png", "c/b/2.jpg", "3.png", "c/3.png", "4.jpg", "4.png"]

    def slow(cell: str) -> object:
        for whole in (str, lambda path: path.rpartition(".")[0]):
            ends = [row for row, path in enumerate(paths) if ("/" + whole(path)).endswith("/" + cell)]
            ends = [row for row in ends if whole(paths[row]) == cell] or ends
            if ends:
                return ends[0] if len(ends) == 1 else "several"
        return None

    def fast(cell: str) -> object:
        try:
            return Names("the data", paths).find(cell)
        except UserError as error:
            return "several" if "give the whole path" in str(error) else str(error)

    stems = [path.rpartition(".")[0] for path in paths]
    cells = {"/".join(name.split("/")[at:]) for name in [*paths, *stems] for at in range(3)} - {""} | {"x", "x/1.png"}
    assert {cell: fast(cell) for cell in cells} == {cell: slow(cell) for cell in cells}


def test_rows_and_images_that_have_no_partner_are_counted(plant: Plant) -> None:
    root = plant(*FILES, "4.png")
    source = opened(root, written(root, ROWS + "9.png,cat\n"))
    assert source.ids == FILES
    assert source.unused[NO_ROW] == ("4.png",)
    assert source.unused[NO_FILE] == ("9.png",)
    assert opened(root, r"([123])\.png").unused[NO_LABEL] == ("4.png",)


def test_a_split_column_divides_and_test_rows_may_lack_labels(plant: Plant) -> None:
    root = plant(*FILES, "4.png", "5.png")
    text = "image,label,split\n1,cat,train\n2,owl,TRAIN\n3,cat,validation\n4,,test\n5,owl,test\n"
    source = opened(root, written(root, text))
    assert source.given.tolist() == ["train", "train", "val", "test"]
    assert source.unused[UNLABELLED] == ("4.png",)
    named = text.replace("split", "use")
    assert opened(root, written(root, named), split_column="use").given.tolist() == source.given.tolist()
    for wrong, message in (
        (text.replace("TRAIN", "extra"), "the column 'split' of .* holds splits such as 'test', but also 'extra'"),
        (text.replace("TRAIN", "val").replace("train", "val"), "has no images for train, only for test, val"),
        (text.replace("5,owl", "1,cat"), "'1.png' is in test, but a row above says train: keep one"),
    ):
        assert re.search(message, refused(lambda wrong=wrong: opened(root, written(root, wrong))))  # type: ignore[misc]
    assert "'x' in the column 'use' is no split" in refused(
        lambda: opened(root, written(root, named.replace("TRAIN", "x")), split_column="use")
    )


def test_folders_of_splits_divide_what_a_table_or_a_pattern_labels(plant: Plant) -> None:
    root = plant("train/cat.0.png", "train/dog.1.png", "test/cat.2.png", "test/dog.3.png")
    assert opened(root, r"(cat|dog)\.\d+").given.tolist() == ["test", "test", "train", "train"]
    assert opened(root, r"/(cat|dog)").classes == ("cat", "dog")
    assert set(opened(root / "train", r"(cat|dog)").given.tolist()) == {""}
    plant("extra/cat.4.png")
    assert "test, train look like splits, but not extra" in refused(lambda: opened(root, "(cat|dog)"))
    classes = opened(root, "^([^/]+)/")  # the folders are the classes, whatever they are called
    assert (classes.classes, set(classes.given.tolist())) == (("extra", "test", "train"), {""})


def test_numbers_are_classes_in_their_order(plant: Plant) -> None:
    root = plant(*FILES)
    assert opened(root, written(root, "image,label\n1,10\n2,9\n3,10\n")).classes == ("9", "10")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("image,label\n", "none of the 0 rows of"),
        ("image|label\n1.png|cat\n", r"has one column, 'image\|label': separate columns by commas"),
        ("1.png,cat\n2.png,owl\n", r"the first line of .* is about an image, 1\.png, cat: write a line with the names"),
        (
            "foto,art\nx,cat\ny,owl\n",
            r"no column of .* names images .* its columns are foto, art, its first row is 'x', 'c",
        ),
        ("image,label\n1.png,cat\n2.png,\n", "line 3 of .*: no label for '2.png' in the column 'label'"),
        ("image,label\n1.png,cat\n2.png\n", "line 3 of .*: no label for '2.png'"),
        ("image,label\n1.png,cat\n,owl\n", "line 3 of .*: no image in the column 'image'"),
        (
            "image,label\n1.png,cat\n2.png,owl,dog\n",
            "has 3 cells in line 3, but 2 columns: put cells that hold a comma",
        ),
        (
            "image,label\n1.png,cat\n2,owl\n1,dog\n",
            "line 4 of .*: '1.png' is 'dog', but a row above says 'cat'",
        ),
        (
            "image,label\n../../etc/passwd,cat\n1,owl\n",
            r"line 2 of .*'\.\./\.\./etc/passwd' lies outside '.*data': give",
        ),
        ("image,label\n/etc/passwd,cat\n1,owl\n", "'/etc/passwd' lies outside"),
        ("image,label\nx/1.png,cat\ny,owl\n", "none of the 2 rows of .*, the first of which names 'x/1.png', is about"),
        ('image,label\n1.png,"cat\n2.png,owl\n', "cannot be read as a table: line 3: unexpected end of data"),
        ("image,label,label\n1,cat,cat\n2,owl,owl\n", "several columns that may hold the labels|has 2 columns 'label'"),
        (
            "image,dx,age\n1,mel,50\n2,nv,40\n",
            "several columns that may hold the labels: set --data.label_column to one of dx, age",
        ),
        (
            "image,file,label\n1,2,cat\n2,3,owl\n",
            "several columns that may name the images: set --data.image_column to one of image, file",
        ),
        ("image;label,x\n1,cat\n2,owl\n", "may be separated by comma and semicolon: put column names that hold one"),
    ],
)
def test_tables_that_are_wrong_are_one_line(plant: Plant, text: str, message: str) -> None:
    root = plant(*FILES)
    table = written(root, text)
    said = refused(lambda: opened(root, table))
    assert re.search(message, said), said
    assert str(table) in said


def test_tables_that_cannot_be_had_are_one_line(plant: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = plant(*FILES)
    assert "labels.tsv' was not found: there is no such file, nor in" in refused(lambda: opened(root, "labels.tsv"))
    latin = written(root, ROWS.replace("owl", "käuz"), encoding="latin-1")
    assert re.search(r"is not UTF-8 \(line 3\): save it as UTF-8", refused(lambda: opened(root, latin)))
    assert "is not UTF-8 (line 1)" in refused(lambda: opened(root, written(root, ROWS, encoding="utf-16")))
    good = written(root, ROWS)
    assert "'lable' does not exist. Did you mean 'label'? Choices: image, label" in refused(
        lambda: opened(root, good, label_column="lable")
    )
    monkeypatch.setattr("convsmith.data.tables.LARGEST", 10)
    assert "has more than" in refused(lambda: opened(root, good))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("(im|sub)" + "|x" * 300_000, "is no file, and too large for a pattern, of at most 1,000 characters"),
        ("(?:(?:a{1,1000}){1,1000}){1,1000}(m)", "too large for a pattern"),
        ("(x{1000000000})", "too large for a pattern"),
        ("(cat", r"is neither a file nor a valid pattern \(missing \)"),
        (r"\d", "has 0 capture groups instead of one .*give a CSV or TSV file or a pattern"),
        (
            "(wolf)",
            r"data\.labels '\(wolf\)' matches none of 3 images, the first of which is '1.png': change the pattern",
        ),
    ],
)
def test_patterns_that_are_wrong_are_one_line(plant: Plant, setting: str, message: str) -> None:
    root = plant(*FILES)
    assert re.search(message, refused(lambda: opened(root, setting)))
    assert "data.label_column needs a table" in refused(lambda: opened(root, "(.)", label_column="x"))


def test_settings_that_nothing_would_read_are_refused(plant: Plant) -> None:
    root = plant("a/1.png", "b/2.png")
    for key in ("label_column", "image_column", "split_column"):
        said = refused(lambda key=key: open_source(DataConfig(source=str(root), **{key: "x"})))  # type: ignore[misc]
        assert f"data.{key} needs a table" in said
    assert "data.labels is for images in folders" in refused(lambda: opened(Path("digits"), "(.)"))


def test_a_config_repeats_labels_from_anywhere(plant: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = plant(*(f"{number}.png" for number in range(20)))
    text = "image,label,who\n" + "".join(f"{n},{'ab'[n % 2]},p{n // 2}\n" for n in range(20))
    written(root, text, "train.csv")
    config = DataConfig(
        source=str(root), labels="train.csv", label_column="label", groups="train.csv", group_column="who"
    )
    dataset = open_dataset(config)
    assert dataset.config.labels == dataset.config.groups == str(root / "train.csv")
    monkeypatch.chdir(tmp_path)
    assert open_dataset(dataset.config).splits_record() == dataset.splits_record()
    written(root, text.replace("0,a,p0", "0,b,p0"), "train.csv")
    assert open_dataset(dataset.config).hash != dataset.hash


@pytest.mark.parametrize("kind", ["pandas", "polars", "arrow", "dict"])
def test_a_table_from_python_is_kept_where_a_config_can_name_it(plant: Plant, cache: Path, kind: str) -> None:
    root = plant(*FILES)
    columns = {"image": list(FILES), "label": [1.0, 2.0, None], "split": ["train", "train", "test"]}
    table = {
        "pandas": lambda: pytest.importorskip("pandas").DataFrame(columns),
        "polars": lambda: pytest.importorskip("polars").DataFrame(columns),
        "arrow": lambda: pa.table(columns),
        "dict": lambda: columns,
    }[kind]()
    config = spec_of({"source": root, "labels": table, "groups": table}, None, None, None, None, {}).config.data
    assert config.labels is not None
    assert config.labels == config.groups
    assert Path(config.labels).parent == cache / "tables"
    assert truth(open_source(config)) == {"1.png": "1", "2.png": "2"}
    Path(config.labels).unlink()
    assert "it was made of a table that Python passed in: pass it in again" in refused(lambda: open_source(config))


def test_what_is_no_table_in_python_is_refused(cache: Path) -> None:
    for wrong in (3, {"a": [1], "b": [1, 2]}, {"a": [object()]}):
        assert "data.labels: the table cannot be read" in refused(
            lambda wrong=wrong: keep_frame("data.labels", wrong, cache)
        )  # type: ignore[misc]


def test_a_large_table_is_read_in_a_moment(tmp_path: Path) -> None:
    """50,000 rows in a fifth of a second or so; benchmarks/labels.py reads a million."""
    paths = [f"train/{number % 100:02d}/{number:07d}.jpg" for number in range(50_000)]
    table = written(tmp_path, "id,label\n" + "".join(f"{n:07d},{n % 10}\n" for n in reversed(range(50_000))))
    start = time.process_time()
    names = Names("the data", paths)
    rows = [names.find(cell) for _, (cell, _) in read_table("data.labels", table).rows("id", "label")]
    assert rows == list(reversed(range(50_000)))
    assert time.process_time() - start < 2


def test_the_first_line_decides_the_delimiter() -> None:
    assert Table("t", b'"a;b",c\n1,2\n').columns == ["a;b", "c"]


def test_a_flat_folder_with_one_table_beside_it_is_refused_with_the_flag_to_type(plant: Plant) -> None:
    root = plant("train/1.png", "train/2.png")
    written(root, ROWS, "my labels.csv")
    said = refused(lambda: open_source(DataConfig(source=str(root))))
    assert said.endswith("if my labels.csv holds their labels, add --data.labels 'my labels.csv'")


def test_data_check_reads_labels_as_train_does(plant: Plant, capsys: pytest.CaptureFixture[str]) -> None:
    root = plant(*FILES)
    written(root, ROWS.replace("label\n", "art\n"))
    assert main(["data", "check", str(root), "--data.labels", "labels.csv", "--data.label_column", "art"]) == 0
    assert f"train --data {root} --data.labels labels.csv --data.label_column art" in " ".join(
        capsys.readouterr().out.split()
    )
    table = {"image": FILES, "label": ["a", "b", "a"]}
    assert convsmith.check_data({"source": root, "labels": table}, show=False).counts == {"": {"a": 2, "b": 1}}


def test_a_pattern_that_tries_too_many_ways_is_ended(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convsmith.data.labels.LONGEST", 0.05)
    root = plant("a" * 60 + ".png", "b.png")
    assert "takes more than 0.05 s for 'aaaa" in refused(lambda: opened(root, "(a|aa)+$"))


def test_splits_below_the_folders_of_classes_divide_the_images(plant: Plant) -> None:
    root = plant(*(f"{name}/{split}/{number}.png" for name in "ab" for split in ("train", "test") for number in "12"))
    source = open_source(DataConfig(source=str(root), labels="^([^/]+)/"))
    assert source.given.tolist() == ["test", "test", "train", "train"] * 2
    assert source.labels.tolist() == [0] * 4 + [1] * 4
