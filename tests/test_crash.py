"""An exception that nobody expected is one line with exit code 1, and its details lie where the line says."""

from __future__ import annotations

import re
import shutil
from importlib import metadata
from pathlib import Path

import pytest

from convsmith import crash, machine
from convsmith.cli import main
from convsmith.rundir import RunDir
from convsmith.verbs import doctor, summary

KEPT = Path(__file__).parent / "first_edition" / "finished"


class Odd(Exception):
    pass


def fault(error: Exception) -> object:
    def failing(*arguments: object, **named: object) -> object:
        raise error

    return failing


@pytest.fixture(autouse=True)
def _as_a_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(crash.VARIABLE)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def line_of(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Odd("it\x1b[31m broke\nerror: forged"), r"Odd: it\x1b[31m broke (unexpected, at "),
        (KeyError("x"), "KeyError: 'x' (unexpected"),
        (RecursionError(), "RecursionError (unexpected"),
        (FileNotFoundError(2, "No such file or directory", "a.json"), "'a.json' cannot be used: No such file"),
    ],
)
def test_a_fault_of_ours_is_one_line_and_its_details_are_kept(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "description", fault(error))
    assert main(["doctor"]) == 1
    line = line_of(capsys)
    assert line.startswith(f"failed: {said}")
    file = re.search(r"details, which are in (\S+)$", line)
    assert file
    details = Path(file[1]).read_text(encoding="utf-8")
    assert "in: convsmith doctor" in details
    assert "Traceback" in details
    assert "verbs/doctor.py" in details
    assert "\x1b" not in details


@pytest.mark.parametrize("locked", [False, True])
def test_the_details_about_a_run_are_in_its_log(
    locked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(tmp_path / "run")
    shutil.copytree(KEPT, run.path)

    def failing(args: object) -> int:
        with run.lock():
            raise Odd("within")

    monkeypatch.setattr(doctor, "run", failing)
    monkeypatch.setattr(summary, "run", fault(Odd("about")))
    assert main(["doctor"] if locked else ["summary", str(run.path)]) == 1
    assert f"details, which are in {run.log_file}" in line_of(capsys)
    log = run.log_file.read_text(encoding="utf-8")
    assert f"Odd: {'within' if locked else 'about'}" in log
    assert "Traceback" in log


def test_a_log_that_is_a_link_gets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, outside = RunDir(tmp_path / "run"), tmp_path / "outside.txt"
    shutil.copytree(KEPT, run.path)
    outside.touch()
    run.log_file.unlink()
    run.log_file.symlink_to(outside)
    monkeypatch.setattr(summary, "run", fault(Odd("about")))
    assert main(["summary", str(run.path)]) == 1
    assert "convsmith-error-" in line_of(capsys)
    assert outside.read_text() == ""


def test_without_room_for_the_details_the_line_says_how_to_see_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    monkeypatch.setattr(machine, "description", fault(Odd("lost")))
    assert main(["doctor"]) == 1
    assert "which could not be kept (No such file or directory): CONVSMITH_TRACEBACK=1 shows them" in line_of(capsys)


def test_a_developer_sees_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(crash.VARIABLE, "1")
    monkeypatch.setattr(machine, "description", fault(Odd("seen")))
    with pytest.raises(Odd):
        main(["doctor"])


def test_sources_that_are_not_installed_have_a_last_handler_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metadata, "version", fault(metadata.PackageNotFoundError("convsmith")))
    monkeypatch.setattr(machine, "description", fault(Odd("lost")))
    assert main(["doctor"]) == 1
    file = re.search(r"details, which are in (\S+)$", line_of(capsys))
    assert file
    assert "of convsmith not installed, Python" in Path(file.group(1)).read_text(encoding="utf-8")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "convsmith not installed\n"
