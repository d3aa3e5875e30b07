"""What the tests of studies share: one small cross-validation, and looking at processes."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forked import Command

FLAGS = (
    "--data digits --data.limit 300 --epochs 4 --batch-size 16 --train.threads 1 --train.layout contiguous "
    "--track.wandb off --model.dropout 0.1 --augment.shift 1"
).split()
CROSSVAL = ["crossval", *FLAGS, "--folds", "3"]
#: Code before a command that makes it run its jobs itself, so that no worker has to start.
JOBS_HERE = """
from convsmith.studies import backends, runner
backends.BACKENDS["local"] = runner.run_here
"""


def found(study: Path) -> list[dict[str, Any]]:
    """What the folds found, without the time that they took."""
    record = json.loads((study / "crossval.json").read_text(encoding="utf-8"))
    return [{key: value for key, value in fold.items() if key != "seconds"} for fold in record["per_fold"]]


def wait_for(what: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def workers_of(command: Command) -> list[int]:
    """The worker processes of a running command."""
    listed = subprocess.run(["pgrep", "-f", "-P", str(command.pid), "studies.worker"], capture_output=True, text=True)
    return [int(pid) for pid in listed.stdout.split()]
