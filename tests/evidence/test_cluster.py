"""The same jobs on a real Ray cluster, started on this machine; a worker is killed in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from evidence.small_study import CROSSVAL, found, wait_for

pytest.importorskip("ray", reason="needs the extra [cluster]")
# No token: it would lie in the user's home, where another cluster of this machine may have put its own.
ALONE = {"RAY_AUTH_MODE": "disabled", "RAY_DISABLE_USAGE_STATS": "1", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
PORT = 20_000 + os.getpid() % 10_000


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    ray = Path(sys.executable).with_name("ray")
    folder = tmp_path_factory.mktemp("ray")
    environment = os.environ | ALONE
    start = [ray, "start", "--head", "--num-cpus=2", f"--port={PORT}", "--include-dashboard=false"]
    start += ["--object-store-memory=100000000", f"--temp-dir=/tmp/ray-{os.getpid()}"]
    subprocess.run([*map(str, start)], check=True, capture_output=True, env=environment, cwd=folder)
    yield f"127.0.0.1:{PORT}"
    subprocess.run([str(ray), "stop", "--force"], check=True, capture_output=True)


def task_workers() -> list[int]:
    """Ray names a worker's process after the task that it runs."""
    listed = subprocess.run(["pgrep", "-f", "ray::fold"], capture_output=True, text=True, check=False)
    return [int(pid) for pid in listed.stdout.split()]


def test_a_cluster_finds_the_same_and_a_killed_worker_loses_nothing(
    cluster: str, reference: Path, tmp_path: Path
) -> None:
    study = tmp_path / "runs/cv"
    command = [*CROSSVAL, "--name", "cv", "--backend", "ray", "--jobs", "2"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | ALONE | {"RAY_ADDRESS": cluster}, stdout=subprocess.PIPE
    )
    wait_for(lambda: (study / "folds/1/metrics.csv").exists())
    os.kill(task_workers()[0], signal.SIGKILL)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    assert found(study) == found(reference)
    for fold in "123":
        log = (study / "folds" / fold / "log.txt").read_text(encoding="utf-8")
        assert log.count(" finished: ") == 1, "a fold ran twice to its end"


def test_no_cluster_at_the_address_is_one_line(tmp_path: Path) -> None:
    command = [*CROSSVAL, "--name", "cv", "--backend", "ray"]
    environment = os.environ | ALONE | {"RAY_ADDRESS": "127.0.0.1:1"}
    refused = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 2
    assert "no Ray cluster answers at '127.0.0.1:1'" in refused.stderr
    assert not (tmp_path / "runs/cv").exists()
