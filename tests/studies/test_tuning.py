"""Tuning through the real command line, and what becomes of trials that are pruned, fail or are killed."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from PIL import Image

from convsmith.cli import main
from convsmith.config import read_layer, validate
from convsmith.errors import UserError
from convsmith.figures import curves
from convsmith.files import read_json
from convsmith.rundir import RunDir
from convsmith.runtime import Interrupts
from convsmith.studies import backends, trial_job
from convsmith.studies.runner import run_here
from convsmith.studies.search import Search, read_search
from convsmith.studies.worker import perform
from convsmith.tracking.csv import read as read_metrics
from convsmith.training import setup
from forked import Commands
from studies.small_study import JOBS_HERE, wait_for

STUDY = """
question: which rate?
base:
  data: {source: digits, limit: 200}
  model: {hidden: [16]}
  train: {epochs: 2, threads: 1, layout: contiguous}
  track: {wandb: off, images: 0}
space:
  optim.lr: {low: 1e-4, high: 1e-1, log: true}
  model.activation: [relu, gelu]
trials: 3
"""
COMMAND = ("tune", "study.yaml", "--name", "s")
Call = Callable[..., str]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command in this process and in `tmp_path`, which has study.yaml; its output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(backends.BACKENDS, "local", run_here)
    (tmp_path / "study.yaml").write_text(STUDY)

    def run(*arguments: str, code: int | None = 0) -> str:
        capsys.readouterr()
        result = main(arguments)
        out, err = capsys.readouterr()
        assert code is None or result == code, out + err
        return out + err

    return run


def ended(message: dict[str, Any]) -> Any:
    """The record of a trial that runs here."""
    *_, last = perform(message, Interrupts())
    return last["done"]


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / "trials.csv").read_text())))


def without_times(folder: Path) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows(folder)]


def search_in(folder: Path) -> Search:
    return read_search(RunDir(folder / "runs" / "s"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, commands: Commands) -> Path:
    """A folder with the study runs/s, done by two workers at once."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "study.yaml").write_text(STUDY)
    done = commands.run(folder, [*COMMAND, "--jobs", "2"])
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "output.txt").write_text(done.stdout)
    return folder


@pytest.fixture
def begun(whole: Path, tmp_path: Path) -> Path:
    """A study directory of one's own, runs/s, in which trial 0 of 1 is done."""
    run = tmp_path / "runs" / "s"
    shutil.copytree(whole / "runs" / "s", run)
    for number in ("1", "2"):
        shutil.rmtree(run / "trials" / number)
    (run / "study.yaml").write_text((run / "study.yaml").read_text().replace("trials: 3", "trials: 1"))
    with search_in(tmp_path).opened() as known:
        first = known.get_trials()[0]
    (run / "study.db").unlink()
    with search_in(tmp_path).opened() as known:
        known.add_trial(first)
    return run


def test_two_workers_do_as_many_trials_as_were_asked_for(whole: Path) -> None:
    run = whole / "runs" / "s"
    found = rows(run)
    assert list(found[0]) == ["number", "state", "value", "epochs", "seconds", "optim.lr", "model.activation"]
    assert [row["number"] for row in found] == ["0", "1", "2"]
    assert {row["state"] for row in found} == {"complete"}
    assert len({row["optim.lr"] for row in found}) == 3
    for row in found:
        trial = run / "trials" / row["number"]
        config = read_layer(trial / "config.yaml")
        assert config["optim"]["lr"] == float(row["optim.lr"])
        assert config["model"]["activation"] == row["model.activation"]
        assert config["track"]["group"] == "s"
        assert float(row["value"]) == read_json(trial / "summary.json")["val"]["accuracy"]
        assert [row["epoch"] for row in read_metrics(trial / "metrics.csv")] == [1, 2]
        assert not (trial / "checkpoints").exists()
    assert not list(whole.rglob("test-access.jsonl")), "a trial opened the test split"
    assert (run / "figures" / "history.png").stat().st_size > 1000


def test_it_says_what_it_found_and_how_far_to_trust_it(whole: Path) -> None:
    text = (whole / "output.txt").read_text()
    best = max(rows(whole / "runs" / "s"), key=lambda row: float(row["value"]))
    assert "study   runs/s: which rate?" in text
    assert len([line for line in text.splitlines() if line.startswith("trial ") and "best" in line]) == 3
    assert f"best {float(best['value']):.4f} (trial {best['number']})" in text
    assert "importance  not estimated: 3 trials are complete, but 8 are needed" in text
    assert "The best val_accuracy of 3 trials is optimistic" in text
    assert "next: convsmith report runs/s\n      convsmith crossval runs/s/best.yaml" in text


