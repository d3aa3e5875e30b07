"""A real `convsmith serve` of a small trained run, for the tests of the page and of the endpoint."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

START = 240.0  # seconds: importing torch takes many on a busy machine


@dataclass(frozen=True)
class Server:
    """`temporary` is the only folder for temporary files that the process knows."""

    url: str
    port: int
    process: subprocess.Popen[str]
    run: Path
    temporary: Path


def trained(folder: Path, **settings: Any) -> Path:
    """A run on the digits, trained for an epoch."""
    import convsmith

    convsmith.train(
        **{"data": "digits", "epochs": 1, **settings},
        name="served",
        runs_dir=folder / "runs",
        device="cpu",
        train={"threads": 1},
        track={"wandb": "off"},
    )
    return folder / "runs" / "served"


def serving(folder: Path) -> Iterator[Server]:
    for package in ("starlette", "uvicorn", "python_multipart"):
        pytest.importorskip(package, reason=f"needs {package}: pip install 'convsmith[serve]'")
    run, temporary = trained(folder), folder / "tmp"
    temporary.mkdir()
    log = folder / "log.txt"
    command = [sys.executable, "-m", "convsmith.cli", "serve", str(run), "--port", "0"]
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, text=True, cwd=folder, env=os.environ | {"TMPDIR": str(temporary)}
        )
    try:
        deadline = time.monotonic() + START
        while not (found := re.search(r"page +(http://127\.0\.0\.1:(\d+)/)", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield Server(found.group(1), int(found.group(2)), process, run, temporary)
    finally:
        process.terminate()
        process.wait(timeout=30)
    assert "Traceback" not in log.read_text()
    assert "UserWarning" not in log.read_text()
