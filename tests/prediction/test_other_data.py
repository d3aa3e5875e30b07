"""`evaluate --data`: other images under the model's classes, the run's own recognised, its test split sealed."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, confusion_matrix

import convsmith
from convsmith.cli import main
from convsmith.data.config import DataConfig
from convsmith.data.dataset import Subset
from convsmith.errors import UserError
from convsmith.prediction.other_data import named_alike
from convsmith.rundir import RunDir
from moved import plant_digits, run_on_files

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    run_on_files(folder)
    return folder


@pytest.fixture
def run(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A copy of the run beside which the command line stands; its data stay where they are."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(kept / "runs", tmp_path / "runs")
    return RunDir(Path("runs/digits"))


def evaluation(run: RunDir, name: str) -> dict[str, Any]:
    return dict(json.loads(run.evaluation(name).read_text(encoding="utf-8")))


def test_other_images_are_scored_as_predict_scores_them(run: RunDir, capsys: Captured) -> None:
    other = plant_digits(Path("june"), range(200, 260))
    assert main(["evaluate", str(run.path), "--data", str(other), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    record = evaluation(run, "june")
    files = sorted(other.rglob("*.png"))
    predicted = [one.label for one in convsmith.load(run.path, device="cpu").predict(files)]
    true = [file.parent.name for file in files]
    assert record["n"] == len(files) == 60
    assert record["accuracy"] == pytest.approx(accuracy_score(true, predicted))
    assert record["confusion_matrix"]["counts"] == confusion_matrix(true, predicted, labels=record["classes"]).tolist()
    assert record["data"] == {"name": "june", "source": str(other.resolve()), "split": None} | {
        "hash": record["data"]["hash"],
        "skipped": 0,
    }
    with run.predictions("june").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["id"], row["label"], row["predicted"]) for row in rows] == [
        (file.relative_to(other).as_posix(), *pair) for file, *pair in zip(files, true, predicted, strict=True)
    ]
    assert run.confusion("june").exists()
    assert f"{other.resolve()}: 60 images, by {run.path}" in said
    assert f"written: {run.evaluation('june')}, {run.predictions('june')}" in said
    assert len(convsmith.load(run.path).confusion("june").axes) > 0
    with pytest.raises(UserError, match=r"split 'jun' does not exist\. Did you mean 'june'"):
        convsmith.load(run.path).confusion("jun")


@pytest.mark.parametrize("classes", ["37", "5"])
def test_some_of_the_classes_are_enough(run: RunDir, classes: str, capsys: Captured) -> None:
    other = plant_digits(Path("some"), range(200, 300), classes)
    assert main(["evaluate", str(run.path), "--data", str(other)]) == 0
    record = evaluation(run, "some")
    support = {name: scores["support"] for name, scores in record["per_class"].items()}
    assert {name for name, count in support.items() if count} == set(classes)
    assert f"there are no images of {10 - len(classes)} of the 10 classes" in capsys.readouterr().out


def test_labels_count_by_name_in_arrays_too(run: RunDir) -> None:
    digits = load_digits()
    chosen = np.flatnonzero(np.isin(digits.target, (3, 7)))[40:80]
    images = np.rint(digits.images[chosen] * (255 / 16)).astype(np.uint8)
    loaded = convsmith.load(run.path)
    true = [str(label) for label in digits.target[chosen]]
    predicted = [one.label for one in loaded.predict(list(images))]
    for labels in (digits.target[chosen], true):
        record = loaded.evaluate(data=(images, labels), show=False)
        counts = confusion_matrix(true, predicted, labels=record["classes"]).tolist()
        assert record["confusion_matrix"]["counts"] == counts
    assert evaluation(run, "arrays")["n"] == 40
    loaded.evaluate(data=(images[:5], digits.target[chosen][:5]), show=False)
    assert evaluation(run, "arrays-2")["n"] == 5, "other arrays, another name"


def test_unknown_classes_are_refused_with_both_lists(run: RunDir) -> None:
    other = plant_digits(Path("letters"), range(200, 220))
    (other / "3").rename(other / "three")
    with pytest.raises(UserError, match=r"holds the class 'three', which .*model: 0, 1, .*; of the data: 0"):
        convsmith.load(run.path).evaluate(data=other)
    assert not list(run.path.glob("*letters*"))


def test_a_split_of_the_data_can_be_named(run: RunDir, kept: Path, capsys: Captured) -> None:
    for split, numbers in {"train": range(200, 260), "val": range(260, 320)}.items():
        plant_digits(Path("more") / split, numbers)
    assert main(["evaluate", str(run.path), "--data", "more", "--split", "val"]) == 0
    assert (evaluation(run, "more-val")["n"], evaluation(run, "more-val")["data"]["split"]) == (60, "val")
    assert main(["evaluate", str(run.path), "--data", "more"]) == 0
    assert evaluation(run, "more")["n"] == 120
    assert main(["evaluate", str(run.path), "--data", "more", "--split", "test"]) == 2
    assert "has no test split of its own: choose --split train or val, or leave --split out" in capsys.readouterr().err


def test_names_never_collide(run: RunDir) -> None:
    loaded = convsmith.load(run.path)
    folders = ["a/val", "a/oof", "b/june", "c/june", "two words", "b/june"]
    names = ["a-val", "data-oof", "june", "june-2", "two-words", "june"]
    for folder, name in zip(folders, names, strict=True):
        plant_digits(Path(folder), range(200, 210))
        assert loaded.evaluate(data=folder, show=False)["data"]["name"] == name
    assert run.evaluations() == sorted(set(names))


def test_the_runs_own_data_are_recognised_where_they_have_moved(run: RunDir, kept: Path, capsys: Captured) -> None:
    loaded = convsmith.load(run.path)
    before = loaded.evaluate("val")
    shutil.copytree(kept / "photos", "elsewhere")
    assert loaded.evaluate("val", data="elsewhere", show=False) == before
    assert run.evaluations() == ["val"]
    assert not run.test_access.exists()
    with pytest.raises(UserError, match="was trained with: choose one of its splits, --split val or --split test"):
        loaded.evaluate(data="elsewhere", show=False)
    assert main(["evaluate", str(run.path), "--data", "elsewhere", "--split", "test"]) == 0
    assert "evaluate runs/digits --data elsewhere --split test" in run.test_access.read_text(encoding="utf-8")
    assert run.evaluations() == ["test", "val"]


def test_data_of_a_limited_run_are_recognised_too(tmp_path: Path) -> None:
    run, photos = run_on_files(tmp_path, limit=60)
    photos.rename(tmp_path / "elsewhere")
    loaded = convsmith.load(run.path)
    known = json.loads(run.splits.read_text(encoding="utf-8"))["splits"]
    for split in ("val", "test"):
        assert loaded.evaluate(split, data=tmp_path / "elsewhere", show=False)["n"] == len(known[split])
    assert run.evaluations() == ["test", "val"]


@pytest.mark.parametrize("place", ["photos/test", "link", "photos/test/3/..", "photos with one more"])
def test_the_sealed_test_split_has_no_side_door(run: RunDir, kept: Path, place: str) -> None:
    Path("link").symlink_to(kept / "photos" / "test")
    if place == "photos with one more":
        place = str(kept / "photos")
        plant_digits(kept / "photos" / "train", range(400, 401))
    elif place != "link":
        place = str(kept / place)
    try:
        with pytest.raises(UserError, match=r"may be of the sealed test split .*evaluate runs/digits --split test"):
            convsmith.load(run.path).evaluate(data=place, show=False)
        convsmith.load(run.path).evaluate(data=kept / "photos" / "train", show=False)  # these are nobody's secret
    finally:
        for file in (kept / "photos" / "train").glob("*/400.png"):
            file.unlink()
    assert run.evaluations() == ["photos-train"]
    assert not run.test_access.exists()


@pytest.mark.parametrize("how", ["links to files", "links to folders", "hard links", "the run's source is damaged"])
def test_links_and_a_damaged_source_open_no_sealed_image(tmp_path: Path, how: str) -> None:
    run, photos = run_on_files(tmp_path)
    other = photos / "test"
    if how == "the run's source is damaged":
        (photos / "train").rename(photos / "old")
    else:
        other = tmp_path / "other"
        for folder in (photos / "test").iterdir():
            if how == "links to folders":
                other.mkdir(exist_ok=True)
                (other / folder.name).symlink_to(folder)
            else:
                (other / folder.name).mkdir(parents=True)
                for file in folder.iterdir():
                    place = other / folder.name / f"renamed-{file.name}"
                    place.hardlink_to(file) if how == "hard links" else place.symlink_to(file)
    with pytest.raises(UserError, match="may be of the sealed test split"):
        convsmith.load(run.path).evaluate(data=other, show=False)
    assert not run.evaluations()
    assert not run.test_access.exists()


def test_a_copy_of_a_part_of_the_runs_data_is_told_by_its_names(run: RunDir, kept: Path) -> None:
    shutil.copytree(kept / "photos", "copy")
    next(Path("copy/train/3").iterdir()).unlink()
    events: list[Any] = []
    convsmith.load(run.path).evaluate(data="copy", show=events.append)
    said = "159 of 159 images have names of images of this run (59 of train, 50 of val, 50 of test)"
    assert any(said in getattr(event, "text", "") for event in events)


@pytest.mark.parametrize(("place", "split"), [("copy/train", "60 of train"), ("copy/val", "50 of val")])
def test_a_copy_of_one_folder_of_splits_is_told_too(run: RunDir, kept: Path, place: str, split: str) -> None:
    shutil.copytree(kept / "photos", "copy")
    events: list[Any] = []
    convsmith.load(run.path).evaluate(data=place, show=events.append)
    count = split.partition(" ")[0]
    said = f"{count} of {count} images have names of images of this run ({split}): if"
    assert any(said in getattr(event, "text", "") for event in events)


TREE = {"train": ["train/ants/1.png", "train/ants/2.png"], "val": ["val/ants/1.png", "val/ants/3.png"]}


@pytest.mark.parametrize(
    ("own", "splits", "other", "name", "split"),
    [
        ("photos", TREE, "copy", "train/ants/1.png", "train"),
        ("photos", TREE, "photos/val", "ants/1.png", "val"),
        ("photos", TREE, "copy/train", "ants/1.png", "train"),
        ("photos", TREE, "photos/test", "ants/1.png", None),  # another split, whose files have the same numbers
        ("photos", TREE, "others", "ants/3.png", "val"),  # a renamed copy
        ("photos", TREE, "others", "ants/1.png", None),  # of which of both?
        ("photos", TREE, "others", "ants/33.png", None),
        ("photos", TREE, "others", "3.png", None),
        ("photos/train", {"train": ["ants/1.png"]}, "photos", "train/ants/1.png", "train"),
        ("photos/train", {"train": ["ants/1.png"]}, "photos", "test/ants/1.png", None),
        ("array", {"train": ["7"]}, "array", "7", "train"),
    ],
)
def test_names_are_alike_from_folder_to_file(
    own: str, splits: dict[str, list[str]], other: str, name: str, split: str | None
) -> None:
    images = Subset(np.zeros((1, 1, 1, 1), np.uint8), np.arange(1), np.zeros(1, np.int64), [name])
    found = named_alike(DataConfig(source=own), splits, DataConfig(source=other), images)
    assert found.partition("(")[2].partition(")")[0] == ("" if split is None else f"1 of {split}")


def test_only_how_data_are_read_can_be_set(run: RunDir, capsys: Captured) -> None:
    plant_digits(Path("june"), range(200, 210))
    (Path("june") / "1" / "broken.png").write_bytes(b"no image")
    command = ["evaluate", str(run.path), "--data", "june"]
    assert main(command) == 2
    assert "--data.on_error skip leaves them out" in capsys.readouterr().err
    assert main([*command, "--data.on_error", "skip"]) == 0
    assert evaluation(run, "june")["n"] == 10
    assert "1 file that could not be decoded left out" in capsys.readouterr().out
    assert main(["evaluate", str(run.path), "--data.on_error", "skip"]) == 2
    assert "data.on_error says how the images of --data are read: give --data, too" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"data\.image_size cannot be set for a trained model"):
        convsmith.load(run.path).evaluate(data={"source": "june", "image_size": 9})
    with pytest.raises(UserError, match="data must be a name, a path"):
        convsmith.load(run.path).evaluate(data=7)  # type: ignore[arg-type]
