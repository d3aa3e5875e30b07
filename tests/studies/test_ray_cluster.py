"""The same jobs on a real Ray cluster, started on this machine; a worker is killed in the middle."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from studies.small_study import CROSSVAL, found, wait_for

pytest.importorskip("ray", reason="needs the extra [cluster]")
# No token: it would lie in the user's home, where another cluster of this machine may have put its own.
ALONE = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_DISABLE_USAGE_STATS": "1",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_worker_niceness": "0",
}
PORT = 20_000 + os.getpid() % 10_000


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[bytes]]:
    """A cluster of its own: `ray stop` would end every other one of this machine too."""
    ray = Path(sys.executable).with_name("ray")
    start = [ray, "start", "--head", "--block", "--num-cpus=2", f"--port={PORT}", "--include-dashboard=false"]
    start += ["--object-store-memory=100000000", f"--temp-dir=/tmp/ray-{os.getpid()}"]
    folder = tmp_path_factory.mktemp("ray")
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [*map(str, start)], stdout=log, stderr=log, env=os.environ | ALONE, cwd=folder, start_new_session=True
        )
    wait_for(lambda: "Ray runtime started" in (folder / "log.txt").read_text(encoding="utf-8"))
    yield process
    below = [pid for pid, _ in descendants(process.pid)]
    process.terminate()
    process.wait(timeout=60)
    for pid in below:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def descendants(of: int) -> list[tuple[int, str]]:
    """(pid, command) of every process below `of`."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True)
    rows = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
    found, parents = [], {of}
    while parents:
        children = [(int(pid), args) for pid, parent, args in rows if int(parent) in parents]
        found += children
        parents = {pid for pid, _ in children}
    return found


def task_workers(cluster: subprocess.Popen[bytes]) -> list[int]:
    """Ray names a worker's process after the task that it runs."""
    return [pid for pid, args in descendants(cluster.pid) if args.startswith("ray::fold")]


def test_a_cluster_finds_the_same_and_a_killed_worker_loses_nothing(
    cluster: subprocess.Popen[bytes], reference: Path, tmp_path: Path
) -> None:
    study = tmp_path / "runs/cv"
    command = [sys.executable, "-m", "convsmith.cli", *CROSSVAL, "--name", "cv", "--backend", "ray", "--jobs", "2"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | ALONE | {"RAY_ADDRESS": f"127.0.0.1:{PORT}"}, stdout=subprocess.PIPE
    )
    wait_for(lambda: (study / "folds/1/metrics.csv").exists())
    os.kill(task_workers(cluster)[0], signal.SIGKILL)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    assert found(study) == found(reference)
    for fold in "123":
        log = (study / "folds" / fold / "log.txt").read_text(encoding="utf-8")
        assert log.count(" finished: ") == 1, "a fold ran twice to its end"


def test_no_cluster_at_the_address_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "convsmith.cli", *CROSSVAL, "--name", "cv", "--backend", "ray"]
    environment = os.environ | ALONE | {"RAY_ADDRESS": "127.0.0.1:1"}
    refused = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 2
    assert "no Ray cluster answers at '127.0.0.1:1'" in refused.stderr
    assert not (tmp_path / "runs/cv").exists()
