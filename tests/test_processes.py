"""No other process that we start runs what lies in the working folder."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from convsmith.processes import git_revision, python, python_module


def test_python_does_not_import_from_the_working_folder(tmp_path: Path) -> None:
    for name in ("argparse", "json", "runpy", "sitecustomize", "random"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('this ran')")
    for command in (python("import json; print(json.loads('[1]'))"), [*python_module("json.tool"), "--json-lines"]):
        done = subprocess.run(command, input="1", cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def git(folder: Path, *words: str) -> str:
    named = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    return subprocess.run(
        ["git", *named, *words], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet")
    (folder / "file").write_text("1")
    git(folder, "add", "file")
    git(folder, "commit", "--quiet", "--message", "first")
    monkeypatch.chdir(folder)
    return folder


def test_the_revision_says_whether_there_are_changes(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    (repository / "untracked").touch()
    (repository / "file").touch()  # another time, the same content
    assert git_revision() == commit
    (repository / "below").mkdir()
    monkeypatch.chdir(repository / "below")
    (repository / "file").write_text("2")
    assert git_revision() == f"{commit}-dirty"
    git(repository, "commit", "--quiet", "--all", "--message", "second")
    assert git_revision() == git(repository, "rev-parse", "HEAD")
    monkeypatch.chdir(tmp_path)
    assert git_revision() is None


def test_a_repository_of_others_runs_nothing(repository: Path, tmp_path: Path) -> None:
    run = f"touch '{tmp_path}/canary'; cat"
    (repository / ".gitattributes").write_text("* filter=mine diff=mine")
    (repository / ".git/info/attributes").write_text("* filter=mine diff=mine")
    hooks = repository / ".git/hooks"
    for key in ("core.fsmonitor", "filter.mine.clean", "filter.mine.process", "diff.mine.textconv", "diff.external"):
        git(repository, "config", key, run)
    for name in ("post-index-change", "fsmonitor-watchman"):
        (hooks / name).write_text(f"#!/bin/sh\n{run}")
        (hooks / name).chmod(0o755)
    (repository / "file").write_text("2")
    revision = git_revision()
    assert revision is not None
    assert revision.endswith("-dirty")
    assert not (tmp_path / "canary").exists()
