"""What the trainings of a study found image by image: exact, paired, and refused where it cannot be had."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convsmith import records
from convsmith.config import read_run_config
from convsmith.errors import UserError
from convsmith.rundir import RunDir
from convsmith.studies.by_image import differences, differences_of_all, predicted
from convsmith.studies.crossval import fold_jobs
from convsmith.studies.fold_job import FoldJob


def opened(study: Path) -> tuple[list[FoldJob], dict[str, Any]]:
    run = RunDir(study)
    return fold_jobs(run, read_run_config(run.config)), records.read(study / "folds.json", records.Folds)


@pytest.fixture
def copy(reference: Path, tmp_path: Path) -> Path:
    shutil.copytree(reference, tmp_path / "cv")
    return tmp_path / "cv"


def test_the_images_of_each_fold_have_the_recorded_metrics_as_their_means(reference: Path) -> None:
    jobs, folds = opened(reference)
    for job, found in zip(jobs, predicted(jobs, folds), strict=True):
        for metric in records.METRICS:
            training = found.training(metric)
            assert training.values.mean() == pytest.approx(job.record()[metric], rel=1e-5, abs=1e-6)
            assert training.images.tolist() == sorted(folds["divisions"][job.index]["held-out"])
            assert training.groups is None
    ids = [row["id"] for row in rows(RunDir(Path(jobs[0].directory)).predictions("held-out"))]
    first = predicted(jobs[:1], folds)[0].training("accuracy")
    assert {folds["pool"][at] for at in first.images} == set(ids)


def test_images_belong_to_the_groups_that_the_folds_record(reference: Path) -> None:
    jobs, folds = opened(reference)
    grouped = folds | {"groups": [at // 2 for at in range(len(folds["pool"]))]}
    training = predicted(jobs[:1], grouped)[0].training("accuracy")
    assert training.groups is not None
    np.testing.assert_array_equal(training.groups, training.images // 2)


def test_only_trainings_that_both_have_done_are_paired(reference: Path) -> None:
    jobs, folds = opened(reference)
    arm, base = {0: jobs[0], 2: jobs[2]}, dict(enumerate(jobs[:2]))
    found = differences(arm, base, folds, "loss")
    assert [(one.repeat, one.fold) for one in found] == [(1, 1)]
    assert not found[0].values.any()
    assert differences_of_all({"arm": arm}, base, folds, "loss").keys() == {"arm"}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def written(path: Path, values: list[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, values[0])
        writer.writeheader()
        writer.writerows(values)


def test_a_loss_whose_probability_was_rounded_to_zero_cannot_be_had(copy: Path) -> None:
    jobs, folds = opened(copy)
    path = RunDir(Path(jobs[0].directory)).predictions("held-out")
    values = rows(path)
    for row in values:  # as a net that is sure of wrong classes
        for name in [key for key in row if key.startswith("p_")]:
            row[name] = "1.0" if name == "p_0" else "0.0"
    written(path, values)
    (found,) = predicted(jobs[:1], folds)
    with pytest.raises(
        UserError, match=r"the loss of each image cannot be had from .* choose another metric"
    ) as refused:
        found.training("loss")
    assert "\n" not in str(refused.value)
    every = dict(enumerate(jobs))
    assert isinstance(differences_of_all({"arm": every}, every, folds, "loss")["arm"], UserError)


@pytest.mark.parametrize("change", ["gone", "others"])
def test_predictions_that_are_gone_or_of_other_images_are_refused(copy: Path, change: str) -> None:
    jobs, folds = opened(copy)
    path = RunDir(Path(jobs[0].directory)).predictions("held-out")
    if change == "gone":
        path.unlink()
    else:
        written(path, rows(path)[1:])
    with pytest.raises(UserError, match=r"predictions-held-out\.csv"):
        predicted(jobs[:1], folds)
