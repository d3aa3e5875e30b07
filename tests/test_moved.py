"""Runs whose data have moved, and models without their run: what still works, and what the errors name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import convsmith
from convsmith.cli import main
from convsmith.errors import UserError
from moved import KEPT, plant_digits, run_on_files

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose data have gone elsewhere."""
    folder = tmp_path_factory.mktemp("kept")
    run_on_files(folder)
    convsmith.load(folder / "runs" / "digits").evaluate()
    (folder / "photos").rename(folder / "elsewhere")
    return folder


@pytest.fixture
def place(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the command line stands, with a copy of the run and a link to its data."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(kept / "runs", "runs")
    Path("elsewhere").symlink_to(kept / "elsewhere")
    return tmp_path


LOST = "the data of run 'runs/digits' are not at '"
NEW_PLACE = "photos' any more: name their new place with --data"


@pytest.mark.parametrize("verb", ["evaluate", "explain --figure confusion", "export --format torch"])
def test_what_needs_the_data_says_that_they_have_moved_and_takes_their_new_place(
    place: Path, kept: Path, verb: str, capsys: Captured
) -> None:
    if verb.startswith("export") and torch.__version__ < "2.9":
        pytest.skip("needs PyTorch 2.9")
    word, *more = verb.split()
    command = [word, "runs/digits", *more]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert LOST in error
    assert NEW_PLACE in error
    found = ["--split", "val"] if verb == "evaluate" else []
    assert main([*command, "--data", "elsewhere", *found]) == 0
    plant_digits(Path("others"), range(200, 230))
    if verb != "evaluate":
        capsys.readouterr()
        assert main([*command, "--data", "others"]) == 2
        assert "others does not hold the images that run 'runs/digits' was trained with" in capsys.readouterr().err


def test_a_report_has_its_images_where_they_have_moved(place: Path, capsys: Captured) -> None:
    assert main(["report", "runs/digits"]) == 0
    assert f"the page has no images: {LOST}" in capsys.readouterr().out
    without = (place / "runs/digits/report.html").stat().st_size
    assert main(["report", "runs/digits", "--data", "elsewhere"]) == 0
    assert (place / "runs/digits/report.html").stat().st_size > without
    assert convsmith.load("runs/digits").report(show=False, data="elsewhere").exists()
    with pytest.raises(UserError, match=r"are not at .* stays as it is"):
        convsmith.load("runs/digits").report(show=False)


def test_a_report_shows_the_scores_on_other_data(place: Path) -> None:
    plant_digits(Path("june"), range(200, 230))
    record = convsmith.load("runs/digits").evaluate(data="june", show=False)
    assert main(["report", "runs/digits"]) == 0
    page = (place / "runs/digits/report.html").read_text(encoding="utf-8")
    assert f'<th scope="row">{place / "june"}</th><td>30</td><td>{record["accuracy"]:.2%}</td>' in page


def test_resume_says_where_to_name_the_new_place(place: Path, kept: Path, capsys: Captured) -> None:
    Path("runs/digits/summary.json").unlink()
    assert main(["resume", "runs/digits"]) == 2
    assert (
        "put them back, or name their new place as data.source in 'runs/digits/config.yaml'" in capsys.readouterr().err
    )


def test_a_page_of_explain_names_the_command_with_the_new_place(place: Path) -> None:
    assert main(["explain", "runs/digits", "--figure", "confusion", "--data", "elsewhere"]) == 0
    page = (place / "runs/digits/explain/confusion.html").read_text(encoding="utf-8")
    assert "convsmith explain runs/digits --figure confusion --data elsewhere" in page


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The two files of a model, on a machine that has nothing else, and an image."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(KEPT / "model", "digits-model")
    plant_digits(Path("images"), range(200, 206))
    return Path("digits-model")


def test_a_model_without_its_run_predicts_and_explains(alone: Path, capsys: Captured) -> None:
    image = str(next(Path("images").rglob("*.png")))
    assert main(["predict", str(alone), image, "--device", "cpu"]) == 0
    expected = convsmith.load(KEPT, device="cpu").predict(image)[0]
    assert convsmith.load(alone, device="cpu").predict(image)[0].probabilities == expected.probabilities
    assert main(["explain", str(alone), image, "--device", "cpu"]) == 0
    assert (alone / "explain" / "index.html").exists()
    assert main(["explain", str(alone), "--figure", "kernels"]) == 0
    capsys.readouterr()
    assert main(["explain", str(alone)]) == 2
    assert "'digits-model' is a model without its run, which knows the data: give images" in capsys.readouterr().err
    model = convsmith.load(alone)
    for ask in (
        lambda: model.evaluate(),
        lambda: model.evaluate(data="images", show=False),
        lambda: model.summary,
        lambda: model.best_epoch,
        lambda: model.metrics,
        lambda: model.report(show=False),
    ):
        with pytest.raises(UserError, match="'digits-model' is a model without its run"):
            ask()


def test_the_model_folder_of_a_run_stands_for_the_run(place: Path) -> None:
    convsmith.load("runs/digits/model").explain(figure="kernels", show=False)
    assert (place / "runs/digits/explain/kernels.png").exists()
    assert {file.name for file in Path("runs/digits/model").iterdir()} == {"model.json", "model.safetensors"}


@pytest.mark.skipif(torch.__version__ < "2.9", reason="needs PyTorch 2.9")
def test_a_model_without_its_run_is_exported_after_a_comparison_that_it_names(alone: Path, capsys: Captured) -> None:
    assert main(["export", str(alone), "--format", "torch"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "checked 64 images of random pixels (give real ones with --images): the logits" in said
    assert (alone / "export" / "model.pt2").exists()
    assert main(["export", str(alone), "--format", "torch", "--images", "images"]) == 0
    assert "checked 6 images given: the logits" in capsys.readouterr().out
    Path("images/broken.png").write_bytes(b"no image")
    assert main(["export", str(alone), "--format", "torch", "--images", "images"]) == 2
    assert "cannot read image 'images/broken.png'" in capsys.readouterr().err


def test_a_model_without_its_run_is_served_without_training_images(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = pytest.importorskip("convsmith.serve.server", reason="needs pip install 'convsmith[serve]'")
    events: list[object] = []
    monkeypatch.setattr(server._Server, "run", lambda *_, **__: None)
    convsmith.load(alone, device="cpu").serve(port=0, show=events.append)
    said = "\n".join(map(str, events))
    assert "no nearest training images: 'digits-model' is a model without its run" in said
    assert "http://127.0.0.1" in said


def test_a_study_and_an_empty_folder_are_told_as_before(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a study"):
        convsmith.load(KEPT.parent / "crossval")
    with pytest.raises(UserError, match="is not a run directory"):
        convsmith.load(tmp_path)
