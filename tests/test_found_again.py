"""The same command finds the training or the study that it began and that was interrupted, and no other."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import convsmith
from convsmith.config import validate, validate_asked
from convsmith.errors import Stopped, UserError
from convsmith.events import EpochEnd, Note
from convsmith.report import run as report_run
from convsmith.rundir import RunDir
from convsmith.studies import study
from convsmith.training import interrupted

KEPT = Path(__file__).parent / "first_edition"
SETTINGS: dict[str, Any] = {
    "data": {"source": "digits", "limit": 100},
    "model": "simple-cnn",
    "epochs": 2,
    "device": "cpu",
    "train": {"threads": 1, "layout": "contiguous"},
    "track": {"wandb": "off"},
}


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report_run, "after_training", lambda *given: None)
    return []


@pytest.fixture
def train(notes: list[str]) -> Callable[..., convsmith.Run]:
    """Train by the same settings, but for those given; with `stop`, a signal comes after the first epoch."""

    def run(stop: bool = False, **given: Any) -> convsmith.Run:
        def listener(event: object) -> None:
            if isinstance(event, Note):
                notes.append(event.text)
            if stop and isinstance(event, EpochEnd):
                os.kill(os.getpid(), signal.SIGINT)

        if stop:
            with pytest.raises(Stopped):
                convsmith.train(**{**SETTINGS, **given}, show=listener)
            return convsmith.Run(max(Path("runs").iterdir(), key=os.path.getmtime))
        return convsmith.train(**{**SETTINGS, **given}, show=listener)

    return run


def names() -> list[str]:
    return sorted(path.name for path in Path("runs").iterdir())


def test_an_interrupted_training_is_found_by_the_same_settings(
    train: Callable[..., convsmith.Run], notes: list[str]
) -> None:
    first = train(stop=True)
    asked = interrupted.asked_for(first.files)
    assert asked is not None
    left = interrupted.find(Path("runs"), asked)
    assert left is not None
    assert left.path == first.directory
    assert interrupted.find(Path("runs"), asked.with_values(train={"seed": 1})) is None
    assert interrupted.find(Path("elsewhere"), asked) is None
    with first.files.lock():
        assert interrupted.find(Path("runs"), asked) is None, "a process works at it"
    assert train().directory == first.directory
    assert len(first.metrics) == 2
    assert f"going on with '{first.directory}'" in notes[-1]
    assert "--name NEW" in notes[-1]
    assert names() == [first.directory.name]
    assert interrupted.find(Path("runs"), asked) is None, "a finished run is never touched"


def test_a_run_that_cannot_go_on_stops_nobody(train: Callable[..., convsmith.Run], notes: list[str]) -> None:
    first = train(stop=True)
    splits = json.loads(first.files.splits.read_text())
    first.files.splits.write_text(json.dumps(splits | {"hash": "0" * 64}))
    assert train().directory != first.directory
    assert f"'{first.directory}' was interrupted and cannot be continued, so a new run begins: " in notes[-1]
    asked = interrupted.asked_for(first.files)
    assert asked is not None
    first.files.environment.write_text("{")
    assert interrupted.find(Path("runs"), asked) is None


def test_data_of_the_same_name_in_another_folder_are_others(
    notes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(KEPT / "stopped", tmp_path / "runs" / "one")
    run = RunDir(tmp_path / "runs" / "one")
    environment = json.loads(run.environment.read_text())
    config = validate({"data": {"source": "photos"}})
    (tmp_path / "photos").mkdir()
    asked = interrupted.at_its_place(config)
    run.environment.write_text(json.dumps(environment | {"asked": asked.model_dump(mode="json")}))
    assert interrupted.find(run.path.parent, interrupted.at_its_place(config)) is not None
    (tmp_path / "other" / "photos").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "other")
    other = interrupted.at_its_place(config)
    assert interrupted.find(run.path.parent, other) is None
    with pytest.raises(UserError, match=r"data\.source was .*, is .*other"):
        interrupted.refuse_other(run, other)


def test_a_run_of_arrays_is_not_found(train: Callable[..., convsmith.Run]) -> None:
    import numpy as np

    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    given = {"data": (images, [number % 2 for number in range(60)])}
    first = train(stop=True, **given)
    assert train(**given).directory != first.directory


def test_resume_beside_a_name_goes_on_or_begins(train: Callable[..., convsmith.Run], notes: list[str]) -> None:
    """One line for cron."""
    train(stop=True, name="nightly", resume=True)
    with pytest.raises(UserError, match=r"was started with other settings.*train\.epochs was 2, is 3"):
        train(name="nightly", resume=True, epochs=3)
    with pytest.raises(UserError, match="exists already"):
        train(name="nightly")
    assert len(train(name="nightly", resume=True).metrics) == 2
    before = Path("runs/nightly/summary.json").read_bytes()
    train(name="nightly", resume=True)
    assert "is finished: there is nothing to resume" in notes[-1]
    assert Path("runs/nightly/summary.json").read_bytes() == before
    assert names() == ["nightly"]
    with pytest.raises(UserError, match="--resume goes with --name"):
        train(resume=True)


@pytest.mark.parametrize("kept", ["crossval-stopped", "ablation", "tuning"])
def test_an_interrupted_study_is_found_by_the_same_spec(kept: str, tmp_path: Path, notes: list[str]) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(KEPT / kept, runs / "one")
    shutil.copytree(KEPT / "finished", runs / "two")
    run = RunDir(runs / "one")
    for end in (run.ablation, run.best):
        end.unlink(missing_ok=True)
    key = "config" if kept == "crossval-stopped" else "base"
    before = study.read_spec(run)
    spec = before | {key: validate_asked(before[key]).model_dump(mode="json")}

    def find(spec: dict[str, Any]) -> RunDir | None:
        return study.existing(runs, None, spec, lambda event: notes.append(event.text))

    found = find(spec)
    assert found is not None
    assert found.path == run.path
    assert f"going on with '{run.path}'" in notes[0]
    other = validate_asked(before[key]).with_values(train={"seed": 77}).model_dump(mode="json")
    assert find(spec | {key: other}) is None
    own = validate_asked(before[key]).with_values(model={"name": "own:Net"}).model_dump(mode="json")
    assert find(spec | {key: own}) is None
    with run.lock():
        assert find(spec) is None
    config = run.config.read_text()
    run.config.write_text(config.replace("source: digits", "source: /elsewhere/digits"))
    (run.path / study.STARTED).unlink(missing_ok=True)
    assert find(spec) is None, "the same name means other data in this folder"
    run.config.write_text(config)
    run.study.write_text("kind: crossval\n")
    assert find(spec) is None
    assert study.existing(tmp_path / "nowhere", None, spec) is None


def test_a_run_that_another_process_trains_is_not_touched(notes: list[str], tmp_path: Path) -> None:
    """Its newest row has no checkpoint yet, and would be cut off if the run were read before it is locked."""
    shutil.copytree(KEPT / "stopped", tmp_path / "runs" / "nightly")
    run = RunDir(tmp_path / "runs" / "nightly")
    lines = run.metrics.read_text().splitlines()
    newest = ",".join([str(len(lines)), *lines[-1].split(",")[1:]])
    run.metrics.write_text("\n".join([*lines, newest, ""]))
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with run.lock():
        for go_on in (
            lambda: convsmith.resume(run.path, show=False),
            lambda: convsmith.train(**SETTINGS, name=run.name, resume=True, show=False),
        ):
            with pytest.raises(UserError, match="is in use by another process"):
                go_on()
    after = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before
