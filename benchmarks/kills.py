"""Stop a training by signals at random moments and by full disks, resume it, and compare it with an undisturbed run.

    python benchmarks/kills.py [--runs 20] [--kills 3] [--disks 12] [--seed 0]

Unlike the suite's seeded kills at chosen steps these come from a clock, so they hit anything: decoding, a step, a
validation, a checkpoint half written. Two signals of three are SIGKILL, the others SIGTERM, SIGHUP or SIGINT. The
disks are file systems in memory, from too small for anything to almost large enough; each is enlarged before the run is
resumed (needs root; left out otherwise). Writes docs/results/kills.json, and ends with exit code 1 where a run differs;
an error of more than a line at a full disk is an AssertionError.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from convsmith.training import checkpoint

RESULT = Path(__file__).resolve().parents[1] / "docs/results/kills.json"
FLAGS = (
    "train --name run --epochs 6 --batch-size 32 --train.threads 1 --train.layout contiguous --train.log_every 2 "
    "--train.checkpoint_minutes 0 --train.ema 0.9 --train.patience 3 --schedule.name plateau --schedule.patience 0 "
    "--optim.name sgd --lr 0.05 --model.dropout 0.1 --augment.shift 1 --augment.mixup 0.4 --track.wandb off"
)
SIGNALS = [signal.SIGKILL] * 6 + [signal.SIGTERM, signal.SIGHUP, signal.SIGINT]
CHECKPOINT = "runs/run/checkpoints/last.safetensors"


def convsmith(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "convsmith.cli", *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def go_on(folder: Path) -> subprocess.Popen[str]:
    """Start the training in `folder`, or resume it where it had started."""
    started = (folder / "runs/run/config.yaml").exists()
    return convsmith(folder, *(("resume", "runs/run") if started else FLAGS.split()))


def same(folder: Path, whole: Path) -> bool:
    """Whether every tensor of the last checkpoint is that of the undisturbed run."""
    (tensors, _), (expected, _) = checkpoint.read(folder / CHECKPOINT), checkpoint.read(whole / CHECKPOINT)
    return tensors.keys() == expected.keys() and all(
        tensors[name].numpy().tobytes() == expected[name].numpy().tobytes() for name in expected
    )


def killed(folder: Path, rng: random.Random, kills: int, seconds: float) -> Counter[str]:
    """Train in `folder` with `kills` interruptions, and then to the end; returns the signals that hit."""
    sent: Counter[str] = Counter()
    for _ in range(kills):
        process = go_on(folder)
        time.sleep(rng.uniform(0.3, 1.0) * seconds)
        if process.poll() is None:
            sent[(number := rng.choice(SIGNALS)).name] += 1
            process.send_signal(number)
        process.communicate()
    assert go_on(folder).wait() == 0
    return sent


@contextmanager
def disk(folder: Path, kilobytes: int) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def filled(folder: Path, kilobytes: int) -> str | None:
    """Train on a disk of this size, which is then enlarged, and resume; returns the error, None if there was room."""
    process = go_on(folder)
    _, error = process.communicate()
    if process.returncode != 0:
        lines = error.strip().splitlines()
        assert process.returncode in (1, 2), error
        assert lines, error
        assert not any("Traceback" in line for line in lines), error
    subprocess.run(["mount", "-o", "remount,size=1g", folder], check=True)
    assert go_on(folder).wait() == 0
    return None if process.returncode == 0 else lines[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--disks", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, sent = random.Random(args.seed), Counter[str]()
    result: dict[str, Any] = {
        "machine": {"python": platform.python_version(), "platform": platform.platform(), "cores": os.cpu_count()}
    }
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place, "whole")
        whole.mkdir()
        began = time.perf_counter()
        assert convsmith(whole, *FLAGS.split()).wait() == 0
        seconds = time.perf_counter() - began
        differing = 0
        for number in range(args.runs):
            folder = Path(place, str(number))
            folder.mkdir()
            sent += killed(folder, rng, args.kills, seconds)
            differing += not (equal := same(folder, whole))
            print(
                f"run {number + 1}: {'identical' if equal else 'DIFFERENT'}, {sent.total()} signals so far", flush=True
            )
        result["signals"] = {"runs": args.runs, "sent": dict(sent), "differing": differing}
        size = sum(file.stat().st_size for file in (whole / "runs").rglob("*") if file.is_file()) // 1000
        errors: list[str] = []
        different = 0
        for number in range(args.disks if os.geteuid() == 0 else 0):
            folder = Path(place, f"disk-{number}")
            folder.mkdir()
            with disk(folder, kilobytes := 16 + size * number // args.disks):
                if (error := filled(folder, kilobytes)) is not None:
                    errors.append(re.sub(r"'[^']*'", "'...'", error))
                    different += not same(folder, whole)
                    print(f"disk of {kilobytes:,} kB: {error}", flush=True)
        result["disks"] = {"full": len(errors), "differing": different, "errors": sorted(set(errors))}
    print(json.dumps(result, indent=2))
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sys.exit(differing + different > 0)


if __name__ == "__main__":
    main()
