"""One small cross-validation that several tests compare theirs with, and studies without processes of their own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from convsmith import cli
from convsmith.studies import backends, runner
from studies.small_study import CROSSVAL


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that nothing disturbed, one fold at a time."""
    folder = tmp_path_factory.mktemp("reference")
    done = subprocess.run([*CROSSVAL, "--name", "cv"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "terminal.txt").write_text(done.stdout, encoding="utf-8")
    return folder / "runs" / "cv"


@pytest.fixture
def in_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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
