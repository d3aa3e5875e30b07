"""One trained run, told apart from the other directories that commands write."""

from __future__ import annotations

from pathlib import Path

from convsmith.errors import UserError
from convsmith.rundir import RunDir, open_run


def open_single(path: str | Path, *needs: str) -> RunDir:
    """A run of its own with the files it `needs`; a UserError for a study, a range test, and what is missing."""
    run = open_run(path)
    if run.lr_find.exists():
        raise UserError(f"'{run.path}' is a learning-rate range test, and no training: look at its figures/lr_find.png")
    if run.study.exists():
        raise UserError(f"'{run.path}' is a study: name a single run, {example_of(run)}")
    return open_run(path, *needs)


def example_of(study: RunDir) -> str:
    """A run of a study, as the end of a sentence."""
    runs = sorted(str(file.parent) for file in study.path.glob("*/**/summary.json"))
    return f"such as {runs[0]}" if runs else "once one is finished"
