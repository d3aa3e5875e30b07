"""Whether a training in bfloat16 is as accurate as one in float32, and how much faster: pairs of trainings on CIFAR-10.

    python benchmarks/precision.py CIFAR10 [--pairs 10] [--epochs 5] [--speeds ANTS_BEES WEIGHTS.safetensors]

CIFAR10 holds the Parquet files. A pair are two trainings of one seed by the preset `baseline` on the 45,000 train
images, as the command line runs them, one in each precision; both are scored on the 5,000 val images and the 10,000
test images, of which nothing is chosen here but the epoch, by val. What is compared is the accuracy on all 15,000, by
the paired t-test and its interval, against a margin of 0.3 points. Each finished training is written to
docs/results/precision.json; a run that was stopped goes on with the missing ones. With --speeds, trainings of three
networks are timed too, float32 and bfloat16 in turn: the images per second of their last epoch.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import machine

from convsmith.files import write_json
from convsmith.studies.statistics import paired_comparison

OUT = Path(__file__).resolve().parents[1] / "docs/results/precision.json"
PRECISIONS = ("float32", "bfloat16")
MARGIN = 0.003
ROUNDS = 3


def trained(runs: Path, flags: list[str]) -> Path:
    """The directory of a run that the command line has trained."""
    common = ["--name", "run", "--runs-dir", str(runs), "--track.wandb", "off"]
    command = [sys.executable, "-m", "convsmith", "train", *flags, *common]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return runs / "run"


def last_rate(run: Path) -> float:
    """Images per second of the last epoch."""
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return float(list(csv.DictReader(file))[-1]["images_per_second"])


def training(cifar: Path, seed: int, precision: str, epochs: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--preset", "baseline", "--data", str(cifar), "--data.val_fraction", "0.1", "--seed", str(seed)]
        flags += ["--epochs", str(epochs)]
        run = trained(Path(folder), [*flags, "--train.precision", precision])
        evaluate = [sys.executable, "-m", "convsmith", "evaluate", str(run), "--split", "test"]
        subprocess.run(evaluate, check=True, stdout=subprocess.DEVNULL)
        scores = {name: json.loads((run / f"evaluation-{name}.json").read_text()) for name in ("val", "test")}
        count = sum(score["n"] for score in scores.values())
        return {
            "seed": seed,
            "precision": precision,
            **{name: score["accuracy"] for name, score in scores.items()},
            "accuracy": sum(score["accuracy"] * score["n"] for score in scores.values()) / count,
            "images": count,
            "seconds": json.loads((run / "summary.json").read_text())["seconds"],
            "images_per_second": last_rate(run),
        }


def compared(trainings: list[dict[str, Any]]) -> dict[str, Any]:
    """bfloat16 against float32, of the seeds that were trained in both."""
    by = {(one["seed"], one["precision"]): one for one in trainings}
    seeds = sorted({seed for seed, _ in by if all((seed, name) in by for name in PRECISIONS)})
    if len(seeds) < 2:
        return {}
    rounded, exact = ([by[seed, name]["accuracy"] for seed in seeds] for name in ("bfloat16", "float32"))
    found = paired_comparison(rounded, exact, test_share=0, margin=MARGIN)
    low, high = found.low, found.high
    return {
        "pairs": len(seeds),
        "accuracy": {"float32": statistics.mean(exact), "bfloat16": statistics.mean(rounded)},
        "difference": found.mean_difference,
        "ci95": [low, high],
        "margin": MARGIN,
        "p_equivalent": found.p_equivalent,
        "within_margin": low is not None and high is not None and low > -MARGIN and high < MARGIN,
        "speed": statistics.median(
            by[seed, "bfloat16"]["images_per_second"] / by[seed, "float32"]["images_per_second"] for seed in seeds
        ),
    }


def speeds(cifar: Path, photographs: Path, weights: Path) -> dict[str, Any]:
    """Images per second in each precision, and their ratios within a round."""
    small = ["--data", str(cifar), "--data.image_size", "32"]
    # Of the finetuning the last two stages are trained from the first epoch on, so that it is of images alone.
    finetune = ["--preset", "finetune", "--data", str(photographs), "--model", "timm/tf_efficientnet_lite0"]
    finetune += ["--transfer.weights", str(weights), "--transfer.unfreeze", "{after: 1, every: 1, stages: 2, most: 4}"]
    arms = {
        "simple-cnn, 32 pixels, batch 128": [*small, "--preset", "baseline", "--epochs", "2", "--data.limit", "20000"],
        "resnet18, 32 pixels, batch 128": [
            *(*small, "--model", "torchvision/resnet18", "--transfer.weights", "none"),
            *("--epochs", "2", "--data.limit", "6000", "--batch-size", "128"),
        ],
        "finetune of tf_efficientnet_lite0, 224 pixels, batch 16": [*finetune, "--epochs", "3"],
    }
    rates: dict[str, dict[str, list[float]]] = {name: {kind: [] for kind in PRECISIONS} for name in arms}
    for number in range(ROUNDS):
        for name, flags in arms.items():
            for kind in PRECISIONS:
                with tempfile.TemporaryDirectory() as folder:
                    rate = last_rate(trained(Path(folder), [*flags, "--train.precision", kind]))
                rates[name][kind].append(rate)
                print(f"round {number + 1}  {name}  {kind:9} {rate:8,.0f} images/s", flush=True)
    return {
        name: {kind: statistics.median(values) for kind, values in of.items()}
        | {"ratio": statistics.median(b / f for f, b in zip(of["float32"], of["bfloat16"], strict=True))}
        for name, of in rates.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar", type=Path)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--speeds", type=Path, nargs=2, metavar=("ANTS_BEES", "WEIGHTS"))
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    new: dict[str, Any] = {"epochs": args.epochs, "trainings": []}
    result: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else new
    if result["epochs"] != args.epochs:
        parser.error(f"{args.out} holds trainings of {result['epochs']} epochs")
    result.setdefault("machine", machine())
    done = {(one["seed"], one["precision"]) for one in result["trainings"]}
    for seed in range(args.pairs):
        for kind in PRECISIONS if seed % 2 else PRECISIONS[::-1]:  # so that neither is always the first
            if (seed, kind) in done:
                continue
            result["trainings"].append(one := training(args.cifar, seed, kind, args.epochs))
            result["comparison"] = compared(result["trainings"])
            write_json(args.out, result)
            print(f"seed {seed}  {kind:9} {100 * one['accuracy']:.2f}%  {one['seconds']:.0f} s", flush=True)
    if args.speeds:
        result["images_per_second"] = speeds(args.cifar, *args.speeds)
        write_json(args.out, result)
    print(json.dumps({key: value for key, value in result.items() if key != "trainings"}, indent=2))


if __name__ == "__main__":
    main()
