"""5 folds of simple-cnn: two jobs at once (a thread each) against one after the other (all threads). Whole commands.

    python benchmarks/jobs.py CIFAR10_PARQUET_FOLDER [--rounds 3]

In alternation; the medians' ratio counts. Then the same two jobs at once are compared with one at a time at
one thread: they must find the same to the last bit. Writes docs/results/jobs.json. Some 10 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULT = Path(__file__).resolve().parents[1] / "docs" / "results" / "jobs.json"
SIZE = ["--data.limit", "10000", "--epochs", "4"]


def crossval(folder: str, runs: str, name: str, *flags: str) -> tuple[float, list[dict[str, object]]]:
    command = ["crossval", "--data", folder, *SIZE, "--folds", "5", "--track.wandb", "off", *flags]
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "convsmith.cli", *command, "--name", name, "--runs-dir", runs],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    seconds = time.perf_counter() - began
    record = json.loads(Path(runs, name, "crossval.json").read_text(encoding="utf-8"))
    return seconds, [{k: v for k, v in fold.items() if k != "seconds"} for fold in record["per_fold"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    one, two = [], []
    with tempfile.TemporaryDirectory() as runs:
        crossval(args.folder, runs, "warm-up", "--epochs", "1")  # decodes the images, measures the layouts
        for number in range(args.rounds):
            one.append(crossval(args.folder, runs, f"one-{number}")[0])
            seconds, at_once = crossval(args.folder, runs, f"two-{number}", "--jobs", "2")
            two.append(seconds)
        _, in_turn = crossval(args.folder, runs, "in-turn", "--train.threads", "1")
    result = {
        "command": "convsmith crossval --data CIFAR10_PARQUET_FOLDER " + " ".join(SIZE) + " --folds 5 --jobs 2",
        "one_after_the_other_seconds": one,
        "two_at_once_seconds": two,
        "ratio": statistics.median(two) / statistics.median(one),
        "bit_for_bit_the_same_as_in_turn_at_one_thread": at_once == in_turn,
        "cores": os.cpu_count(),
    }
    print(json.dumps(result, indent=2))
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
