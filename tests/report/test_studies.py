"""Pages of ablations and tunings, of kept studies: what they say, and what they do where something is gone."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import convsmith
from convsmith.cli import main
from convsmith.report import effects
from convsmith.report.effects import Paired, Seen, Sides
from convsmith.report.intervals import Row, histogram, interval_chart
from convsmith.rundir import RunDir
from convsmith.studies.comparison import read_plan
from convsmith.studies.variance import Training
from report.checked import Checked

KEPT = Path(__file__).parents[1] / "first_edition"


@pytest.fixture
def studies(tmp_path, monkeypatch):
    for name in ("ablation", "tuning"):
        shutil.copytree(KEPT / name, tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def page_of(study):
    text = (study / "report.html").read_text(encoding="utf-8")
    page = Checked(text)
    assert not re.search(r"https?:", text)
    assert "Traceback" not in text
    charts = re.findall(r"<svg class=\"chart\"[^>]*>", text)
    assert charts
    assert all('role="img"><title>' in text[text.index(chart) :][:200] for chart in charts)
    assert ("img", "alt", "") not in page.attributes
    return re.sub(r"\s+", " ", text)


def test_the_page_of_an_ablation_has_its_numbers_images_and_limits(studies, capsys):
    assert main(["report", "runs/ablation"]) == 0
    out = capsys.readouterr().out
    assert "written: runs/ablation/report.html" in out
    assert "next: convsmith train runs/ablation/arms/base/config.yaml" in out
    text = page_of(studies / "ablation")
    record = json.loads((studies / "ablation/ablation.json").read_text(encoding="utf-8"))
    (arm,) = record["arms"]
    assert record["question"] in text
    assert f"{100 * arm['difference']:+.2f} {arm['verdict']}" in re.sub("  +", " ", text)
    assert f"{100 * arm['ci95'][0]:+.2f} to {100 * arm['ci95'][1]:+.2f}" in text
    assert text.count('<circle class="draw"') >= len(arm["per_fold"])
    assert "images are right more often than under the base" in text
    assert "data:image/png;base64" in text
    for said in (
        "corrected resampled t-test",
        "The test split: its",
        "Other metrics: only accuracy",
        "Seeds: each fold",
    ):
        assert said in text


def test_an_interrupted_study_has_a_page_of_what_is_known_and_no_verdict(studies, capsys):
    (studies / "ablation/ablation.json").unlink()
    shutil.rmtree(studies / "ablation/arms/wider/2")
    assert main(["report", "runs/ablation"]) == 0
    assert "next: convsmith resume runs/ablation" in capsys.readouterr().out
    text = page_of(studies / "ablation")
    assert "5 of 6 trainings are done" in text
    assert "not finished" in text
    assert "no difference shown" not in text
    assert not (studies / "ablation/ablation.json").exists()
    for run in (studies / "ablation/arms").glob("*/*/fold.json"):
        run.unlink()
    (studies / "ablation/report.html").unlink()
    assert main(["report", "runs/ablation"]) == 2
    assert "no training of the base of 'runs/ablation' is done yet: convsmith resume" in capsys.readouterr().err


def test_data_that_are_gone_and_files_that_are_damaged_are_said(studies, capsys):
    arms = studies / "ablation/arms.json"
    arms.write_text(arms.read_text(encoding="utf-8").replace('"source": "digits"', '"source": "/gone"'))
    (studies / "ablation/arms/wider/1/predictions-held-out.csv").unlink()
    (studies / "ablation/arms/wider/1/metrics.csv").unlink()
    assert main(["report", "runs/ablation"]) == 0
    assert "the page has no images: the data of run 'runs/ablation' are not at '/gone'" in capsys.readouterr().out
    text = page_of(studies / "ablation")
    assert "<strong>No images:</strong>" in text
    assert "<strong>No details of images and classes:</strong>" in text
    assert "1 training has no metrics.csv any more" in text
    record = json.loads((studies / "ablation/ablation.json").read_text(encoding="utf-8"))
    record["arms"][0]["name"] = "other"
    (studies / "ablation/ablation.json").write_text(json.dumps(record))
    assert main(["report", "runs/ablation"]) == 2
    assert "ablation.json' is damaged (it has other arms than arms.json)" in capsys.readouterr().err
    del record["arms"][0]["per_fold"]
    (studies / "ablation/ablation.json").write_text(json.dumps(record))
    assert main(["report", "runs/ablation"]) == 2
    assert "ablation.json' is damaged (arms.0.per_fold: Field required)" in capsys.readouterr().err


def test_the_page_of_a_tuning_has_its_trials_and_the_caveat(studies, capsys):
    assert convsmith.report("runs/tuning", show=False) == Path("runs/tuning/report.html")
    text = page_of(studies / "tuning")
    assert "76.67%" in text
    assert "optim.lr" in text
    assert "0.01178" in text
    assert "That value is too good." in text
    assert "2 of 2 trials" in text
    shutil.rmtree(studies / "tuning/trials/0")
    study = studies / "tuning/study.yaml"
    study.write_text(study.read_text(encoding="utf-8").replace("trials: 2", "trials: 9"))
    assert main(["report", "runs/tuning"]) == 0
    text = page_of(studies / "tuning")
    assert "2 of 9 trials have ended" in text
    assert "1 of the best trials has no metrics.csv any more" in text
    (studies / "tuning/study.db").unlink()
    assert main(["report", "runs/tuning"]) == 2
    assert "study.db' is missing" in capsys.readouterr().err


def test_images_change_sides_by_the_share_of_their_trainings():
    counts = [np.array(values) for values in ([3, 1, 1, 2, 0], [2, 2, 2, 0, 0], [0, 2, 1, 2, 0])]
    trainings = np.array([3, 2, 2, 2, 0])
    sides = Sides(counts[0], trainings, counts[1], counts[2], counts[0], counts[0])
    assert sides.shift.tolist() == pytest.approx([-2 / 3, 0, -0.5, 1, 0])
    assert sides.changed(better=True).tolist() == [3]
    assert sides.changed(better=False).tolist() == [0, 2]


def test_the_sides_and_classes_of_a_study_are_those_of_its_predictions(studies):
    plan = read_plan(RunDir(studies / "ablation"))
    paired = Paired.of(plan, "wider", effects.seen(plan, "base"))
    trainings = paired.differences("accuracy")
    means = effects.by_image(trainings)
    shift = paired.sides.shift[paired.sides.trainings > 0]
    assert means == pytest.approx(shift)
    record = json.loads((studies / "ablation/ablation.json").read_text(encoding="utf-8"))
    assert np.mean([one.values.mean() for one in trainings]) == pytest.approx(record["arms"][0]["difference"])
    found = effects.class_effects(paired)
    assert sum(one.images for one in found) == record["n_images"]
    assert [one.difference for one in found] == sorted((one.difference for one in found), reverse=True)
    assert any(one.interval for one in found)
    for one in found:
        low, high = one.interval or (-1, 1)
        assert -1 <= low <= one.difference <= high <= 1
        assert (one.kind == "unclear") == (low <= 0 <= high)


def test_a_class_whose_images_do_not_differ_has_no_interval():
    """Two images that are right under both nets say little of those of their class that were not drawn."""

    def found(images, answers):
        labels = np.array([0, 1, 1, 1])
        right = Training(1, images[0], 0, np.array(images), np.array(answers == labels, dtype=float))
        return Seen({"accuracy": right}, labels, np.array(answers))

    pairs = [
        (found([0, 1, 2, 3], np.array([0, 1, 1, 0])), found([0, 1, 2, 3], np.array([0, 1, 0, 1]))),
        (found([4, 5, 6, 7], np.array([0, 1, 1, 1])), found([4, 5, 6, 7], np.array([0, 0, 1, 1]))),
    ]
    gaining, same = effects.class_effects(Paired("abcdefgh", ["cat", "dog"], pairs))
    assert (same.name, same.images, same.difference, same.interval, same.kind) == ("cat", 2, 0.0, None, "unclear")
    assert (gaining.name, gaining.images, gaining.difference) == ("dog", 6, pytest.approx(1 / 6))
    assert gaining.interval[0] < 0 < gaining.interval[1]


def test_the_mean_of_an_image_is_over_the_trainings_that_held_it_out():
    first = Training(1, 1, 0, np.array([0, 2]), np.array([1.0, -1.0]))
    second = Training(2, 1, 1, np.array([2, 3]), np.array([0.0, 1.0]))
    assert effects.by_image([first, second]).tolist() == [1.0, -0.5, 1.0]


def test_charts_of_intervals_escape_names_and_have_words_for_all_that_they_draw():
    rows = [Row("<b>&", "+1.0 helps", 1.0, (0.5, 1.5), "helps", [0.5, 1.5]), Row("none", "", None)]
    chart = interval_chart("title", "points", rows, margin=0.2)
    Checked(chart)
    assert "<b>" not in chart
    assert "&lt;b&gt;&amp;: +1.0 helps" in chart
    assert chart.count('class="draw"') == 2
    assert chart.count('class="marker') == 1
    bars = histogram("title", "label", "words", [-1.0, 0.0, 1.0], [3, 5], higher_is_better=False)
    Checked(bars)
    assert "-1 to 0: 3 images" in bars
    assert bars.index('class="bar helps"') < bars.index('class="bar hurts"'), "a lower loss is better"


def test_a_metric_without_an_interval_is_said_on_the_page_of_a_cross_validation(tmp_path, monkeypatch, capsys):
    """Of a probability that was rounded to 0 the loss cannot be had; the other metrics keep their intervals."""
    study = tmp_path / "runs/crossval"
    shutil.copytree(KEPT / "crossval", study)
    monkeypatch.chdir(tmp_path)
    assert main(["report", "runs/crossval"]) == 0
    assert "Nadeau and Bengio" in page_of(study)
    with (study / "study.yaml").open("a", encoding="utf-8") as file:
        file.write("test: images\n")
    started = json.loads((study / "begun.json").read_text(encoding="utf-8"))
    started["study"]["test"] = "images"
    (study / "begun.json").write_text(json.dumps(started), encoding="utf-8")
    predictions = study / "folds/1/predictions-held-out.csv"
    rows = [line.split(",") for line in predictions.read_text(encoding="utf-8").splitlines()]
    own, other = rows[0].index(f"p_{rows[1][1]}"), rows[0].index(f"p_{rows[1][2]}")
    assert own != other
    rows[1][other] = str(float(rows[1][other]) + float(rows[1][own]))
    rows[1][own] = "0.0"
    predictions.write_text("".join(f"{','.join(row)}\n" for row in rows), encoding="utf-8")
    assert main(["resume", "runs/crossval"]) == 0
    assert "no interval: loss: the loss of each image cannot be had from" in capsys.readouterr().out
    record = json.loads((study / "crossval.json").read_text(encoding="utf-8"))
    assert {"accuracy", "f1"} <= record["ci95"].keys() == record["std"].keys() < record["mean"].keys()
    assert main(["report", "runs/crossval"]) == 0
    text = page_of(study)
    assert "<strong>No interval:</strong> loss (the loss of each image cannot be had from" in text
    assert "nets that are trained anew" in text
    assert "Nadeau" not in text
