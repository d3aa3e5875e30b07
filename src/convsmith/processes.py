"""Starts Python and git so that nothing runs which lies in the working folder; data from others may lie there."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path


def python(code: str) -> list[str]:
    """The command that runs `code` in another process with the import path of this one.

    ``python -m`` and ``python -c`` would put the working folder first, and before 3.11 nothing but this prevents it: a
    file named json.py beside someone's photographs would then run. `sys` is always loaded, so importing it runs none.
    """
    return [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}\n{code}"]


def python_module(name: str) -> list[str]:
    """The command that runs a module as ``python -m name`` does, but by the rules of `python`."""
    return python(f"import runpy; runpy.run_module({name!r}, run_name='__main__', alter_sys=True)")


def git_revision() -> str | None:
    """The commit of the current folder, with ``-dirty`` if there are uncommitted changes; None outside repositories.

    A repository's own config, attributes and hooks may name programs that git runs whenever it compares files (such as
    core.fsmonitor and filter.<name>.clean). Hence the comparison is made from an empty repository, which borrows the
    other's objects and index alone. Changes within submodules are not looked at, since they have configs, too.
    """
    try:
        commit, root, objects, index = _git(
            "rev-parse", "HEAD", "--show-toplevel", "--git-path", "objects", "--git-path", "index"
        ).splitlines()
        with tempfile.TemporaryDirectory() as folder:
            for name in ("objects", "refs"):
                Path(folder, name).mkdir()
            Path(folder, "HEAD").write_text(f"{commit}\n", encoding="ascii")
            changed = _git(
                "--no-optional-locks",
                "status",
                "--porcelain",
                "--untracked-files=no",
                "--ignore-submodules=all",
                GIT_DIR=folder,
                GIT_WORK_TREE=root,
                GIT_OBJECT_DIRECTORY=os.path.abspath(objects),
                GIT_INDEX_FILE=os.path.abspath(index),
            )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return f"{commit}-dirty" if changed else commit


def _git(*words: str, **environment: str) -> str:
    done = subprocess.run(
        ["git", *words], env=os.environ | environment, capture_output=True, text=True, timeout=5, check=True
    )
    return done.stdout
