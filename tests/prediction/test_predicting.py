"""Predictions of many images: rows as they come, after a kill, of broken files, below a threshold, and embeddings."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import convsmith
from convsmith.errors import UserError
from convsmith.events import Note
from convsmith.prediction import evaluate, predicting
from convsmith.prediction.calibration import fit_temperature
from convsmith.prediction.evaluation import read_predictions
from convsmith.prediction.inputs import as_list, find_images, with_ids
from convsmith.prediction.output import PredictionFile, columns_of, key_of
from convsmith.prediction.predicting import predict_all
from convsmith.prediction.predictor import Predictor, load_predictor

FINISHED = Path(__file__).resolve().parents[1] / "first_edition" / "finished"


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return load_predictor(FINISHED, "cpu")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nine images and a broken file, of which three are predicted at a time, in the working folder."""
    monkeypatch.setattr(predicting, "SOME", 2)
    monkeypatch.setattr("convsmith.prediction.predictor.images_per_pass", lambda height, width: 3)
    monkeypatch.chdir(tmp_path)
    folder = Path("photos")
    folder.mkdir()
    for number in range(9):
        pixels = np.random.default_rng(number).integers(0, 256, (9, 9), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "4b.png").write_bytes(b"nothing of an image")
    return folder


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, strict=True))


def rows_of(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text()) if path.suffix == ".json" else table(path)
    return found


def killed(predictor: Predictor, photos: Path, batches: int, **options: Any) -> Path:
    """Predict into p.csv, end after some batches as a kill does, and return the partial file."""
    rows = predict_all(predictor, *with_ids(photos), Path("p.csv"), **options)
    for _ in range(batches):
        next(rows)
    rows.close()  # type: ignore[attr-defined]
    (partial,) = Path().glob("p.csv.*.partial")
    return partial


def test_a_file_that_cannot_be_read_is_a_row_with_its_reason(predictor: Predictor, photos: Path) -> None:
    rows = [row for rows in predict_all(predictor, *with_ids(photos), Path("p.csv")) for row in rows]
    written = table(Path("p.csv"))
    assert list(written[0]) == columns_of(predictor.classes, False)
    assert [row["id"] for row in written] == [row["id"] for row in rows] == sorted(map(str, photos.iterdir()))
    assert [row["id"] for row in written if row["error"]] == ["photos/4b.png"]
    assert written[5] == dict.fromkeys(written[5], "") | {"id": "photos/4b.png", "error": rows[5]["error"]}
    assert "not-an-image" in written[5]["error"]
    assert not list(Path().glob("*.partial"))


@pytest.mark.parametrize("cut", [0, 1, 30])
@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_rows_stay_after_a_kill_and_the_same_command_goes_on(
    predictor: Predictor, photos: Path, cut: int, suffix: str
) -> None:
    list(predict_all(predictor, *with_ids(photos), Path(f"whole.{suffix}")))
    out = Path(f"p.{suffix}")
    rows = predict_all(predictor, *with_ids(photos), out)
    next(rows), next(rows)
    rows.close()  # type: ignore[attr-defined]
    (partial,) = Path().glob(f"p.{suffix}.*.partial")
    assert not out.exists()
    assert len(table(partial)) == 6
    os.truncate(partial, partial.stat().st_size - cut)  # within the last row
    notes: list[str] = []
    looked: list[str] = []
    decoded = Predictor.decoded

    def counting(self: Predictor, images: Iterator[Any]) -> Iterator[Any]:
        return decoded(self, (looked.append(str(image)) or image for image in images))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Predictor, "decoded", counting)
        again = predict_all(
            predictor, *with_ids(photos), out, listener=lambda e: notes.append(e.text) if isinstance(e, Note) else None
        )
        assert sum(map(len, again)) == 10
    assert len(looked) == (4 if cut == 0 else 5)
    assert "going on after the" in notes[0]
    assert not partial.exists()
    found, wanted = (rows_of(file) for file in (out, Path(f"whole.{suffix}")))
    for row, other in zip(found, wanted, strict=True):
        assert [row[key] for key in ("id", "predicted", "error")] == [
            other[key] for key in ("id", "predicted", "error")
        ]
        if other["confidence"]:  # batches of other images may round differently
            assert float(row["confidence"]) == pytest.approx(float(other["confidence"]), abs=1e-6)


def test_another_folder_in_the_place_of_the_first_is_predicted_anew(predictor: Predictor, photos: Path) -> None:
    shutil.copytree(photos, "others")
    time.sleep(0.02)  # the clock of a file system has coarse ticks
    killed(predictor, photos, 1)
    time.sleep(0.02)
    photos.rename("first")
    Path("others").rename(photos)
    assert "another folder may be at 'photos' since" in anew(predictor, with_ids(photos))