def test_the_best_config_is_ready_for_train(whole: Path, call: Call) -> None:
    path = whole / "runs" / "s" / "best.yaml"
    assert path.read_text().startswith("# The best of 3 trials of runs/s: trial ")
    assert "val_accuracy 0." in path.read_text().splitlines()[0]
    best = max(rows(whole / "runs" / "s"), key=lambda row: float(row["value"]))
    config = validate(read_layer(path))
    assert config.optim.lr == float(best["optim.lr"])
    assert config.track.group is None
    assert call("train", str(path), "--print-config") == config.to_yaml()


def test_a_study_that_is_done_says_so_more_trials_go_on_and_another_question_is_refused(
    begun: Path, call: Call
) -> None:
    assert "1 of 1 trials were done before" in call(*COMMAND, "--trials", "1")
    assert "1 of 1 trials were done before" in call("resume", "runs/s")
    first = rows(begun)
    assert "1 of 2 trials were done before" in call(*COMMAND, "--trials", "2")
    assert rows(begun)[:1] == first
    assert len(rows(begun)) == 2
    text = call(*COMMAND, "--trials", "2", "--epochs", "9", code=2)
    assert "was started with other settings (base.train.epochs was 2, now 9)" in text
    assert "trials was 2, now 1" in call(*COMMAND, "--trials", "1", code=2)


def test_a_study_begun_before_a_key_existed_goes_on(begun: Path, call: Call) -> None:
    asked, then = begun / "study.yaml", begun / "begun.json"
    asked.write_text(re.sub(r"\n +freeze_statistics: false", "", asked.read_text()))
    record = json.loads(then.read_text())
    del record["study"]["base"]["transfer"]["freeze_statistics"]
    then.write_text(json.dumps(record))
    assert "freeze_statistics" not in asked.read_text()
    assert "1 of 1 trials were done before" in call(*COMMAND, "--trials", "1")


def test_killed_in_the_middle_of_a_trial_nothing_is_lost_and_nothing_done_twice(
    whole: Path, tmp_path: Path, call: Call, commands: Commands
) -> None:
    """And the outcome is what an undisturbed study found, with two workers at that."""
    command = commands.start(tmp_path, COMMAND, before=JOBS_HERE)  # one kill ends the study and its trial
    wait_for((tmp_path / "runs/s/trials/1/metrics.csv").exists)
    command.send_signal(signal.SIGKILL)
    assert command.wait().returncode == -signal.SIGKILL

    with search_in(tmp_path).opened() as known:
        assert [trial.state.name for trial in known.get_trials()] == ["COMPLETE", "RUNNING"]
    assert "1 of 3 trials were done before" in call(*COMMAND)
    assert without_times(tmp_path / "runs" / "s") == without_times(whole / "runs" / "s")
    for number in ("0", "1", "2"):
        weights = [folder / "runs/s/trials" / number / "model/model.safetensors" for folder in (whole, tmp_path)]
        assert weights[0].read_bytes() == weights[1].read_bytes()
    assert "resumed at step" in (tmp_path / "runs/s/trials/1/log.txt").read_text()


