"""report.html and the page of compare, from real runs: whole, self-contained, escaped, open about what is missing."""

import csv
import html
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import convsmith
from convsmith.cli import main
from convsmith.events import Doing
from convsmith.prediction.evaluation import Predictions, read_predictions
from convsmith.prediction.metrics import wilson_interval
from convsmith.report import images
from convsmith.report import run as report_run
from convsmith.report.analysis import class_scores, confused_order, likely_label_errors, scaling
from convsmith.report.charts import Axes, Line, Mark, line_chart
from convsmith.report.inputs import read_inputs
from convsmith.rundir import RunDir
from report.checked import Checked

KEPT_STUDY = Path(__file__).parents[1] / "first_edition" / "ablation" / "study.yaml"
EVIL = "<script>alert(1)</script>&\"'"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with runs/one (by the command line), runs/two and runs/evil (from Python)."""
    folder = tmp_path_factory.mktemp("räume")
    line = "train --name one --epochs 2 --train.threads 1 --track.wandb off --data.limit 600"
    command = [sys.executable, "-m", "convsmith.cli", *line.split()]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "report  runs/one/report.html" in done.stdout
    quick = {"runs_dir": folder / "runs", "track": {"wandb": "off"}, "train": {"threads": 1}}
    convsmith.train("digits", "simple-cnn", epochs=1, name="two", lr=0.01, **quick)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (90, 12, 12, 3), dtype=np.uint8)
    names = np.array([EVIL, "größe", "日本"])[np.arange(90) % 3]
    convsmith.train((images, names), "simple-cnn", epochs=1, name="evil", **quick)
    return folder


@pytest.fixture
def inside(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


def text_of(path):
    return Path(path).read_text(encoding="utf-8")


def shown(text):
    return json.loads(re.search(r'<script type="application/json" id="shown">(.*?)</script>', text, re.S)[1])


@pytest.mark.parametrize("run", ["one", "two", "evil"])
def test_a_training_ends_with_a_page_that_is_whole_and_asks_for_nothing(inside, run):
    text = text_of(f"runs/{run}/report.html")
    page = Checked(text)
    assert len(text) < 2_000_000
    assert not re.search(r"https?:|//[a-z]", re.sub(r"data:image/[a-z]+;base64,[\w+/=]+", "", text))
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), f"{tag} has a handler"
        assert name != "style", f"{tag} has a style of its own, which the policy forbids"
        if name in ("src", "href"):
            assert value.startswith(("data:", "#")), value
    policy = next(value for tag, name, value in page.attributes if name == "content" and "default-src" in value)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert next(tag for tag in page.seen if re.fullmatch("h[1-6]", tag)) == "h1"
    assert page.seen.count("h1") == 1
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = [value[1:] for _, name, value in page.attributes if name == "href" and value.startswith("#")]
    assert set(targets) <= set(ids)
    assert all(value for tag, name, value in page.attributes if (tag, name) == ("img", "alt"))


def test_names_are_escaped_and_shown_as_they_are(inside):
    text = text_of("runs/evil/report.html")
    assert "<script>alert(1)" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "größe" in text
    assert "日本" in text
    assert text.count("<script") == 2, "the images' data and our own script"


def test_the_numbers_are_those_of_the_evaluation(inside):
    text, record = text_of("runs/one/report.html"), json.loads(text_of("runs/one/evaluation-val.json"))
    low, high = wilson_interval(round(record["accuracy"] * record["n"]), record["n"])
    assert f"{100 * record['accuracy']:.2f}%" in text
    assert f"{100 * low:.2f} to {100 * high:.2f}%" in text
    assert "its 359 images have never been used" in text
    counts = dict.fromkeys(shown(text)["cells"], 0)
    for row, line in enumerate(record["confusion_matrix"]["counts"]):
        for column, count in enumerate(line):
            if count:
                counts.pop(f"{row}-{column}")
                assert re.search(rf'data-cell="{row}-{column}"[^>]*><span class="count">{count}<', text)
    assert counts == {}, "cells that nothing fell into"


def test_each_cell_opens_images_of_its_own(inside):
    inputs, cells = read_inputs(Path("runs/one")), shown(text_of("runs/one/report.html"))
    for key, shots in cells["cells"].items():
        row, column = map(int, key.split("-"))
        for shot in shots:
            at = int(shot["image"])
            assert (inputs.predictions.labels[at], inputs.predictions.predicted[at]) == (row, column)
            assert cells["images"][shot["image"]].startswith("data:image/png;base64,")


def test_the_test_split_is_not_opened_and_is_shown_where_evaluate_opened_it(inside, capsys):
    shutil.copytree("runs/one", "runs/opened")
    assert main(["report", "runs/opened"]) == 0
    assert not Path("runs/opened/test-access.jsonl").exists()
    assert main(["evaluate", "runs/opened", "--split", "test"]) == 0
    capsys.readouterr()
    assert main(["report", "runs/opened"]) == 0
    out, text = capsys.readouterr().out, text_of("runs/opened/report.html")
    assert "written: runs/opened/report.html" in out
    assert "The test split has been opened once:" in text
    assert f"{100 * json.loads(text_of('runs/opened/evaluation-test.json'))['accuracy']:.2f}%" in text
    assert len(text_of("runs/opened/test-access.jsonl").splitlines()) == 1


def test_a_full_page_is_not_replaced_by_one_without_images(inside, capsys):
    before = text_of("runs/evil/report.html")
    assert main(["report", "runs/evil"]) == 2, "the arrays are gone with the process that had them"
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "pass them in again" in error
    assert "'runs/evil/report.html' stays as it is" in error
    assert text_of("runs/evil/report.html") == before


def test_without_its_data_and_an_older_page_the_report_has_no_images_and_says_why(inside, capsys):
    shutil.rmtree("runs/bare", ignore_errors=True)
    shutil.copytree("runs/evil", "runs/bare")
    Path("runs/bare/report.html").unlink()
    assert main(["report", "runs/bare"]) == 0
    text, out = text_of("runs/bare/report.html"), capsys.readouterr().out
    Checked(text)
    assert "pass them in again" in text
    assert "has no images" in out
    assert "pass them in again" in out
    assert shown(text)["images"] == {}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("report runs/nothing", "run 'runs/nothing' does not exist. Runs in 'runs': "),
        ("report runs/unfinished", "has no summary.json yet: convsmith resume runs/unfinished writes it"),
        ("report runs/study", "arms.json' is missing: restore it, or run again"),
        ("compare runs/one runs/study", "is a study: name one of its runs"),
        ("report runs/ranges", "is a learning-rate range test"),
        ("compare runs/one", "compare needs at least two runs"),
        ("compare runs/one runs/one", "run 'runs/one' is given twice"),
        ("compare runs/one runs/two --out runs", "--out 'runs' is a folder"),
    ],
)
def test_mistakes_are_one_line(inside, capsys, command, message):
    for name in ("unfinished", "study", "ranges"):
        Path("runs", name).mkdir(exist_ok=True)
        shutil.copy("runs/one/config.yaml", f"runs/{name}/config.yaml")
    Path("runs/unfinished/log.txt").touch()
    Path("runs/ranges/lr_find.csv").touch()
    shutil.copy(KEPT_STUDY, "runs/study/study.yaml")
    assert main(command.split()) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def damaged(file, text):
    """The text of a run's file after an edit: a JSON file by (keys, value), another by (what, by what)."""
    what, by = text
    if file.endswith(".json"):
        whole = inner = json.loads(text_of(f"runs/one/{file}"))
        *outer, last = what
        for key in outer:
            inner = inner[key]
        inner.update({last: by}) if by is not None else inner.pop(last)
        return json.dumps(whole)
    before = text_of(f"runs/one/{file}")
    after = re.sub(what, by, before, count=1, flags=re.M)
    assert after != before
    return after


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        ("summary.json", (["best_epoch"], "two"), "best_epoch: Input should be a valid integer"),
        ("summary.json", (["parameters"], None), "parameters: Field required"),
        ("splits.json", (["splits", "train"], []), "splits.train: List should have at least 1 item"),
        (
            "splits.json",
            (["splits", "val"], ["nobody.png"]),
            "the val split contains 'nobody.png', which is not in the data",
        ),
        ("evaluation-val.json", (["accuracy"], 1.5), "accuracy: Input should be less than or equal to 1"),
        ("evaluation-val.json", (["f1", "macro"], None), "f1.macro: Field required"),
        (
            "evaluation-val.json",
            (["n"], 7),
            "and 'evaluation-val.json' 7: make both again with convsmith evaluate runs/cut",
        ),
        ("environment.json", (["versions"], 3), "versions: Input should be a valid dictionary"),
        ("model/model.json", (["classes"], 3), "is not as it was written with the weights beside it"),
        ("metrics.csv", ("val_loss", "loss"), "it has no column val_loss"),
        ("metrics.csv", (r"^1,[^,]*", "1,many"), "it is not a table of numbers"),
        ("metrics.csv", (r"^1,[^,]*", "1,nan"), "row 1, train_loss: Input should be a finite number"),
        ("metrics.csv", (r"^1,[^,]*", "1,"), "row 1, train_loss: Input should be a valid number"),
        ("metrics.csv", (r"(?s)^1,.*", ""), "it has no complete row"),
        ("predictions-val.csv", ("p_3", "p_x"), "it has no column p_3"),
        ("predictions-val.csv", (r"^([^,]+),\d,", r"\1,eleven,"), "row 1: there is no class 'eleven'"),
        ("predictions-val.csv", (r",[0-9.]+$", ",0"), "row 1: its probabilities do not sum to 1"),
        ("predictions-val.csv", (r"(^[^,]+,\d,.*\n)", r"\1\1"), "is in it more than once"),
        (
            "predictions-val.csv",
            (r"^([^,]+)(,\d,)", r"nobody.png\2"),
            "name 'nobody.png', which is not among the images",
        ),
        ("test-access.jsonl", None, "command: Field required"),
    ],
)
def test_damaged_and_edited_files_are_one_line(inside, capsys, file, edit, message):
    shutil.rmtree("runs/cut", ignore_errors=True)
    shutil.copytree("runs/one", "runs/cut")
    Path("runs/cut", file).write_text('{"when": "yesterday"}\n' if edit is None else damaged(file, edit), "utf-8")
    code = main(["report", "runs/cut"])
    error = capsys.readouterr().err
    assert code == 2
    assert len(error.splitlines()) == 1
    assert message in error


