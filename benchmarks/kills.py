"""Kill a training with SIGKILL at random moments, resume it, and compare every tensor with an undisturbed run.

    python benchmarks/kills.py [--runs 20] [--kills 3] [--seed 0]

Unlike the suite's seeded kills at chosen steps these come from a clock, so they hit anything: decoding, a step,
a validation, a checkpoint half written. Ends with exit code 1 where a run differs.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from convsmith.training import checkpoint

FLAGS = (
    "train --name run --epochs 6 --batch-size 32 --train.threads 1 --train.layout contiguous --train.log_every 2 "
    "--train.checkpoint_minutes 0 --train.ema 0.9 --train.patience 3 --schedule.name plateau --schedule.patience 0 "
    "--optim.name sgd --lr 0.05 --model.dropout 0.1 --augment.shift 1 --augment.mixup 0.4 --track.wandb off"
)


def convsmith(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "convsmith.cli", *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    differing, kills = 0, 0
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "whole")
        whole.mkdir()
        began = time.perf_counter()
        assert convsmith(whole, *FLAGS.split()).wait() == 0
        seconds = time.perf_counter() - began
        expected, _ = checkpoint.read(whole / "runs/run/checkpoints/last.safetensors")
        for number in range(args.runs):
            place = Path(folder, str(number))
            place.mkdir()
            for _ in range(args.kills):
                started = (place / "runs/run/config.yaml").exists()
                process = convsmith(place, *(("resume", "runs/run") if started else FLAGS.split()))
                time.sleep(rng.uniform(0.3, 1.0) * seconds)
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                    kills += 1
                process.wait()
            started = (place / "runs/run/config.yaml").exists()
            assert convsmith(place, *(("resume", "runs/run") if started else FLAGS.split())).wait() == 0
            tensors, _ = checkpoint.read(place / "runs/run/checkpoints/last.safetensors")
            same = tensors.keys() == expected.keys() and all(
                tensors[name].numpy().tobytes() == expected[name].numpy().tobytes() for name in expected
            )
            differing += not same
            print(f"run {number + 1}: {'identical' if same else 'DIFFERENT'}, {kills} kills so far", flush=True)
    print(f"{args.runs} runs, {kills} kills, {differing} differing")
    sys.exit(differing > 0)


if __name__ == "__main__":
    main()
