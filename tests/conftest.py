"""Shared by all tests: a cache of their own, no W&B account, and the real data where it lies."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from forked import Commands, kill_at

# How long an example takes says how busy the machine is, and nothing about the property. CI judges a change, so it
# tries the same examples each time; a developer's machine tries new ones.
settings.register_profile(
    "convsmith", derandomize="CI" in os.environ, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("convsmith")

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


#: The files that take longest. They start first, so that no process is left with one of them at the end.
LONGEST = (
    "studies/",
    "test_resume.py",
    "transfer/test_transfer.py",
    "report/",
    "test_cli.py",
    "test_python_studies.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the longest files first, in the order of `LONGEST`; the others keep their order."""
    here = Path(__file__).parent

    def rank(item: pytest.Item) -> int:
        path = item.path.relative_to(here).as_posix()
        return next((number for number, start in enumerate(LONGEST) if path.startswith(start)), len(LONGEST))

    items.sort(key=rank)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Neither tests nor the commands they start touch the user's cache or W&B account."""
    os.environ["CONVSMITH_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["WANDB_MODE"] = "disabled"
    os.environ["CONVSMITH_TRACEBACK"] = "1"  # our own faults are shown as Python does
    os.environ["COLUMNS"] = "120"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """A test that draws random numbers draws the same ones each time, whichever tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the repository."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real data in {SHARED}, which is absent")
    return SHARED


Convsmith = Callable[..., subprocess.CompletedProcess[str]]
RunUntil = Callable[..., int]


@pytest.fixture(scope="session")
def commands() -> Iterator[Commands]:
    """Commands in processes of their own, each a copy of one that has imported everything."""
    server = Commands()
    yield server
    server.close()


@pytest.fixture
def convsmith(commands: Commands, tmp_path: Path) -> Convsmith:
    """Run the real command line in `tmp_path`; `code` is the exit code expected."""

    def run(*arguments: str | Path, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        done = commands.run(tmp_path, arguments)
        assert code is None or done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture(scope="session")
def run_until(commands: Commands) -> RunUntil:
    """Run a command in a folder until its end or a kill at a moment; the exit code, which is that of one of them."""

    def run(folder: Path, moment: str, *arguments: str) -> int:
        done = commands.run(folder, arguments, kill_at(moment))
        assert done.returncode in (0, -signal.SIGKILL), done.stdout + done.stderr
        return done.returncode

    return run
