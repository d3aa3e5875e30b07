"""One small cross-validation that several tests compare theirs with, and studies without processes of their own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from convsmith import cli
from convsmith.studies import backends, runner, tuning
from convsmith.training import finish
from forked import Commands
from studies.small_study import CROSSVAL, JOBS_HERE


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory, commands: Commands) -> Path:
    """A study that nothing disturbed, one fold at a time, in a process without workers."""
    folder = tmp_path_factory.mktemp("reference")
    done = commands.run(folder, [*CROSSVAL, "--name", "cv"], JOBS_HERE)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / "cv"


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings and studies draw nothing, which would take longer than such small trainings."""
    for module in (finish, tuning):
        for name in ("confusion_figure", "learning_curves", "history_figure", "save"):
            monkeypatch.setattr(module, name, lambda *_: None, raising=False)


@pytest.fixture
def in_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None, capsys: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Like `convsmith`, but the command and its jobs run in this process, which has imported torch already.

    For tests of what a study finds and says; how its processes start, die and end is tested with real ones.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(backends.BACKENDS, "local", runner.run_here)
    threads = torch.get_num_threads()

    def run(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        ended = cli.main([str(argument) for argument in arguments])
        torch.set_num_threads(threads)
        said = capsys.readouterr()
        assert ended == code, said.out + said.err
        return subprocess.CompletedProcess(arguments, ended, said.out, said.err)

    return run