def test_each_missing_file_names_the_command_that_makes_it(inside, capsys):
    shutil.rmtree("runs/cut", ignore_errors=True)
    shutil.copytree("runs/one", "runs/cut")
    Path("runs/cut/predictions-val.csv").unlink()
    assert main(["report", "runs/cut"]) == 2
    assert "has no predictions-val.csv: convsmith evaluate runs/cut makes it" in capsys.readouterr().err
    assert main(["evaluate", "runs/cut"]) == 0
    assert main(["report", "runs/cut"]) == 0


def test_a_cross_validation_gets_a_page_of_every_image_out_of_fold(inside, capsys):
    line = "crossval --data digits --data.limit 120 --folds 2 --epochs 1 --name cv --train.threads 1 --track.wandb off"
    command = [sys.executable, "-m", "convsmith.cli", *line.split()]
    subprocess.run(command, cwd=inside, capture_output=True, timeout=300, check=True)
    assert main(["report", "runs/cv"]) == 0
    assert "written: runs/cv/report.html" in capsys.readouterr().out
    text, found = text_of("runs/cv/report.html"), json.loads(text_of("runs/cv/crossval.json"))
    Checked(text)
    with Path("runs/cv/predictions-oof.csv").open() as lines:
        rows = {row["id"]: row for row in csv.DictReader(lines)}
    assert f"{len(rows)} out-of-fold images" in text
    assert f"{100 * found['mean']['accuracy']:.2f}%" in text
    assert f"{100 * found['per_fold'][1]['recall']:.2f}%" in text
    counts = found["confusion_matrix"]["counts"]
    for row, line in enumerate(counts):
        for column, count in enumerate(line):
            if count:
                assert re.search(rf'data-cell="{row}-{column}"[^>]*><span class="count">{count}<', text)
    ids, hits = list(rows), 0
    for cell, shots in shown(text)["cells"].items():
        for shot in shots:
            row = rows[ids[int(shot["image"])]]
            assert f"{row['label']}-{row['predicted']}" == cell, "the digits' classes are named by their index"
            hits += 1
    assert hits
    assert "Grad-CAM for" in text
    assert main(["report", "runs/cv/folds/1"]) == 0
    command = html.escape(f"convsmith report {shlex.quote(str(inside / 'runs/cv'))}").replace("&#x27;", "&#39;")
    assert f"<code>{command}</code>" in text_of("runs/cv/folds/1/report.html")
    Path("runs/cv/folds/1/metrics.csv").unlink()
    capsys.readouterr()
    assert main(["report", "runs/cv"]) == 2
    assert "has no metrics.csv" in capsys.readouterr().err


