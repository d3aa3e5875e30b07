"""What the trainings of a study found image by image: exact, paired, and refused where it cannot be had."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convsmith import records
from convsmith.config import read_run_config
from convsmith.errors import UserError
from convsmith.prediction.influence import BY_IMAGE
from convsmith.rundir import RunDir
from convsmith.studies.by_image import differences, differences_of_all, predicted
from convsmith.studies.crossval import fold_jobs
from convsmith.studies.crossvals_compared import are_crossvals, compare_crossvals, verdict
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


def test_cross_validations_on_the_same_folds_are_compared_in_every_metric(reference: Path, copy: Path) -> None:
    jobs, _ = opened(copy)
    path = RunDir(Path(jobs[0].directory)).predictions("held-out")
    values = rows(path)
    wrong = [row for row in values if row["label"] != row["predicted"]]
    for row in wrong[:20]:  # as a better net would have done
        old, new = f"p_{row['predicted']}", f"p_{row['label']}"
        row[old], row[new] = row[new], row[old]
    written(path, values)
    record = records.read(Path(jobs[0].directory) / "fold.json", records.Fold)
    (better,) = predicted(jobs[:1], opened(copy)[1])
    scores = {name: float(BY_IMAGE[name](better.outcomes).mean()) for name in records.METRICS}
    records.write(Path(jobs[0].directory) / "fold.json", records.Fold, record | scores)
    runs = [reference, copy.rename(copy.with_name("better"))]
    assert are_crossvals(runs)
    found = compare_crossvals(runs)
    of_accuracy = found.results["better"]["accuracy"]
    assert of_accuracy.mean_difference == pytest.approx(min(20, len(wrong)) / 300)
    assert verdict("loss", found.results["better"]["loss"]) in ("better", "no difference shown")
    assert [row["metric"] for row in found.table()] == [metric.label for metric in records.METRICS.values()]
    assert found.settings == []
    row = wrong[20]  # its class becomes impossible, of which there is no logarithm
    own, other = f"p_{row['label']}", f"p_{row['predicted']}"
    row[own], row[other] = "0.0", str(float(row[own]) + float(row[other]))
    written(RunDir(runs[1] / "folds/1").predictions("held-out"), values)
    found = compare_crossvals(runs)
    assert "the loss of each image cannot be had from" in found.refused["better"]["loss"]
    assert "recall" in found.results["better"]
    shutil.rmtree(runs[1] / "folds/1")
    found = compare_crossvals(runs)
    assert found.results["better"]["accuracy"].n == 2
    ours, theirs = found.means["better"]["accuracy"]
    assert ours == theirs  # over the folds that both have done
    assert found.results["better"]["accuracy"].mean_difference == 0
    shutil.rmtree(runs[1] / "folds/2")
    with pytest.raises(UserError, match="fewer than two finished folds in common"):
        compare_crossvals(runs)


def test_groups_that_an_older_version_did_not_record_are_not_left_out_of_account(reference: Path, copy: Path) -> None:
    for study in (first := copy, second := copy.with_name("second")):
        if study == second:
            shutil.copytree(first, second)
        config = study / "config.yaml"
        config.write_text(re.sub("groups: null", "groups: groups.csv", config.read_text(encoding="utf-8")))
    with pytest.raises(UserError, match=r"did not record data\.groups"):
        compare_crossvals([first, second])


def test_cross_validations_that_cannot_be_compared_are_refused(reference: Path, copy: Path) -> None:
    folds = records.read(copy / "folds.json", records.Folds)
    records.write(copy / "folds.json", records.Folds, folds | {"hash": "of other images"})
    for call, message in [
        (lambda: compare_crossvals([reference, copy]), "have different folds, so that their images cannot be paired"),
        (lambda: compare_crossvals([reference]), "at least two cross-validations"),
        (lambda: compare_crossvals([reference, reference]), "given twice"),
        (lambda: compare_crossvals([reference, copy], copy / "page.html"), "without a page"),
        (lambda: are_crossvals([reference, reference / "folds/1"]), "compare cross-validations, or single runs"),
    ]:
        with pytest.raises(UserError, match=message):
            call()
    assert not are_crossvals([reference / "folds/1", copy / "folds/1"])
