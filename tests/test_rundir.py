"""Commands on one run say so where they are given a study or a range test."""

from __future__ import annotations

from pathlib import Path

import pytest

from convsmith.cli import main
from convsmith.rundir import RunDir


@pytest.mark.parametrize("verb", ["explain", "serve", "export --format onnx", "report", "compare {0} {0}/other"])
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