def test_repeats_of_a_cross_validation_are_averaged(tmp_path):
    file = tmp_path / "predictions-oof.csv"
    file.write_text("id,label,p_a,p_b\nx,a,0.9,0.1\ny,b,0.4,0.6\nx,a,0.3,0.7\ny,b,0.2,0.8\n")
    found = read_predictions(file, ["a", "b"], repeats=2)
    assert found.ids == ("x", "y")
    assert found.labels.tolist() == [0, 1]
    assert found.probabilities == pytest.approx(np.array([[0.6, 0.4], [0.3, 0.7]]))


def test_in_short_says_what_the_sections_show(inside):
    text = text_of("runs/one/report.html")
    record = json.loads(text_of("runs/one/evaluation-val.json"))
    short = re.search(r'<section class="in-short".*?</section>', text, re.S)[0]
    counts = np.array(record["confusion_matrix"]["counts"])
    worst = min(record["per_class"].items(), key=lambda item: item[1]["f1"])
    assert f"{100 * record['accuracy']:.1f}% of the images are classified correctly" in short
    assert f"would reach {100 * counts.sum(axis=1).max() / counts.sum():.1f}%" in short
    assert f"the hardest class is &#39;{worst[0]}&#39; (F1 {100 * worst[1]['f1']:.1f}%)" in short
    assert f"{counts.sum() - counts.trace()}" in re.search("Mistakes</a>: there are ([0-9,]+)", short)[1]


