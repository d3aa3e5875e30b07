"""How long commands go on after a signal that comes while they decode an image that takes seconds.

    python benchmarks/signals.py

`data check`, `train`, `predict` and `explain` get SIGTERM and SIGINT, and `Run.predict` in Python SIGINT, while they
decode copies of a file of each slow format from tests/data/hostile_images.py. Each is a copy (fork) of a process that
has imported everything; the signal comes DELAY seconds after the first decoder has begun. Linux alone. Ends with exit
code 1 where one takes more than 2 s of the clock, or has another exit code than 128 and the signal. Writes
docs/results/signals.json.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import imagehash  # noqa: F401 (what the commands import)
import PIL
import torch  # noqa: F401
from hostile_images import convsmith, large, make

import convsmith as package
from convsmith import cli
from convsmith.data import decode

RESULT = Path(__file__).resolve().parents[1] / "docs" / "results" / "signals.json"
SECONDS = 2.0
DELAY = 0.3
COPIES = 8  # of the file in each of two classes, so that no decoder is done before the signal comes
#: The slowest of the formats; the decoder of JPEG 2000 keeps Python's lock.
FILES = "tiles-16.jp2 key-110.png scans-most-90.jpg palette-134.gif runs-16.bmp turned-90.tif".split()


class Ended(NamedTuple):
    """The end of a process after a signal: seconds of the clock, and of the processor in all threads; exit code."""

    seconds: float
    processor: float
    code: int


def told(work: Callable[[], object], number: int, said: Path) -> Ended:
    """What `work` does in a copy of this process when the signal comes."""
    heard, say = os.pipe()
    if (child := os.fork()) == 0:
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's & ignores
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 1)
            os.dup2(1, 2)
            raster = decode.Raster

            def begun(*arguments: Any) -> Any:
                os.write(say, b".")
                return raster(*arguments)

            decode.Raster = begun  # type: ignore[assignment, misc]
            work()
        except KeyboardInterrupt:
            os._exit(128 + signal.SIGINT)
        finally:
            os._exit(99)
    os.close(say)
    assert os.read(heard, 1), f"it ended before it decoded: {said.read_text()}"
    time.sleep(DELAY)
    ticks = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[11:13]  # user and system, proc(5)
    spent, began = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"), time.monotonic()
    os.kill(child, number)
    _, status, usage = os.wait4(child, 0)
    seconds = time.monotonic() - began
    os.close(heard)
    return Ended(seconds, usage.ru_utime + usage.ru_stime - spent, os.waitstatus_to_exitcode(status))


def command(*arguments: str) -> Callable[[], object]:
    return lambda: os._exit(cli.main(arguments))  # as `cli.run` does


def works(data: Path, runs: Path) -> dict[str, Callable[[], object]]:
    run = str(runs / "run")
    images = sorted(map(str, (data / "a").iterdir()))
    return {
        "data check": command("data", "check", str(data)),
        "train": command("train", "--data", str(data), "--runs-dir", str(runs), "--epochs", "1"),
        "predict": command("predict", run, str(data)),
        "explain": command("explain", run, *images),
        "explain --figure": command("explain", run, images[0], "--figure", "feature-maps"),
        "Run.predict": lambda: package.load(run).predict(images),
    }


def main() -> None:
    os.environ["WANDB_MODE"] = "disabled"
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["CONVSMITH_CACHE"] = str(folder / "cache")
        assert convsmith("train", "--name", "run", "--epochs", "1", "--runs-dir", str(folder / "runs")).code == 0
        for name in FILES:
            data = folder / name
            make(file := data / "a" / f"0-{name}", large()[name])
            (data / "b").mkdir()
            for number in range(1, COPIES):
                os.link(file, data / "a" / f"{number}-{name}")
            for number in range(COPIES):
                os.link(file, data / "b" / f"{number}-{name}")
            for verb, work in works(data, folder / "runs").items():
                for number in (signal.SIGTERM, signal.SIGINT)[verb == "Run.predict" :]:
                    end = told(work, number, folder / "said")
                    rows.append({"command": verb, "signal": number.name, "file": name})
                    rows[-1] |= {name: round(value, 2) for name, value in end._asdict().items()}
                    print(json.dumps(rows[-1]), flush=True)
            with suppress(OSError):
                file.unlink()
    other = [row for row in rows if row["code"] != 128 + signal.Signals[row["signal"]]]
    late = [row for row in rows if row["seconds"] > SECONDS]
    result = {
        "command": "python benchmarks/signals.py",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Pillow {PIL.__version__}",
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "signals": len(rows),
        "within_two_seconds": len(rows) - len(late),
        "most_seconds": max(row["seconds"] for row in rows),
        "most_processor_seconds": max(row["processor"] for row in rows),
        "other_exit_codes": len(other),
        "each": rows,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in result.items() if key != "each"}))
    sys.exit(bool(late or other))


if __name__ == "__main__":
    main()