def test_no_file_holds_rows_of_two_models_or_of_two_options(predictor: Predictor, photos: Path, tmp_path: Path) -> None:
    partial = killed(predictor, photos, 1)
    before = partial.read_bytes()
    shutil.copytree(FINISHED / "model", tmp_path / "other")
    card = json.loads((tmp_path / "other/model.json").read_text())
    (tmp_path / "other/model.json").write_text(json.dumps(card, indent=1))
    other = replace(predictor, files=(tmp_path / "other/model.json", predictor.files[1]))
    for model, options in ((other, {}), (predictor, {"threshold": 0.5})):
        rows = [row for rows in predict_all(model, *with_ids(photos), Path("p.csv"), **options) for row in rows]
        assert len(rows) == len(table(Path("p.csv"))) == 10
        assert partial.read_bytes() == before, "it is of another model or of other options, and is kept"


def anew(predictor: Predictor, given: tuple[list[str], list[Any]], **options: Any) -> str:
    """Why all are predicted anew."""
    notes: list[str] = []
    found = predict_all(
        predictor,
        *given,
        Path("p.csv"),
        listener=lambda event: notes.append(event.text) if isinstance(event, Note) else None,
        **options,
    )
    assert sum(map(len, found)) == len(given[0]) == len(table(Path("p.csv")))
    return notes[0]


def test_what_has_changed_is_predicted_anew(predictor: Predictor, photos: Path) -> None:
    killed(predictor, photos, 1)
    Image.new("L", (9, 9)).save(photos / "0.png")
    later = (photos / "0.png").stat().st_mtime + 9
    os.utime(photos / "0.png", (later, later))
    assert "'photos/0.png' has changed since" in anew(predictor, with_ids(photos))
    os.utime(photos / "0.png", (0, 0))
    killed(predictor, photos, 1)
    assert "--features needs each" in anew(predictor, with_ids(photos), features=Path("f.npz"))
    killed(predictor, photos, 1)
    (photos / "1.png").unlink()
    assert "'photos/1.png' is not among the images" in anew(predictor, with_ids(photos))


def test_images_that_are_no_files_are_never_gone_on_with(predictor: Predictor, photos: Path) -> None:
    images = list(np.random.default_rng(0).integers(0, 256, (9, 8, 8), dtype=np.uint8))
    given = with_ids(images)
    rows = predict_all(predictor, *given, Path("p.csv"))
    next(rows)
    rows.close()  # type: ignore[attr-defined]
    assert "images that are no files" in anew(predictor, given)


def test_an_array_of_the_models_channels_is_one_image() -> None:
    stack = np.zeros((5, 6, 8), np.uint8)
    assert [len(as_list(stack, channels)) for channels in (1, 3, 8)] == [5, 5, 1]
    assert len(with_ids(stack, 8)[0]) == 1
    assert len(with_ids(stack[None].repeat(4, 0), 8)[0]) == 4
    assert [len(as_list(np.zeros((5, 6, last), np.uint8), 8)) for last in (1, 3, 4)] == [1, 1, 1]


def test_two_processes_do_not_write_one_file(predictor: Predictor, photos: Path) -> None:
    columns = columns_of(predictor.classes, False)
    with PredictionFile(Path("p.csv"), "key", columns), pytest.raises(UserError, match="is being written by another"):
        PredictionFile(Path("p.csv"), "key", columns).__enter__()