def test_long_names_are_cut_in_the_matrix_and_whole_in_the_table(inside, monkeypatch):
    monkeypatch.setattr("convsmith.figures.page.SHORT", 6)
    text = report_run.page(read_inputs(Path("runs/evil")))
    assert '<th scope="row" title="&lt;script&gt;alert(1)&lt;/script&gt;&amp;&#34;&#39;">&lt;scri…</th>' in text
    assert '<th scope="row">&lt;script&gt;alert(1)&lt;/script&gt;&amp;&#34;&#39;</th>' in text


def test_a_report_that_fails_is_a_warning(inside, monkeypatch):
    monkeypatch.setattr(report_run, "report", lambda *_: 1 / 0)
    told = []
    report_run.after_training(RunDir(Path("runs/two")), told.append)
    doing, note = told
    assert doing == Doing("writing the report")
    line = "warning: the report could not be written (division by zero); try: convsmith report runs/two"
    assert note.text == line
    assert line in text_of("runs/two/log.txt")


def test_compare_says_what_differs_and_pairs_only_the_same_images(inside, capsys):
    shutil.copytree("runs/two", "runs/three")
    assert main(["compare", "runs/two", "runs/three", "runs/one", "--out", "c.html"]) == 0
    out, text = capsys.readouterr().out, text_of("c.html")
    Checked(text)
    assert not re.search(r"https?:", text)
    assert "three classifies 0 images correctly that two gets wrong" in out
    assert "p = 1.0000): no difference shown" in out
    assert "one and two cannot be paired: their validation splits contain different images" in out
    for shown_in in (out, text):
        assert "optim.lr" in shown_in
        assert "data.limit" in shown_in
        assert "model.name" not in shown_in
    assert main(["compare", "runs/two", "runs/three"]) == 0
    assert "The configs are the same." in capsys.readouterr().out
    assert Path("runs/compare-two-three.html").exists()


