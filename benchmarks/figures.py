"""The figures that the README quotes of whole commands: start-up, memory, digits, CIFAR-10.

    python benchmarks/figures.py CIFAR10_PARQUET_FOLDER start          second start to first batch, in seconds
    python benchmarks/figures.py CIFAR10_PARQUET_FOLDER memory         peak memory of training simple-cnn, in MB
    python benchmarks/figures.py CIFAR10_PARQUET_FOLDER digits         seconds and test accuracy of preset digits
    python benchmarks/figures.py CIFAR10_PARQUET_FOLDER baseline       seconds and test accuracy on CIFAR-10
    python benchmarks/figures.py CIFAR10_PARQUET_FOLDER strong         the same of preset strong; half an hour

Each writes docs/results/<figure>.json with the command that it ran.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
FIRST_BATCH = """
import sys
from convsmith.training import setup
from convsmith.config import compose
from convsmith.data.dataset import open_dataset
config = compose(None, None, {"data.source": sys.argv[1]})
train = open_dataset(config.data).train
assert train.gather(range(128)).shape == (128, 32, 32, 3)
"""


def train(folder: str, *flags: str, runs: str) -> list[str]:
    command = ["train", "--data", folder, *flags, "--track.wandb", "off", "--name", "one"]
    subprocess.run([sys.executable, "-m", "convsmith.cli", *command, "--runs-dir", runs], check=True)
    return command


def shown(command: list[str]) -> str:
    """The command as a reader can repeat it: the data's folder by what it is, not by where it lies here."""
    words = ["CIFAR10_PARQUET_FOLDER" if "/" in word else word for word in command]
    return " ".join(["convsmith", *words])


def start(folder: str) -> dict[str, object]:
    times = []
    for _ in range(6):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", FIRST_BATCH, folder], check=True)
        times.append(time.perf_counter() - began)
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    torch_alone = time.perf_counter() - began
    return {"seconds": statistics.median(times[1:]), "all": times[1:], "import_torch_alone": torch_alone}


def memory(folder: str) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as runs:
        command = train(folder, "--epochs", "1", "--augment.hflip", "--augment.shift", "4", runs=runs)
    return {"command": shown(command), "peak_megabytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024}


def preset(folder: str, name: str) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as runs:
        began = time.perf_counter()
        command = train(folder, "--preset", name, runs=runs)
        seconds = time.perf_counter() - began
        run = f"{runs}/one"
        subprocess.run([sys.executable, "-m", "convsmith.cli", "evaluate", run, "--split", "test"], check=True)
        test = json.loads(Path(run, "evaluation-test.json").read_text())
        summary = json.loads(Path(run, "summary.json").read_text())
    return {
        "command": shown(command),
        "process_seconds": seconds,
        "training_seconds": summary["seconds"],
        "images_per_second": summary["images_per_second"],
        "epochs": summary["epochs"],
        "best_epoch": summary["best_epoch"],
        "val_accuracy": summary["val"]["accuracy"],
        "test_accuracy": test["accuracy"],
        "test_images": test["n"],
        "cores": os.cpu_count(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("figure", choices=["start", "memory", "digits", "baseline", "strong"])
    args = parser.parse_args()
    if args.figure == "start":
        result = start(args.folder)
    elif args.figure == "memory":
        result = memory(args.folder)
    else:
        result = preset("digits" if args.figure == "digits" else args.folder, args.figure)
    print(json.dumps(result, indent=2))
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{args.figure}.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
