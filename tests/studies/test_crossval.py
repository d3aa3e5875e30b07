"""crossval through the real command line: what it finds, what it never sees, and going on after any stop."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from convsmith.config import validate
from convsmith.data.dataset import HELD_OUT
from convsmith.data.sources import from_arrays
from convsmith.errors import UserError
from convsmith.rundir import RunDir
from convsmith.runtime import Interrupts
from convsmith.studies.study import read_spec
from convsmith.studies.variance import Training, compare_by_image
from convsmith.training import setup
from convsmith.training.loop import epochs
from convsmith.training.own import Parts
from forked import Commands
from studies.small_study import CROSSVAL, FLAGS, found, wait_for, workers_of


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def rows(study: Path) -> list[dict[str, str]]:
    with (study / "predictions-oof.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_image_of_train_and_val_is_predicted_once_and_none_of_test(reference: Path) -> None:
    folds = read(reference / "folds.json")
    assert [row["id"] for row in rows(reference)] == folds["pool"]
    assert len(folds["pool"]) == 300
    assert not set(folds["pool"]) & set(folds["test"])
    assert len(folds["test"]) > 300
    assert not list(reference.rglob("test-access.jsonl"))


def test_the_scores_are_those_of_scikit_learn_on_the_out_of_fold_predictions(reference: Path) -> None:
    result, predicted = read(reference / "crossval.json"), rows(reference)
    for fold in result["per_fold"]:
        own = [row for row in predicted if row["fold"] == str(fold["fold"])]
        truth, guess = [row["label"] for row in own], [row["predicted"] for row in own]
        assert fold["n"] == len(own) == 100
        assert fold["accuracy"] == pytest.approx(accuracy_score(truth, guess))
        assert fold["f1"] == pytest.approx(f1_score(truth, guess, average="macro", zero_division=0))
    counts = confusion_matrix([row["label"] for row in predicted], [row["predicted"] for row in predicted])
    np.testing.assert_array_equal(result["confusion_matrix"]["counts"], counts)


def test_mean_deviation_and_interval_are_those_of_the_folds(reference: Path) -> None:
    result = read(reference / "crossval.json")
    values = [fold["accuracy"] for fold in result["per_fold"]]
    right = [
        np.array([float(row["label"] == row["predicted"]) for row in rows(reference) if row["fold"] == fold])
        for fold in "123"
    ]
    expected = compare_by_image([Training(1, k, 0, np.arange(100) + 100 * k, one) for k, one in enumerate(right)])
    assert result["mean"]["accuracy"] == pytest.approx(np.mean(values))
    assert result["std"]["accuracy"] == pytest.approx(np.std(values, ddof=1))
    assert result["ci95"]["accuracy"] == pytest.approx([expected.low, expected.high])
    assert result["ci95"].keys() == result["mean"].keys()
    assert result["folds"] == 3
    assert result["repeats"] == 1
    assert (reference / "figures/confusion.png").stat().st_size > 5000


def test_a_finished_study_called_again_runs_nothing_and_says_so(reference: Path, commands: Commands) -> None:
    before = {path: path.stat().st_mtime_ns for path in reference.rglob("fold.json")}
    again = commands.run(reference.parents[1], [*CROSSVAL, "--name", "cv"])
    assert again.returncode == 0
    assert "3 of 3 were done before" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in reference.rglob("fold.json")} == before


def test_another_config_under_the_same_name_is_refused_with_the_difference(reference: Path, commands: Commands) -> None:
    other = commands.run(reference.parents[1], [*CROSSVAL, "--name", "cv", "--lr", "0.1"])
    assert other.returncode == 2
    assert "config.optim.lr was 0.002, now 0.1" in other.stderr
    assert len(other.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("file", "before", "after", "message"),
    [
        (
            "study.yaml",
            "folds: 3",
            "folds: 2",
            "study.yaml' was changed after the study had started (folds was 3, is 2)",
        ),
        (
            "config.yaml",
            "lr: 0.002",
            "lr: 0.1",
            "config.yaml' was changed after the study had started (optim.lr was 0.002",
        ),
        ("study.yaml", "kind: crossval", "kind: ablate", "study.yaml' is damaged (question: Field required)"),
    ],
)
def test_a_study_that_is_edited_afterwards_is_refused_with_the_difference(
    reference: Path, tmp_path: Path, file: str, before: str, after: str, message: str
) -> None:
    for kept in ("study.yaml", "config.yaml", "begun.json"):
        shutil.copy(reference / kept, tmp_path)
    assert read_spec(RunDir(tmp_path))["folds"] == 3
    text = (tmp_path / file).read_text(encoding="utf-8")
    assert before in text
    (tmp_path / file).write_text(text.replace(before, after, 1), encoding="utf-8")
    with pytest.raises(UserError) as refused:
        read_spec(RunDir(tmp_path))
    assert message in str(refused.value)


def test_two_at_once_give_bit_for_bit_what_one_at_a_time_gives(reference: Path, tmp_path: Path) -> None:
    fresh = [sys.executable, "-m", "convsmith.cli", *CROSSVAL]  # nothing in common with the reference but the machine
    subprocess.run([*fresh, "--name", "cv", "--jobs", "2"], cwd=tmp_path, check=True, capture_output=True)
    assert found(tmp_path / "runs/cv") == found(reference)
    for fold in "123":
        weights = f"folds/{fold}/model/model.safetensors"
        assert (tmp_path / "runs/cv" / weights).read_bytes() == (reference / weights).read_bytes()
    # The third fold was begun first and ended last, so that no worker had to wait for it.
    assert "interrupted by SIGTERM" in (tmp_path / "runs/cv/folds/3/log.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("whom", ["worker", "command"])
def test_a_study_that_is_stopped_goes_on_without_losing_anything(
    reference: Path, tmp_path: Path, commands: Commands, whom: str
) -> None:
    """Killed in the second fold and terminated in the third, a worker alone or all of it."""
    study = tmp_path / "runs/cv"
    command = commands.start(tmp_path, [*CROSSVAL, "--name", "cv"])
    done = {}
    for fold, how in [("2", signal.SIGKILL), ("3", signal.SIGTERM)]:
        wait_for(lambda fold=fold: (study / "folds" / fold / "metrics.csv").exists())
        done[fold] = [path.stat().st_mtime_ns for path in sorted(study.rglob("fold.json"))[: int(fold) - 1]]
        (worker,) = workers_of(command)
        if whom == "worker":
            os.kill(worker, how)
            continue
        command.send_signal(how)
        if how == signal.SIGKILL:
            os.kill(worker, how)
        assert command.wait().returncode == (-9 if how == signal.SIGKILL else 143)
        assert not (study / "crossval.json").exists()
        command = commands.start(tmp_path, [*CROSSVAL, "--name", "cv"])
    assert command.wait().returncode == 0
    assert found(study) == found(reference)
    for fold, before in done.items():
        after = [path.stat().st_mtime_ns for path in sorted(study.rglob("fold.json"))]
        assert after[: len(before)] == before, fold


def test_workers_end_with_the_command_that_feeds_them(tmp_path: Path, commands: Commands) -> None:
    command = commands.start(tmp_path, [*CROSSVAL, "--name", "cv"])
    wait_for(lambda: (tmp_path / "runs/cv/folds/1/metrics.csv").exists())
    (worker,) = workers_of(command)
    command.send_signal(signal.SIGKILL)
    command.wait()
    wait_for(lambda: not Path(f"/proc/{worker}").exists() or "Z" in Path(f"/proc/{worker}/stat").read_text().split()[2])


def test_the_labels_held_out_cannot_influence_the_training(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 8, 8, 1), dtype=np.uint8)
    labels = np.tile([0, 1, 2], 20)
    weights = []
    for number in (0, 1):
        shown = labels.copy()
        if number:
            shown[40:] = 2 - shown[40:]  # what the fold holds out has other labels
        source = from_arrays(images, shown.tolist(), given=["train"] * 60)
        ids = list(source.ids)
        own = Parts(source=source)
        config = validate(
            {
                "data": {"source": "arrays", "val_fraction": 0.2, "test_fraction": 0.0},
                "schedule": {"name": "plateau", "patience": 0},
                "train": {"epochs": 3, "threads": 1, "layout": "contiguous", "patience": 1},
                "track": {"wandb": "off"},
            }
        )
        splits = {"train": ids[:30], "val": ids[30:40], HELD_OUT: ids[40:]}
        started = setup.start(setup.prepare(config, own, splits=splits), tmp_path, str(number), own)
        assert list(epochs(started, Interrupts()))
        weights.append((tmp_path / str(number) / "model/model.safetensors").read_bytes())
        assert len(started.dataset.held_out()) == 20
    assert weights[0] == weights[1]


def test_resume_takes_a_study_too(reference: Path, convsmith: Any) -> None:
    done = convsmith("resume", reference)
    assert "3 of 3 were done before" in done.stdout


def test_repeats_divide_anew(in_process: Any, tmp_path: Path) -> None:
    in_process(
        "crossval",
        *FLAGS,
        "--epochs",
        "1",
        "--schedule.warmup_epochs",
        "0",
        "--folds",
        "2",
        "--repeats",
        "2",
        "--name",
        "cv",
    )
    predicted = rows(tmp_path / "runs/cv")
    assert len(predicted) == 600
    assert {(row["repeat"], row["fold"]) for row in predicted} == {("1", "1"), ("1", "2"), ("2", "1"), ("2", "2")}
    halves = [{row["id"] for row in predicted if (row["repeat"], row["fold"]) == (repeat, "1")} for repeat in "12"]
    assert halves[0] != halves[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--folds", "1"], "--folds 1: must be at least 2"),
        (["--folds", "60"], "--folds 60 exceeds the images of the smallest class"),
        (["--jobs", "0"], "--jobs 0: must be at least 1"),
        (["--backend", "rey"], "backend 'rey'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    convsmith: Any, tmp_path: Path, flags: list[str], message: str
) -> None:
    refused = convsmith("crossval", *FLAGS, *flags, "--name", "cv", code=2)
    assert message in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "runs/cv").exists()


def test_a_run_under_the_name_of_the_study_is_not_touched(convsmith: Any, tmp_path: Path) -> None:
    (tmp_path / "runs/cv").mkdir(parents=True)
    refused = convsmith("crossval", *FLAGS, "--name", "cv", code=2)
    assert "is not a study" in refused.stderr
    assert list((tmp_path / "runs/cv").iterdir()) == []
