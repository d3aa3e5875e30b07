"""Commands on one run say so where they are given a study or a range test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from convsmith import run as runs
from convsmith.cli import main
from convsmith.errors import UserError
from convsmith.explain.context import open_context
from convsmith.prediction.evaluate import evaluate
from convsmith.report.run import report
from convsmith.rundir import RunDir, draft, publish, state_of
from convsmith.studies import resuming


@pytest.mark.parametrize("verb", ["explain", "serve", "export --format onnx", "compare {0} {0}/other"])
def test_a_study_is_no_single_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    fold = tmp_path / "study" / "folds" / "1"
    fold.mkdir(parents=True)
    (tmp_path / "study" / "config.yaml").touch()
    (tmp_path / "study" / "study.yaml").write_text("kind: tune")
    words = verb.format(tmp_path / "study").split()
    command = words if len(words) > 2 and words[0] == "compare" else [*words, str(tmp_path / "study")]
    for known in ("once one is finished", f"such as {fold}"):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "is a study" in error
        assert known in error
        assert len(error.splitlines()) == 1
        (fold / "summary.json").touch()


@pytest.mark.parametrize("verb", ["explain", "serve", "export --format onnx", "report"])
def test_a_range_test_is_no_training(tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    (tmp_path / "config.yaml").touch()
    (tmp_path / "lr_find.csv").touch()
    assert main([*verb.split(), str(tmp_path)]) == 2
    assert "is a learning-rate range test, not a training" in capsys.readouterr().err


def test_a_warning_goes_to_the_log_and_to_pythons_logger(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    RunDir(tmp_path).warn("W&B cannot be reached")
    assert (tmp_path / "log.txt").read_text().endswith(" warning: W&B cannot be reached\n")
    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        ("convsmith", "warning: W&B cannot be reached")
    ]


WRITERS: dict[str, Callable[[RunDir], object]] = {
    "evaluate": lambda run: evaluate(run, "test", ""),
    "resume": runs.resume,
    "resume a study": lambda run: resuming.resume(run.path),
    "report": lambda run: report(run.path),
    "explain": lambda run: open_context(run.path),
    "lock": lambda run: run.lock().__enter__(),
}


@pytest.mark.parametrize("link", ["log.txt", "test-access.jsonl", ".lock", "figures", "wandb", "folds/1/model"])
@pytest.mark.parametrize("writer", WRITERS)
def test_nothing_is_written_through_a_link_inside_a_run(tmp_path: Path, writer: str, link: str) -> None:
    outside, run = tmp_path / "outside", RunDir(tmp_path / "run")
    (outside if "." not in link[1:] else tmp_path).mkdir(exist_ok=True)
    if not outside.is_dir():
        outside.write_text("mine")
    (run.path / "folds" / "1").mkdir(parents=True)
    (run.path / "model").mkdir()
    for file in ("config.yaml", "model/model.json", "model/model.safetensors"):
        (run.path / file).touch()
    (run.path / link).symlink_to(outside)
    with pytest.raises(UserError, match=f"{link}' is a link to '.*outside', and nothing is written"):
        WRITERS[writer](run)
    assert list(outside.iterdir()) == [] if outside.is_dir() else outside.read_text() == "mine"


def test_another_file_under_the_name_of_the_lock_keeps_its_content(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    (tmp_path / "thesis").write_text("mine")
    os.link(tmp_path / "thesis", run.path / ".lock")
    with pytest.raises(UserError, match="is not the lock of a run"), run.lock():
        pass
    assert state_of(run) == "stopped"
    assert (tmp_path / "thesis").read_text() == "mine"
    (tmp_path / "thesis").write_text("")  # as in a backup by hard links
    with run.lock():
        assert state_of(run) == "running"


def test_a_run_may_be_reached_by_links(tmp_path: Path) -> None:
    (tmp_path / "disk" / "run" / "wandb").mkdir(parents=True)
    (tmp_path / "disk" / "run" / "folds" / "1" / "wandb").mkdir(parents=True)
    for wandb in (tmp_path / "disk").rglob("wandb"):
        (wandb / "latest-run").symlink_to("run-1")  # W&B's own
    (tmp_path / "runs").symlink_to("disk")
    (tmp_path / "linked").symlink_to(tmp_path / "runs" / "run")
    with RunDir(tmp_path / "linked").lock():
        RunDir(tmp_path / "linked").log("written")
    assert (tmp_path / "disk" / "run" / "log.txt").read_text().endswith(" written\n")


KILLED = """
import os, signal, sys
from pathlib import Path
from convsmith.rundir import draft
with draft(Path(sys.argv[1])) as run:
    run.log("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_drafts_of_killed_processes_are_removed_and_those_of_living_ones_kept(tmp_path: Path) -> None:
    with draft(tmp_path) as living:
        living.log("half")
        subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False)
        (tmp_path / ".new-12345678").mkdir()  # of the first edition
        (tmp_path / ".new-12345678" / "config.yaml").touch()
        (tmp_path / ".new-projects").mkdir()
        (tmp_path / ".new-projects" / "thesis.tex").touch()
        assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 4
        with draft(tmp_path) as second:
            assert {path for path in tmp_path.iterdir() if path.is_dir()} == {
                living.path,
                second.path,
                tmp_path / ".new-projects",
            }
        published = publish(living, "name", "")
    assert published.log_file.exists()
    assert sorted(os.listdir(tmp_path)) == [".new-projects", "name"]
