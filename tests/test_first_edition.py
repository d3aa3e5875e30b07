"""Runs and studies of the first edition evaluate, predict, report, explain, compare and resume for ever."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from convsmith import load, rundir
from convsmith.cli import main
from convsmith.config import compose, read_config, read_run_config, validate_asked
from convsmith.errors import UserError
from convsmith.rundir import RunDir
from convsmith.studies.study import existing

KEPT = Path(__file__).parent / "first_edition"


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that a test may change; the command line stands beside it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(KEPT, tmp_path / "runs")
    return tmp_path / "runs"


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("verb", ["evaluate", "predict", "summary", "explain", "export", "serve"])
def test_a_study_is_told_from_a_run(runs: Path, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    image = "runs/a.png"
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(image)
    more = {"predict": [image], "export": ["--format", "onnx"]}.get(verb, [])
    assert main([verb, "runs/crossval", *more]) == 2
    message = "'runs/crossval' is a study: name one of its runs, such as runs/crossval/folds/1"
    assert message in capsys.readouterr().err
    with pytest.raises(UserError, match="is a study"):
        load(runs / "crossval")


def test_a_cross_validation_is_not_compared_with_a_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "runs/crossval", "runs/finished"]) == 2
    assert "'runs/finished' is no cross-validation, others are: compare cross-validations" in capsys.readouterr().err


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_finished_run_evaluates_to_what_it_recorded(runs: Path, split: str) -> None:
    before = read(runs / f"finished/evaluation-{split}.json")
    assert main(["evaluate", "runs/finished", "--split", split, "--device", "cpu"]) == 0
    after = read(runs / f"finished/evaluation-{split}.json")
    assert after["confusion_matrix"] == before["confusion_matrix"]
    assert after["accuracy"] == before["accuracy"]
    assert after["loss"] == pytest.approx(before["loss"], rel=1e-4)
    openings = (runs / "finished/test-access.jsonl").read_text().splitlines()
    assert len(openings) == (2 if split == "test" else 1)


def test_a_finished_run_predicts_what_it_recorded(runs: Path) -> None:
    with (runs / "finished/predictions-test.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[:20]
    digits = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
    files = []
    for row in rows:
        files.append(runs / f"{row['id'].replace('/', '-')}.png")
        Image.fromarray(digits[int(row["id"].rpartition("/")[2])]).save(files[-1])
    predictions = load(runs / "finished").predict(files)
    for prediction, row in zip(predictions, rows, strict=True):
        assert prediction.label == row["predicted"]
        assert prediction.confidence == pytest.approx(float(row["confidence"]), abs=1e-5)


def test_a_finished_run_reports_explains_and_exports(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "runs/finished"]) == 0
    page = (runs / "finished/report.html").read_text(encoding="utf-8")
    accuracy = read(runs / "finished/summary.json")["val"]["accuracy"]
    assert f"{100 * accuracy:.1f}" in page
    assert main(["explain", "runs/finished", "--device", "cpu"]) == 0
    assert main(["explain", "runs/finished", "--figure", "kernels", "--device", "cpu"]) == 0
    assert main(["resume", "runs/finished"]) == 0
    assert "nothing to resume" in capsys.readouterr().out
    assert len(load(runs / "finished").curves().axes) > 0


def test_a_config_of_the_first_edition_trains_again_to_the_same_split(runs: Path) -> None:
    assert main(["train", "runs/finished/config.yaml", "--name", "again"]) == 0
    then, now = (read(runs / name / "splits.json")["splits"] for name in ("finished", "again"))
    assert now == then


def test_a_config_of_the_first_edition_divides_by_its_own_seed(tmp_path: Path) -> None:
    """Then one seed did both; a config that a person writes today has data.split_seed 0 whatever its seed."""
    text = (KEPT / "finished/config.yaml").read_text(encoding="utf-8").replace("seed: 0", "seed: 7")
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    assert read_config(tmp_path / "config.yaml")["data"]["split_seed"] == 7
    (tmp_path / "mine.yaml").write_text("train: {seed: 7}", encoding="utf-8")
    assert compose(None, tmp_path / "mine.yaml", {}).data.split_seed == 0


def test_a_stopped_run_goes_on_to_its_end(runs: Path) -> None:
    splits = read(runs / "stopped/splits.json")["splits"]
    rows = (runs / "stopped/metrics.csv").read_text().splitlines()
    assert main(["resume", "runs/stopped"]) == 0
    assert read(runs / "stopped/summary.json")["epochs"] == 40
    after = (runs / "stopped/metrics.csv").read_text().splitlines()
    assert len(after) == 41
    assert [line.split(",")[:5] for line in after[1 : len(rows)]] == [line.split(",")[:5] for line in rows[1:]]
    assert read(runs / "stopped/splits.json")["splits"] == splits
    assert main(["compare", "runs/finished", "runs/stopped"]) == 0


def test_a_cross_validation_reports_and_is_known_as_finished(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = read(runs / "crossval/crossval.json")
    assert main(["report", "runs/crossval"]) == 0
    assert main(["resume", "runs/crossval"]) == 0
    assert "3 of 3" in capsys.readouterr().out
    after = read(runs / "crossval/crossval.json")
    for key in ("per_fold", "mean", "std"):
        assert after[key] == before[key]


def test_a_stopped_cross_validation_goes_on(runs: Path, convsmith: Any) -> None:
    done = [read(runs / f"crossval-stopped/folds/{fold}/fold.json") for fold in (1, 2)]
    convsmith("resume", "runs/crossval-stopped")
    record = read(runs / "crossval-stopped/crossval.json")
    assert [fold["accuracy"] for fold in record["per_fold"][:2]] == [fold["accuracy"] for fold in done]
    assert len(record["per_fold"]) == 3


def test_the_command_of_a_study_of_before_finds_it_although_there_are_newer_keys(runs: Path) -> None:
    run = RunDir(runs / "crossval-stopped")
    spec = dict(rundir.read_study(run))
    now = validate_asked(spec["config"]).model_dump(mode="json")
    assert now["train"]["precision"] == "auto", "what a command asks for today"
    assert read_run_config(run.config).train.precision == "float32", "what its folds were computed in, and will be"
    found = existing(run.path.parent, run.name, spec | {"config": now})
    assert found is not None
    assert found.path == run.path


def test_an_ablation_and_a_tuning_say_what_they_said(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = read(runs / "ablation/ablation.json")
    assert main(["resume", "runs/ablation"]) == 0
    assert "it goes on with that version's test, over folds" in capsys.readouterr().out
    after = read(runs / "ablation/ablation.json")
    for arm, then in zip(after["arms"], before["arms"], strict=True):
        for key in ("name", "mean", "difference", "ci95", "p", "verdict"):
            assert arm[key] == then[key]
    pytest.importorskip("optuna")
    best = (runs / "tuning/best.yaml").read_text(encoding="utf-8")
    assert main(["resume", "runs/tuning"]) == 0
    assert "lr:" in best
    assert (runs / "tuning/trials.csv").read_text(encoding="utf-8").count("\n") == 3
    capsys.readouterr()


def test_files_of_the_first_edition_have_no_version_and_a_newer_one_is_refused(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "format_version" not in read(runs / "finished/summary.json")
    card = read(runs / "finished/model/model.json")
    (runs / "finished/model/model.json").write_text(json.dumps(card | {"format_version": 99}), encoding="utf-8")
    assert main(["predict", "runs/finished", str(KEPT / "README.md")]) == 2
    line = capsys.readouterr().err
    assert "format_version 99" in line
    assert "pip install --upgrade convsmith" in line
    assert RunDir(runs / "finished").name == "finished"