def test_the_key_is_of_the_models_bytes_and_the_options(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    keys = {key_of([tmp_path / name], options) for name in "ab" for options in ((None,), (0.5,))}
    assert len(keys) == 4


def test_below_the_threshold_the_answer_is_unsure(predictor: Predictor, photos: Path) -> None:
    found = read_predictions(FINISHED / "predictions-val.csv", predictor.classes)
    temperature = fit_temperature(found.log_probabilities, found.labels)
    plain = [row for rows in predict_all(predictor, *with_ids(photos)) for row in rows if not row["error"]]
    logits = np.log([[row[f"p_{name}"] for name in predictor.classes] for row in plain]) / temperature
    calibrated = torch.tensor(logits).softmax(1).amax(1).tolist()
    least = sorted(calibrated)[4] + 1e-4
    judged = [row for rows in predict_all(predictor, *with_ids(photos), threshold=least) for row in rows]
    judged = [row for row in judged if not row["error"]]
    assert [row["calibrated_confidence"] for row in judged] == pytest.approx(calibrated, abs=1e-4)
    assert sum(row["predicted"] == "unsure" for row in judged) == 5
    for row, before in zip(judged, plain, strict=True):
        assert row["predicted"] == ("unsure" if row["calibrated_confidence"] < least else before["predicted"])
        assert row["confidence"] == before["confidence"]


def test_a_threshold_without_validation_says_that_it_is_not_calibrated(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(FINISHED / "model", tmp_path / "alone" / "model")
    alone = load_predictor(tmp_path / "alone" / "model", "cpu")
    notes: list[Any] = []
    (row, *_), *_ = predict_all(alone, *with_ids(photos), threshold=0.5, listener=notes.append)
    assert row["calibrated_confidence"] == pytest.approx(row["confidence"], abs=1e-6)
    assert "confidences are not calibrated, since there is no" in notes[0].text
    for wrong in (0.0, 1.0, float("nan")):
        with pytest.raises(UserError, match="--threshold must lie between 0 and 1"):
            next(predict_all(alone, *with_ids(photos), threshold=wrong))
    unsure = replace(alone, card=alone.card.model_copy(update={"classes": (*alone.classes[1:], "unsure")}))
    with pytest.raises(UserError, match="the model has a class of that name"):
        next(predict_all(unsure, *with_ids(photos), threshold=0.5))


@pytest.mark.parametrize("broken", ["4b.png", "all", "the first ones"])
def test_embeddings_are_what_the_head_gets(predictor: Predictor, photos: Path, broken: str) -> None:
    for number in range(9):
        if broken == "all" or (broken != "4b.png" and number < 4):
            (photos / f"{number}.png").write_bytes(b"nothing")
    ids, images = with_ids(photos)
    rows = [row for rows in predict_all(predictor, ids, images, features=Path("f.npz")) for row in rows]
    list(predict_all(predictor, ids, images, features=Path("f.parquet")))
    stored = np.load("f.npz", allow_pickle=False)
    assert stored["ids"].tolist() == ids
    columns = pq.read_table("f.parquet").to_pydict()
    assert columns["id"] == ids or broken == "all"
    if broken == "all":
        assert stored["features"].size == 0
        return
    head = predictor.model.head.cpu()  # type: ignore[union-attr, operator]
    for row, vector, listed in zip(rows, stored["features"], columns["features"], strict=True):
        if row["error"]:
            assert np.isnan(vector).all()
            assert listed is None
            continue
        assert listed == vector.tolist()
        chances = head(torch.tensor(vector)[None]).softmax(1)[0].tolist()
        assert chances == pytest.approx([row[f"p_{name}"] for name in predictor.classes], abs=1e-5)


def test_features_must_have_a_name_that_tells_their_format(predictor: Predictor, photos: Path) -> None:
    with pytest.raises(UserError, match=r"--features 'f.csv' must end in .npz or .parquet"):
        next(predict_all(predictor, *with_ids(photos), features=Path("f.csv")))
    np.savez("mine.npz", weights=np.zeros(3))
    with pytest.raises(UserError, match="choose another --features"):
        next(predict_all(predictor, *with_ids(photos), features=Path("mine.npz")))


def test_python_takes_bytes_files_and_folders_and_survives_a_broken_one(photos: Path) -> None:
    run = convsmith.load(FINISHED, device="cpu")
    wanted = run.predict(photos)
    assert [one.id for one in wanted] == sorted(map(str, photos.iterdir()))
    assert [one.error is None for one in wanted] == [True] * 5 + [False] + [True] * 4
    assert (wanted[5].label, wanted[5].confidence, wanted[5].probabilities) == ("", 0.0, {})
    content = (photos / "0.png").read_bytes()
    with open(photos / "0.png", "rb") as file:
        found = run.predict([content, file, io.BytesIO(content), photos / "0.png", photos / "gone.png"])
    assert [one.label for one in found] == [wanted[0].label] * 4 + [""]
    assert [one.id for one in found] == ["0", "1", "2", "photos/0.png", "photos/gone.png"]
    assert "No such file" in str(found[4].error)
    assert run.predict(content)[0].probabilities == pytest.approx(found[0].probabilities, abs=1e-6)
    with open(photos / "0.png", encoding="latin-1") as text, pytest.raises(UserError, match="open for reading bytes"):
        run.predict(text)


def test_what_train_ignores_is_ignored_in_folders(photos: Path) -> None:
    before = find_images(["photos"])
    for junk in ("._0.png", ".hidden.png", ".ipynb_checkpoints/0.png", "__MACOSX/0.png", ".cache/0.png"):
        (photos / junk).parent.mkdir(exist_ok=True)
        shutil.copy(photos / "0.png", photos / junk)
    (photos / "Thumbs.db").write_bytes(b"")
    assert find_images(["photos"]) == before
    assert find_images(["photos/*"]) == before
    assert find_images(["photos/._0.png"]) == [Path("photos/._0.png")]


def test_batches_are_of_as_many_images_as_fit_into_a_cache() -> None:
    assert [evaluate.images_per_pass(side, side) for side in (8, 32, 112, 224, 448, 4000)] == [256, 256, 64, 16, 4, 1]
