import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save

from convsmith import records
from convsmith.cli import main
from convsmith.errors import UserError
from convsmith.records import (
    FORMAT_VERSION,
    METRICS,
    MONITORS,
    MetricsRow,
    is_better,
    read,
    write,
)

FIRST_EDITION = Path(__file__).parent / "first_edition"

VALUE = st.sampled_from([0.0, 0.25, 0.5, 0.5 + 1e-9, 1.0])
ROWS = st.lists(st.fixed_dictionaries(dict.fromkeys(MONITORS, VALUE)), min_size=1, max_size=12)


@given(ROWS, st.sampled_from(MONITORS))
def test_the_best_epoch_is_first_by_its_metric_then_by_val_loss_then_by_time(rows, monitor):
    rows = [row | {"epoch": number} for number, row in enumerate(rows, start=1)]
    values = np.array([row[monitor] for row in rows])
    losses = np.array([row["val_loss"] for row in rows])
    if METRICS[monitor.removeprefix("val_")].higher_is_better:
        values = -values
    first = np.lexsort((np.arange(len(rows)), losses, values))[0]
    best = None
    for row in rows:
        best = row if is_better(monitor, row, best) else best
    assert best["epoch"] == first + 1


def test_what_is_better_by_less_than_min_delta_is_not_better():
    before, after = {"val_accuracy": 0.5, "val_loss": 2.0}, {"val_accuracy": 0.53, "val_loss": 1.0}
    assert is_better("val_accuracy", after, before)
    assert not is_better("val_accuracy", after, before, min_delta=0.05)
    assert not is_better("val_accuracy", before | {"val_loss": 1.0}, before, min_delta=0.05)
    assert is_better("val_loss", after, before, min_delta=0.5)


def test_a_metric_that_an_older_run_has_not_recorded_is_named():
    row = {"epoch": 1, "val_loss": 0.4, "val_accuracy": 0.9}
    with pytest.raises(UserError, match=r"no record of 'val_ece'.*has: val_loss, val_accuracy$"):
        is_better("val_ece", row, row)


def test_what_is_written_is_read_and_says_its_version(tmp_path):
    path, opening = tmp_path / "opening.json", {"when": "now", "command": "evaluate", "more": [1]}
    assert write(path, records.TestAccess, opening) == opening == read(path, records.TestAccess)
    assert json.loads(path.read_text())["format_version"] == FORMAT_VERSION


def test_what_does_not_fit_is_not_written(tmp_path):
    with pytest.raises(AssertionError, match=r"x\.json: command: Field required"):
        write(tmp_path / "x.json", records.TestAccess, {"when": "now"})
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize("version", [0, -1, "2", None, True, 1.5])
def test_a_version_that_none_has_written_is_damage(tmp_path, version):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"format_version": version, "when": "now", "command": "evaluate"}))
    with pytest.raises(UserError, match=r"is damaged \(format_version is"):
        read(path, records.TestAccess)


@pytest.mark.parametrize("value", [1.5, -0.1, "high"])
def test_a_metric_beyond_its_bounds_is_damage(tmp_path, value):
    path = tmp_path / "x.json"
    row = {"epoch": 1, "train_loss": 1.0, "train_accuracy": 1.0, "val_loss": 1.0, "val_accuracy": 1.0, "val_f1": 1.0}
    row |= {"learning_rate": 0.1, "seconds": 1.0}
    path.write_text(json.dumps(row | {"val_ece": 0.5, "val_mcc": -0.5, "val_auroc": None}))
    assert read(path, MetricsRow)["val_mcc"] == -0.5
    path.write_text(json.dumps(row | {"val_ece": value}))
    with pytest.raises(UserError, match=f"val_ece is {value}"):
        read(path, MetricsRow)


#: Each kind of file, of a finished run and of a study, and a command that reads it.
NEWER = {
    "finished/config.yaml": "evaluate finished",
    "finished/splits.json": "evaluate finished",
    "finished/model/model.json": "predict finished README.md",
    "finished/summary.json": "report finished",
    "finished/evaluation-val.json": "report finished",
    "finished/environment.json": "report finished",
    "finished/test-access.jsonl": "report finished",
    "stopped/config.yaml": "resume stopped",
    "stopped/splits.json": "resume stopped",
    "crossval/study.yaml": "resume crossval",
    "crossval/begun.json": "resume crossval",
    "crossval/folds.json": "resume crossval",
    "crossval/folds/1/fold.json": "resume crossval",
    "crossval/crossval.json": "report crossval",
    "ablation/study.yaml": "resume ablation",
    "ablation/arms.json": "resume ablation",
    "ablation/folds.json": "resume ablation",
    "tuning/study.yaml": "resume tuning",
    "tuning/optuna.json": "resume tuning",
}