def test_compare_is_a_function_with_numbers_a_figure_and_a_page(inside):
    found = convsmith.compare(["runs/two", "runs/one"], out="from_python.html")
    for row, run in zip(found.table, ("two", "one"), strict=True):
        record = json.loads(text_of(f"runs/{run}/evaluation-val.json"))
        assert row["name"] == run
        assert (row["accuracy"], row["f1"], row["n"]) == (record["accuracy"], record["f1"]["macro"], record["n"])
        assert row["accuracy_ci95"] == wilson_interval(round(record["accuracy"] * record["n"]), record["n"])
    assert ("data.limit", ["none", "600"]) in found.differences
    assert [one.words for one in found.versus] == [f"one and two cannot be paired: {found.versus[0].unpaired}."]
    assert found.path == Path("from_python.html")
    Checked(text_of(found.path))
    (axes,) = found.curves("val_loss").axes
    assert [line.get_label() for line in axes.lines] == ["two", "one"]
    assert axes.lines[1].get_ydata().tolist() == [row["val_loss"] for row in convsmith.load("runs/one").metrics]


def test_a_report_of_many_classes_lists_pairs(inside, monkeypatch):

    monkeypatch.setattr(images, "TABLE_CLASSES", 5)
    text = report_run.page(read_inputs(Path("runs/one")))
    Checked(text)
    assert "10 classes are too many for a table" in text


def test_a_race_is_reported_by_its_estimate_out_of_fold(inside, monkeypatch):
    estimate = {"n": 300, "accuracy": 0.8125, "interval": [0.76, 0.85], "sentence": "accuracy 81.2%"}
    told = {"minutes": 1, "because": "", "folds": 5, "data": [], "estimate": estimate, "rows": []}
    monkeypatch.setattr(report_run, "race", lambda run: told)
    monkeypatch.setattr(report_run, "out_of_fold", lambda run: estimate)
    text = report_run.page(read_inputs(Path("runs/one")))
    lead = text[text.index('class="lead"') :][:300]
    assert "81.25%" in lead
    assert "out of fold" in lead
    assert "took part in\nthe choice of the winner" in text
    assert "81.2% of the images are classified correctly out of fold" in text


def test_scores_of_classes_and_their_intervals():
    confusion = np.array([[40, 10, 0], [5, 45, 0], [0, 0, 0]])
    first, second, absent = class_scores(confusion, ["a", "b", "c"], np.random.default_rng(0))
    assert (first.precision, first.recall) == (40 / 45, 0.8)
    assert first.recall_interval == wilson_interval(40, 50)
    assert first.f1 == pytest.approx(2 * 40 / 95)
    assert first.f1_interval[0] < first.f1 < first.f1_interval[1]
    assert second.f1_interval[1] - second.f1_interval[0] < 0.3
    assert (absent.precision_interval, absent.recall_interval, absent.f1_interval) == (None, None, None)


