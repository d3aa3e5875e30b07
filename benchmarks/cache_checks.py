"""What it costs to compare the cache of decoded images with its checksums, as a share of a start of `train`.

    python benchmarks/cache_checks.py CIFAR10_PARQUET_FOLDER PHOTOGRAPHS_FOLDER [--starts 9]

A start is all from the first import, torch included, to the first step of the training, with the images in the cache
and the layout known. Seconds of the processor are compared beside those of the clock, since they depend less on what
else the machine does. The medians go to docs/results/cache_checks.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

RESULT = Path(__file__).resolve().parents[1] / "docs" / "results" / "cache_checks.json"
FIRST_STEP = """
import json, sys, time
from pathlib import Path

def now():
    return time.perf_counter(), time.process_time()

began, checks = now(), []

from convsmith.config import compose
from convsmith.data import cache
from convsmith.runtime import Interrupts
from convsmith.training import loop, setup

def timed(folder, source, rules):
    before = now()
    images = found(folder, source, rules)
    checks.append([after - one for after, one in zip(now(), before)] + [getattr(images, "pixels", b"").nbytes])
    return images

found, cache._found = cache._found, timed
settings = {"data.source": sys.argv[1], "train.device": "cpu", "train.log_every": 1, "track.wandb": "off"}
experiment = setup.start(setup.prepare(compose(None, None, settings)), Path(sys.argv[2]))
next(loop.epochs(experiment, Interrupts()))
wall, cpu = (after - one for after, one in zip(now(), began))
(check_wall, check_cpu, size), = checks
print(json.dumps({"bytes": size, "start_wall": wall, "start_cpu": cpu, "wall": check_wall, "cpu": check_cpu}))
"""


def start(folder: str, runs: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", FIRST_STEP, folder, runs], stdout=subprocess.PIPE, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar10")
    parser.add_argument("photographs")
    parser.add_argument("--starts", type=int, default=9)
    args = parser.parse_args()
    result = {}
    with tempfile.TemporaryDirectory() as runs:
        for name in ("cifar10", "photographs"):
            folder = getattr(args, name)
            train = ["train", "--data", folder, "--epochs", "1", "--track.wandb", "off", "--runs-dir", runs]
            command = [sys.executable, "-m", "convsmith.cli", *train, "--train.device", "cpu"]
            subprocess.run([*command, "--data.limit", "100"], stdout=subprocess.DEVNULL, check=True)
            measured = [start(folder, runs) for _ in range(args.starts + 1)][1:]  # the first one chooses the layout
            medians = {key: statistics.median(one[key] for one in measured) for key in measured[0]}
            for key in ("wall", "cpu"):
                medians[f"share_{key}"] = statistics.median(one[key] / one[f"start_{key}"] for one in measured)
            result[name] = medians
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(RESULT.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
