"""One small cross-validation that several tests compare theirs with."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from studies.small_study import CROSSVAL


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that nothing disturbed, one fold at a time."""
    folder = tmp_path_factory.mktemp("reference")
    done = subprocess.run([*CROSSVAL, "--name", "cv"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "terminal.txt").write_text(done.stdout, encoding="utf-8")
    return folder / "runs" / "cv"