def test_confused_classes_stand_together():
    confusion = np.diag([50] * 6)
    for one, other in ((0, 3), (1, 4), (2, 5)):
        confusion[one, other] = confusion[other, one] = 20
    order = confused_order(confusion).tolist()
    assert sorted(order) == list(range(6))
    for one, other in ((0, 3), (1, 4), (2, 5)):
        assert abs(order.index(one) - order.index(other)) == 1
    assert confused_order(np.diag([3, 3, 3])).tolist() == [0, 1, 2]


def held_out(n=400, k=4, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    logits = rng.normal(0, 1, (n, k))
    logits[np.arange(n), labels] += 4
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return Predictions(tuple(map(str, range(n))), labels, chances, tuple("abcd"[:k]))


def test_cleanlab_finds_labels_that_were_swapped():
    pytest.importorskip("cleanlab", reason="needs cleanlab: pip install 'convsmith[report]'")
    sound = held_out()
    labels = sound.labels.copy()
    swapped = np.flatnonzero(sound.correct)[:10]
    labels[swapped] = (labels[swapped] + 1) % 4
    found = likely_label_errors(Predictions(sound.ids, labels, sound.probabilities, sound.classes))
    assert len(found) >= 3
    assert set(found.tolist()) <= set(swapped.tolist())


def test_without_cleanlab_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'convsmith\[report\]'"):
        likely_label_errors(held_out())


def test_a_page_claims_no_check_of_labels_that_was_not_made(inside, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "cleanlab" else found(name))
    shutil.copytree("runs/one", "runs/unchecked")
    assert main(["report", "runs/unchecked"]) == 0
    text = text_of("runs/unchecked/report.html")
    assert "The labels were not checked: " in text
    assert "were checked, since" not in text


def test_augmented_images_are_shown_where_there_is_augmentation(inside):
    shutil.copytree("runs/one", "runs/plain")
    config = Path("runs/plain/config.yaml")
    for augment, present in (({"hflip": True}, True), ({}, False)):
        values = yaml.safe_load(config.read_text())
        config.write_text(yaml.safe_dump(values | {"augment": augment}))
        assert main(["report", "runs/plain"]) == 0
        assert ("Augmented training images" in text_of("runs/plain/report.html")) is present


def test_temperature_scaling_mends_an_overconfident_model_and_leaves_a_sound_one():
    sound = held_out(4000)
    sharpened = sound.probabilities**3
    sure = Predictions(sound.ids, sound.labels, sharpened / sharpened.sum(1, keepdims=True), sound.classes)
    found = scaling(sure, np.random.default_rng(0))
    calm = scaling(sound, np.random.default_rng(0))
    assert found.temperature == pytest.approx(3 * calm.temperature, rel=0.01)
    assert found.after.error < found.before.error
    assert found.loss_after < found.loss_before
    assert scaling(held_out(10), np.random.default_rng(0)) is None


def test_charts_keep_gaps_escape_names_and_survive_flat_lines():
    points = [(1, 0.5), (2, None), (3, 0.7), (4, 0.8)]
    chart = str(line_chart("t <b>", "d", Axes("epoch", "y"), [Line(EVIL, 1, points)], [Mark(3, "<best>")]))
    assert EVIL not in chart
    assert "<best>" not in chart
    assert re.search(r'd="M[^ML]*M[^ML]*L', chart), "the gap lifts the pen"
    assert chart.count("<circle") == 3
    for axes in (Axes("epoch", "y"), Axes("epoch", "y", logarithmic=True)):
        assert "nan" not in str(line_chart("t", "d", axes, [Line("one", 0, [(1, 0.3)])]))
        assert "nan" not in str(line_chart("t", "d", axes, [Line("flat", 0, [(1, 0.3), (2, 0.3), (3, 0.0)])]))


def test_commands_on_pages_can_be_pasted_whatever_blanks_a_name_has() -> None:
    commands = [
        command
        for page in Path(convsmith.__file__).parent.rglob("*.html")
        for command in re.findall(r"<code>(convsmith [^<]*{{[^<]*)</code>", page.read_text())
    ]
    assert len(commands) >= 4
    assert [command for command in commands if "quoted" not in command] == []
