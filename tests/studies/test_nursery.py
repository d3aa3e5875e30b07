"""Workers that are forked from a warmed process answer, stop and die as fresh ones do."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from convsmith.studies import nursery

pytestmark = pytest.mark.skipif(not nursery.CAN_FORK, reason="workers are forked on Linux alone")


@pytest.fixture(scope="module", autouse=True)
def _closed() -> Iterator[None]:
    yield
    nursery.close()


@pytest.mark.parametrize("forked", [True, False])
def test_a_worker_answers_and_ends_with_its_input(tmp_path: Path, forked: bool) -> None:
    with (tmp_path / "log").open("ab") as log:
        worker = nursery.start(log, forked)
        job = {"kind": "fold", "name": "x", "directory": str(tmp_path / "none"), "folds_file": str(tmp_path / "folds")}
        worker.stdin.write(json.dumps(job | {"index": 0, "config": {}, "data_hash": ""}) + "\n")
        worker.stdin.flush()
        assert "folds" in json.loads(worker.stdout.readline())["failed"]
        worker.stdin.close()
        assert worker.stdout.read() == ""
        worker.wait()
        worker.stdout.close()
    assert (tmp_path / "log").read_text() == ""


def test_a_worker_that_is_killed_ends_its_output_and_its_number_is_not_given_away(tmp_path: Path) -> None:
    with (tmp_path / "log").open("ab") as log:
        worker, other = nursery.start(log, True), nursery.start(log, True)
        assert isinstance(worker, nursery._Forked)
        os.kill(worker._pid, signal.SIGKILL)
        assert worker.stdout.read() == ""
        worker.terminate()  # of nobody else
        for one in (worker, other):
            one.stdin.close()
        assert other.stdout.read() == ""
        for one in (worker, other):
            one.stdout.close()


def test_where_the_warmed_process_has_died_a_worker_is_a_fresh_process(tmp_path: Path) -> None:
    with (tmp_path / "log").open("ab") as log:
        nursery._nursery()._process.kill()
        nursery._nursery()._process.wait()
        worker = nursery.start(log, True)
        assert not isinstance(worker, nursery._Forked)
        worker.stdin.close()
        assert worker.stdout.read() == ""
        worker.wait()
        worker.stdout.close()
    nursery.close()