def test_a_signal_saves_and_tells_how_to_go_on(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    original = optuna.trial.Trial.report

    def report(trial: optuna.trial.Trial, value: float, step: int) -> None:
        original(trial, value, step)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(optuna.trial.Trial, "report", report)
    (tmp_path / "study.yaml").write_text(STUDY.replace("trials: 3", "trials: 1"))
    assert "stopped and saved; resume with: convsmith resume runs/s" in call(*COMMAND, code=143)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(backends.BACKENDS, "local", run_here)
    call("resume", "runs/s")
    assert [row["state"] for row in rows(tmp_path / "runs" / "s")] == ["complete"]
    assert "resumed at step" in (tmp_path / "runs/s/trials/0/log.txt").read_text()


class Killed(BaseException):
    """What no part of the program handles, as a kill."""


@pytest.mark.parametrize("moment", ["asked", "finished"])
def test_a_trial_killed_between_two_steps_is_the_same_trial(
    whole: Path, tmp_path: Path, call: Call, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after Optuna knew the trial but before it had values; and after its training but before Optuna knew."""

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(*((trial_job, "suggest") if moment == "asked" else (optuna.Study, "tell")), die)
        with pytest.raises(Killed):
            main([*COMMAND, "--trials", "1"])
    with search_in(tmp_path).opened() as known:
        assert [trial.state.name for trial in known.get_trials()] == ["RUNNING"]
    call(*COMMAND, "--trials", "1")
    assert without_times(tmp_path / "runs" / "s") == without_times(whole / "runs" / "s")[:1]
    assert len(read_metrics(tmp_path / "runs/s/trials/0/metrics.csv")) == 2


def test_a_trial_that_kills_its_workers_fails_but_not_one_whose_study_is_killed(
    begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study_file = begun / "study.yaml"
    study_file.write_text(study_file.read_text().replace("trials: 1", "trials: 2"))
    message = trial_job.TrialJob("trial", str(begun), 1, "one call").message()

    def die(*_: Any) -> None:
        raise Killed

    monkeypatch.setattr(setup, "prepare", die)
    for name in ("one call", "one call", "another", "a third"):
        with pytest.raises(Killed):
            ended(message | {"call": name})
    with pytest.raises(Killed):
        ended(message | {"call": "a third"})
    record = ended(message | {"call": "a third"})
    assert record is not None
    assert (record["number"], record["state"]) == (1, "failed")
    assert "its worker died 2 times in epoch 1" in record["message"]
    assert ended(message) == {"number": None}


def test_hopeless_trials_are_pruned(begun: Path, tmp_path: Path, call: Call) -> None:
    with search_in(tmp_path).opened() as known:
        (first,) = known.get_trials()
        for number in range(5):
            perfect = optuna.trial.create_trial(
                params=first.params | {"optim.lr": 0.01 + number / 100},
                distributions=first.distributions,
                value=1.0,
                intermediate_values={1: 1.0, 2: 1.0},
                user_attrs=first.user_attrs,
            )
            known.add_trial(perfect)
    text = call(*COMMAND, "--trials", "8")
    found = rows(begun)
    assert [row["state"] for row in found[6:]] == ["pruned", "pruned"]
    assert [row["epochs"] for row in found[6:]] == ["1", "1"]
    trial = begun / "trials" / "6"
    (row,) = read_metrics(trial / "metrics.csv")
    assert float(found[6]["value"]) == row["val_accuracy"]
    assert "pruned after epoch 1: the median trial had done better" in (trial / "log.txt").read_text()
    assert "trials: 6 complete, 2 pruned" in text
    assert "pruned after epoch 1 " in text


def test_trials_that_cannot_learn_or_cannot_be_built_fail_and_the_others_go_on(tmp_path: Path, call: Call) -> None:
    text = STUDY.replace("optim.lr: {low: 1e-4, high: 1e-1, log: true}", "optim.lr: [0.001, 99]")
    text = text.replace(
        "model.activation: [relu, gelu]", "model.blocks: [[{channels: 2}], [{channels: 2, kernel: 40}]]"
    )
    text = text.replace("epochs: 2,", "epochs: 1, batch_size: 8,").replace("trials: 3", "trials: 1")
    # With this decay and the high rate the weights grow a hundredfold in a step.
    net = "{name: convnet, blocks: [{channels: 2}]}\n  optim: {name: sgd}\n  regularize: {l2: 1}"
    (tmp_path / "study.yaml").write_text(text.replace("{hidden: [16]}", net))
    call(*COMMAND, code=None)
    with search_in(tmp_path).opened() as known:
        labels = list(known.get_trials()[0].distributions["model.blocks"].choices)
        for rate, blocks in ((99.0, labels[0]), (0.001, labels[1]), (0.001, labels[0])):
            known.enqueue_trial({"optim.lr": rate, "model.blocks": blocks})
    told = call("tune", "study.yaml", "--name", "s", "--trials", "4")
    found = rows(tmp_path / "runs" / "s")[1:]
    assert [row["state"] for row in found] == ["failed", "failed", "complete"]
    assert [row["epochs"] for row in found] == ["0", "0", "1"]
    assert "trial 1   failed  optim.lr 99" in told
    assert "the loss is not a finite number at step" in told
    assert "trial 2   failed  optim.lr 0.001" in told
    assert "kernel" in next(line for line in told.splitlines() if line.startswith("trial 2"))


def test_a_disk_or_data_at_fault_leaves_the_trial_to_be_gone_on_with(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone_wrong(*_: Any, **__: Any) -> None:
        raise UserError("cannot write: the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(setup, "start", gone_wrong)
        text = call(*COMMAND, "--trials", "1", code=1)
    assert "not done: 1 of 1 trials (cannot write: the disk is full" in text
    assert "next: convsmith resume runs/s" in text
    call("resume", "runs/s")
    assert [row["state"] for row in rows(tmp_path / "runs" / "s")] == ["complete"]


def test_no_trial_can_reach_the_test_split(tmp_path: Path, call: Call) -> None:
    """Other pixels in the test split change nothing of what tuning makes."""
    random = np.random.default_rng(0)
    for data in ("one", "other"):
        for split, count in (("train", 12), ("val", 6), ("test", 6)):
            for label in ("dark", "bright"):
                folder = tmp_path / data / split / label
                folder.mkdir(parents=True)
                for number in range(count):
                    pixels = random.integers(0, 99, (8, 8), dtype=np.uint8) + (100 if label == "bright" else 0)
                    Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        random = np.random.default_rng(0)
    for image in (tmp_path / "other" / "test").rglob("*.png"):
        Image.fromarray(np.full((8, 8), 255, np.uint8)).save(image)
    (tmp_path / "study.yaml").write_text(STUDY.replace("source: digits, limit: 200", "channels: 1"))
    for data in ("one", "other"):
        call("tune", "study.yaml", "--data", data, "--name", data, "--trials", "1")
    one, other = (tmp_path / "runs" / data for data in ("one", "other"))
    assert without_times(one) == without_times(other)
    weights = [(run / "trials/0/model/model.safetensors").read_bytes() for run in (one, other)]
    assert weights[0] == weights[1]
    hashes = {read_json(run / "optuna.json")["hash"] for run in (one, other)}
    assert len(hashes) == 2, "the test images were the same"


def test_data_that_changed_since_the_study_began_is_refused(begun: Path, call: Call) -> None:
    path = begun / "optuna.json"
    path.write_text(json.dumps(read_json(path) | {"hash": "another"}))
    assert "the data 'digits' has changed since 'runs/s' was started" in call("resume", "runs/s", code=2)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite:////nowhere/at/all/x.db", "'sqlite:////nowhere/at/all/x.db' cannot be used (unable to open database"),
        ("mysql+notadriver://me:secret@host/db", "'mysql+notadriver://me:***@host/db' is not the URL of a database"),
        ("somewhere", "storage 'somewhere' is not the URL of a database that SQLAlchemy knows"),
    ],
)
def test_a_storage_that_cannot_be_reached_is_told_of_before_anything_is_written(
    tmp_path: Path, call: Call, url: str, message: str
) -> None:
    (tmp_path / "study.yaml").write_text(STUDY + f"storage: {url}\n")
    text = call(*COMMAND, code=2)
    assert message in text
    assert "secret" not in text
    assert len(text.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_a_driver_that_is_missing_is_named_as_pip_calls_it(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    (tmp_path / "study.yaml").write_text(STUDY + "storage: postgresql+psycopg2://me:secret@host/db\n")
    text = call(*COMMAND, code=2)
    assert "storage 'postgresql+psycopg2://me:***@host/db' needs the driver psycopg2" in text
    assert "pip install 'psycopg2-binary'" in text


def test_a_storage_of_ones_own_is_used_and_its_url_kept_from_others(tmp_path: Path, call: Call) -> None:
    (tmp_path / "study.yaml").write_text(STUDY + f"storage: sqlite:///{tmp_path}/shared.db\n")
    call(*COMMAND, "--trials", "1")
    assert (tmp_path / "shared.db").exists()
    assert not (tmp_path / "runs/s/study.db").exists()
    assert (tmp_path / "runs/s/optuna.json").stat().st_mode & 0o077 == 0


def test_without_optuna_the_extra_is_named(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "pip install 'convsmith[tune]'" in call(*COMMAND, code=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--trials", "0"), "--trials 0: must be at least 1"), (("--jobs", "0"), "--jobs 0: must be at least 1")],
)
def test_numbers_that_make_no_study(call: Call, arguments: tuple[str, str], message: str) -> None:
    assert message in call(*COMMAND, *arguments, code=2)


def test_the_figures_say_what_happened() -> None:
    points = [(0, 0.5, False), (1, 0.7, True), (2, 0.4, False), (3, 0.6, True)]
    for minimize, best in ((False, [0.5, 0.5, 0.5]), (True, [0.5, 0.4, 0.4])):
        (axes,) = curves.history_figure(points, "val_loss", minimize).axes
        (line,) = (line for line in axes.lines if line.get_label() == "best so far")
        assert list(line.get_ydata()) == best
        assert {text.get_text() for text in axes.get_legend().texts} == {"complete (2)", "pruned (2)", "best so far"}
    (axes,) = curves.importance_figure({"optim.lr": 0.75, "model.dropout": 0.25}, "val_f1").axes
    assert [bar.get_width() for bar in axes.patches] == [75, 25]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["optim.lr", "model.dropout"]
