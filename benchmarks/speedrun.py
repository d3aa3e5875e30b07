"""Time to 94% on CIFAR-10: presets of convsmith against airbench94_muon on the same machine in the same precision.

    python benchmarks/speedrun.py CIFAR10_PARQUET_FOLDER WORK seed speedrun 0 [FLAG ...]  one training from seed 0
    python benchmarks/speedrun.py CIFAR10_PARQUET_FOLDER WORK airbench AIRBENCH             a whole training of airbench
    python benchmarks/speedrun.py CIFAR10_PARQUET_FOLDER WORK steps AIRBENCH speedrun       steps of both, in turns

Each piece takes some minutes and adds its result to docs/results/speedrun.json, whose summary is made anew; pieces may
be run in any order, a training that was stopped goes on, and a seed that is there already is not run again. AIRBENCH is
airbench94_muon.py as it is downloaded from github.com/KellerJordan/cifar10-airbench; what is CUDA's in it is replaced
as it is loaded (PATCHES), and its network runs under bfloat16 autocast, or in float32 with --precision float32.

convsmith runs as its users run it: `train`, with the FLAGs, then `evaluate --split test`. Training seconds are those of
summary.json. Accuracies are on the 10,000 test images: `mirrored` as the model predicts (the mean over an image and its
mirror image), `plain` without. airbench averages over six views.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from machine import machine

from convsmith.config import compose, read_run_config
from convsmith.contracts import size_word
from convsmith.prediction.predictor import load_predictor
from convsmith.training import setup
from convsmith.training.feed import train_batches
from convsmith.training.step import step

OUT = Path(__file__).resolve().parents[1] / "docs" / "results" / "speedrun.json"
AIRBENCH_STEPS = 200  # 8 epochs of 25 batches of 2,000

#: What is CUDA's or a whole program's in airbench94_muon.py, and what stands in its place here.
PATCHES = {
    "with open(sys.argv[0]) as f:\n    code = f.read()\n": "",
    "@torch.compile\n": "",
    'map_location=torch.device("cuda")': 'map_location="cpu"',
    "self.images.half()": "self.images.float()",
    "mod.half()": "mod.float()",
    "starter = torch.cuda.Event(enable_timing=True)": "starter = Event()",
    "ender = torch.cuda.Event(enable_timing=True)": "ender = Event()",
    "torch.cuda.synchronize()": "pass",
    "            step += 1\n": "            step += 1\n            after_step()\n",
}


class Event:
    """torch.cuda.Event on the CPU; each measured interval is kept, in seconds."""

    taken: ClassVar[list[float]] = []

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: Event) -> float:
        self.taken.append(end.at - self.at)
        return 1000 * self.taken[-1]


def images_of(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [N, 32, 32, 3] and labels int64 [N] of a Parquet file of CIFAR-10."""
    import pyarrow.parquet as pq
    from PIL import Image

    table = pq.read_table(next(folder.glob(f"*{split}*.parquet")))
    pixels = [np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB")) for row in table["img"].to_pylist()]
    return np.stack(pixels), table["label"].to_numpy()


def load_airbench(folder: Path, work: Path, script: Path, precision: str) -> dict[str, Any]:
    """The names of airbench94_muon.py, carried over to the CPU and to a precision, with its data beside it."""
    code = script.read_text(encoding="utf-8")
    for there, here in PATCHES.items():
        assert there in code, f"{script} is another version: it has no {there!r}"
        code = code.replace(there, here)
    data = work / "cifar10"
    data.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        if not (data / f"{split}.pt").exists():
            images, labels = map(torch.from_numpy, images_of(folder, split))
            torch.save({"images": images, "labels": labels, "classes": list(range(10))}, data / f"{split}.pt")
    names: dict[str, Any] = {"__name__": "airbench94_muon", "Event": Event, "after_step": lambda: None}
    exec(compile(code, str(script), "exec"), names)
    forward = names["CifarNet"].forward

    def in_precision(self: torch.nn.Module, *args: Any, **options: Any) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits: torch.Tensor = forward(self, *args, **options).float()
        return logits

    names["CifarNet"].forward = in_precision
    names["model"] = names["CifarNet"]().to(memory_format=torch.channels_last)
    return names


def airbench(folder: Path, work: Path, script: Path, precision: str) -> dict[str, Any]:
    """Train airbench94_muon whole."""
    names = load_airbench(folder, work, script, precision)
    seen: list[dict[str, Any]] = []
    names["print_training_details"] = lambda variables, is_final_entry: seen.append(dict(variables))
    with contextlib.chdir(work):
        names["main"](0, names["model"])
    accuracies = {"plain": seen[-2]["val_acc"], "six_views": seen[-1]["tta_val_acc"]}
    return {"precision": precision, "intervals": Event.taken, "seconds": sum(Event.taken), **accuracies}


class Times(NamedTuple):
    """Seconds by the clock, and of the processor by all threads of this process."""

    clock: float
    processor: float

    @classmethod
    def now(cls) -> Times:
        return cls(time.perf_counter(), time.process_time())

    def until_now(self) -> Times:
        return Times(*(end - start for start, end in zip(self, Times.now(), strict=True)))


class Enough(Exception):
    """All rounds are measured."""


def steps(folder: Path, work: Path, script: Path, preset: str, precision: str, rounds: int) -> dict[str, Any]:
    """Seconds of a step of airbench94_muon and of a preset's steps of each image size, in turns, as medians.

    Whole trainings follow by the number of steps; what each does once an epoch besides is left out for both. Seconds of
    the processor are given beside those of the clock: with one thread, they count little of what else runs.
    """
    settings = {"data.source": str(folder), "track.wandb": "off", "train.precision": precision}
    settings["train.layout"] = "channels_last"  # airbench's too
    prepared = setup.prepare(compose(preset, None, settings))
    with tempfile.TemporaryDirectory() as runs:
        experiment = setup.start(prepared, Path(runs))
    train, image_size = experiment.config.train, experiment.card.preprocessing.image_size
    epochs_of: dict[str, list[int]] = {}
    for epoch in range(train.epochs):
        epochs_of.setdefault(size_word(train.size_in(epoch, image_size)), []).append(epoch)
    batches = {size: train_batches(experiment)(epochs[0], 0) for size, epochs in epochs_of.items()}
    experiment.state.training_mode()
    taken: dict[str, list[Times]] = {"airbench94_muon": [], **{size: [] for size in batches}}
    began = Times.now()

    def ours() -> None:
        nonlocal began
        taken["airbench94_muon"].append(began.until_now())
        for size, of_size in batches.items():
            for _ in range(2):  # the first one after another size finds its memory cold
                began = Times.now()
                step(experiment.state, next(of_size), experiment.recipe)
            taken[size].append(began.until_now())
        if len(taken["airbench94_muon"]) > rounds:
            raise Enough
        began = Times.now()

    names = load_airbench(folder, work, script, precision)
    names["after_step"] = ours
    with contextlib.chdir(work), contextlib.suppress(Enough):
        names["main"](0, names["model"])
    number = {"airbench94_muon": AIRBENCH_STEPS}
    number |= {size: len(epochs) * experiment.steps for size, epochs in epochs_of.items()}
    of_step = {name: Times(*map(statistics.median, zip(*times[1:], strict=True))) for name, times in taken.items()}
    whole = {name: Times(*(number[name] * seconds for seconds in times)) for name, times in of_step.items()}
    theirs = whole.pop("airbench94_muon")
    ours_whole = Times(*map(sum, zip(*whole.values(), strict=True)))
    return {
        "preset": preset,
        "precision": precision,
        "threads": train.threads,
        "rounds": rounds,
        "step_seconds": {name: times.clock for name, times in of_step.items()},
        "step_processor_seconds": {name: times.processor for name, times in of_step.items()},
        "steps": {"airbench94_muon": AIRBENCH_STEPS, preset: sum(number.values()) - AIRBENCH_STEPS},
        "seconds": {"airbench94_muon": theirs.clock, preset: ours_whole.clock},
        "processor_seconds": {"airbench94_muon": theirs.processor, preset: ours_whole.processor},
        "ratio": theirs.clock / ours_whole.clock,
        "processor_ratio": theirs.processor / ours_whole.processor,
    }


def of_seed(folder: Path, work: Path, preset: str, seed: int, flags: list[str]) -> dict[str, Any]:
    """Train a preset by the command line, with flags of `train` beside it, and open the test split once."""
    run, program = work / f"{preset}-{seed}", [sys.executable, "-m", "convsmith.cli"]
    command = ["train", "--preset", preset, "--data", str(folder), "--seed", str(seed), "--track.wandb", "off"]
    command += ["--runs-dir", str(work), "--name", run.name, *flags]
    subprocess.run([*program, *(["resume", str(run)] if run.exists() else command)], check=True)
    subprocess.run([*program, "evaluate", str(run), "--split", "test"], check=True)
    summary = json.loads((run / "summary.json").read_text())
    predictor = load_predictor(run)
    predictor.model.mirror = False
    images, labels = images_of(folder, "test")
    plain = [prediction.label for prediction in predictor.predict(list(images), top_k=1)]
    names = [predictor.classes[label] for label in labels]
    return {
        "seed": seed,
        "flags": flags,
        "epochs": summary["epochs"],
        "training_seconds": summary["seconds"],
        "mirrored": json.loads((run / "evaluation-test.json").read_text())["accuracy"],
        "plain": float(np.mean([ours == theirs for ours, theirs in zip(plain, names, strict=True)])),
        "val_mirrored": (summary["val"] or {}).get("accuracy"),
        "precision": read_run_config(run / "config.yaml").train.precision,
    }


def summary(presets: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The mean accuracies of the seeds of each preset, and the median of their seconds."""
    found = {}
    for preset, by_seed in presets.items():
        seeds = list(by_seed.values())
        found[preset] = {
            "seeds": len(seeds),
            "mean_mirrored": statistics.mean(seed["mirrored"] for seed in seeds),
            "least_mirrored": min(seed["mirrored"] for seed in seeds),
            "mean_plain": statistics.mean(seed["plain"] for seed in seeds),
            "median_training_seconds": statistics.median(seed["training_seconds"] for seed in seeds),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("work", type=Path, help="for runs and airbench's copy of the data")
    kinds = parser.add_subparsers(dest="kind", required=True)
    seed = kinds.add_parser("seed")
    seed.add_argument("preset")
    seed.add_argument("seed", type=int)
    for kind in (kinds.add_parser("airbench"), measured := kinds.add_parser("steps")):
        kind.add_argument("script", type=Path)
        kind.add_argument("--precision", default="bfloat16", choices=["bfloat16", "float32"])
    measured.add_argument("preset")
    measured.add_argument("--rounds", type=int, default=7)
    args, flags = parser.parse_known_args()
    if flags and args.kind != "seed":
        parser.error(f"flags of train are for seeds alone: {' '.join(flags)}")
    here, folder, work = machine(), args.folder.resolve(), args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    found = json.loads(OUT.read_text()) if OUT.exists() else {"presets": {}}
    if args.kind == "seed":
        seeds = found["presets"].setdefault(args.preset, {})
        if str(args.seed) not in seeds:
            seeds[str(args.seed)] = of_seed(folder, work, args.preset, args.seed, flags) | {"load": here["load"]}
    elif args.kind == "airbench":
        result = airbench(folder, work, args.script.resolve(), args.precision)
        found.setdefault("airbench", []).append(result | {"load": here["load"]})
    else:
        result = steps(folder, work, args.script.resolve(), args.preset, args.precision, args.rounds)
        found.setdefault("steps", []).append(result | {"load": here["load"]})
    found["machine"], found["summary"] = here, summary(found["presets"])
    print(json.dumps(result if args.kind != "seed" else found["summary"], indent=2))
    OUT.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