@pytest.mark.parametrize("file", NEWER)
def test_a_file_of_a_newer_edition_is_refused_with_advice(file, tmp_path, monkeypatch, capsys):
    name = file.split("/")[0]
    shutil.copytree(FIRST_EDITION / name, tmp_path / name)
    shutil.copy(FIRST_EDITION / "README.md", tmp_path)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / file
    before = path.read_text()
    if path.suffix == ".yaml":
        path.write_text("format_version: 99\n" + before)
    else:
        path.write_text("".join(json.dumps({"format_version": 99} | json.loads(text)) + "\n" for text in lines(path)))
    code = main(NEWER[file].split())
    line = capsys.readouterr().err
    assert code == 2, line
    assert path.name in line
    assert "format_version 99" in line
    assert "pip install --upgrade convsmith" in line
    assert len(line.strip().splitlines()) == 1


def lines(path):
    return path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("finished/model/model.safetensors", "predict finished README.md"),
        ("stopped/checkpoints/last.safetensors", "resume stopped"),
    ],
)
def test_weights_of_a_newer_edition_are_refused_with_advice(file, command, tmp_path, monkeypatch, capsys):
    name = file.split("/")[0]
    shutil.copytree(FIRST_EDITION / name, tmp_path / name)
    shutil.copy(FIRST_EDITION / "README.md", tmp_path)
    monkeypatch.chdir(tmp_path)
    with safe_open(file, "np") as weights:
        tensors, header = {key: weights.get_tensor(key) for key in weights.keys()}, weights.metadata()  # noqa: SIM118
    newer = {"convsmith": json.dumps({"format_version": 99, "sha256": "?"})} if "facts" not in header else header
    Path(file).write_bytes(save(tensors, newer | {"format_version": "99"}))
    assert main(command.split()) == 2
    line = capsys.readouterr().err
    assert Path(file).name in line
    assert "format_version 99" in line


def test_everything_that_a_training_writes_says_its_version(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = "--model convnet --data.limit 200 --epochs 1 --track.wandb off --train.threads 1 --name run".split()
    net = ["--model.blocks", "[{channels: 2}]", "--model.hidden", "[]"]
    assert main(["train", "--data", "digits", *net, *flags]) == 0
    assert main(["evaluate", "runs/run", "--split", "test"]) == 0
    run = tmp_path / "runs/run"
    found = {path.relative_to(run).as_posix() for path in run.rglob("*.json*")}
    assert found == {
        *("environment.json", "splits.json", "summary.json", "evaluation-val.json", "evaluation-test.json"),
        *("model/model.json", "test-access.jsonl"),
    }
    for name in found:
        assert json.loads((run / name).read_text())["format_version"] == FORMAT_VERSION, name
    assert (run / "config.yaml").read_text().startswith(f"format_version: {FORMAT_VERSION}\n")
    for path in run.rglob("*.safetensors"):
        with safe_open(path, "np") as weights:
            header = weights.metadata()
        said = json.loads(header["convsmith"])["format_version"] if "convsmith" in header else header["format_version"]
        assert int(said) == FORMAT_VERSION, path


@pytest.mark.parametrize(("classes", "shown"), [(2, False), (5, False), (6, True)])
def test_a_metric_that_is_1_for_so_few_classes_is_recorded_and_not_shown(classes: int, shown: bool) -> None:
    from convsmith.prediction.evaluation import evaluation

    logits = np.random.default_rng(0).normal(size=(60, classes))
    record = evaluation(np.arange(60) % classes, logits, [f"class {number}" for number in range(classes)])
    assert (record["top5_accuracy"] == 1.0) is not shown
    assert ("top5_accuracy" in records.worth_showing(record)) is shown
    assert "top5_accuracy" in records.metric_values(record)
