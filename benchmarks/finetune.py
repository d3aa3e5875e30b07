"""Accuracy over time of `finetune` and `linear-probe` beside fastai's fine_tune and the loop of PyTorch's tutorial.

    python benchmarks/finetune.py FOLDER WEIGHTS.safetensors [--peers PYTHON] [--seconds 300] [--only NAME...]

FOLDER has photographs in train/ and val/, WEIGHTS is a file of timm's tf_efficientnet_lite0, which all start from. Each
contestant is a whole process, one after the other, with an empty cache; time is from its start to the end of each of
its validations (convsmith: to its row in metrics.csv), and it is ended after `--seconds`. PYTHON is an interpreter with
fastai. The peers' settings are those of their own pages: fastai `fine_tune(12)` with aug_transforms, the tutorial SGD,
batches of 4, random resized crops. Writes docs/results/finetune.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

OUT = Path(__file__).resolve().parents[1] / "docs" / "results" / "finetune.json"
MODEL, SIZE, EPOCHS = "tf_efficientnet_lite0", 224, 12
ACCURACIES = (0.7, 0.8, 0.85, 0.9, 0.92, 0.94, 0.95)
Curve = list[tuple[float, float]]  # (seconds, accuracy) of each validation


def tensors_of(weights: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: value for name, value in load_file(weights).items() if not name.startswith("classifier.")}


def fastai(folder: Path, weights: Path, began: float) -> None:
    from fastai.vision.all import (
        Callback,
        ImageDataLoaders,
        Normalize,
        Recorder,
        Resize,
        accuracy,
        aug_transforms,
        vision_learner,
    )

    half = [0.5, 0.5, 0.5]
    data = ImageDataLoaders.from_folder(
        folder, valid="val", item_tfms=Resize(SIZE), batch_tfms=[*aug_transforms(), Normalize.from_stats(half, half)]
    )

    class Tell(Callback):
        order = Recorder.order + 1  # which knows the scores then

        def after_epoch(self) -> None:
            tell(began, float(self.recorder.values[-1][-1]))

    learner = vision_learner(data, MODEL, metrics=accuracy, pretrained=False, normalize=False, cbs=Tell())
    missing, _ = learner.model[0].model.load_state_dict(tensors_of(weights), strict=False)
    assert not missing, missing
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(EPOCHS)


def tutorial(folder: Path, weights: Path, began: float) -> None:
    import timm
    import torch
    from torchvision import datasets, transforms

    normal = [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    prepared = {
        "train": [transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip(), *normal],
        "val": [transforms.Resize(256), transforms.CenterCrop(SIZE), *normal],
    }
    loaders = {
        part: torch.utils.data.DataLoader(
            datasets.ImageFolder(folder / part, transforms.Compose(steps)),
            batch_size=4,
            shuffle=part == "train",
            num_workers=2,
        )
        for part, steps in prepared.items()
    }
    classes = len(loaders["val"].dataset.classes)
    model = timm.create_model(MODEL, num_classes=classes)
    missing, _ = model.load_state_dict(tensors_of(weights), strict=False)
    assert set(missing) == {"classifier.weight", "classifier.bias"}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    criterion = torch.nn.CrossEntropyLoss()
    for _ in range(25):
        model.train()
        for images, labels in loaders["train"]:
            optimizer.zero_grad()
            criterion(model(images), labels).backward()
            optimizer.step()
        scheduler.step()
        model.eval()
        with torch.no_grad():
            right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in loaders["val"])
        tell(began, right / len(loaders["val"].dataset))


def tell(began: float, accuracy: float) -> None:
    print(json.dumps([time.time() - began, accuracy]), flush=True)


def peer(name: str, python: str, folder: Path, weights: Path, seconds: float) -> Curve:
    command = [python, __file__, str(folder), str(weights), "--run", name, "--began", str(time.time())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        found, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        found, _ = process.communicate()
    return [tuple(json.loads(line)) for line in found.splitlines() if line.startswith("[")]


def convsmith(preset: str, flags: list[str], folder: Path, weights: Path, seconds: float) -> Curve:
    with tempfile.TemporaryDirectory() as place:
        command = ["train", "--preset", preset, "--model", f"timm/{MODEL}", "--name", "run", *flags]
        paths = ["--data", str(folder), "--transfer.weights", str(weights), "--data.cache", f"{place}/cache"]
        paths += ["--runs-dir", place]
        rows, curve, began = Path(place, "run", "metrics.csv"), Curve(), time.time()
        process = subprocess.Popen(
            [sys.executable, "-m", "convsmith.cli", *command, *paths, "--track.wandb", "off"],
            stdout=subprocess.DEVNULL,
        )
        while process.poll() is None and time.time() - began < seconds:
            time.sleep(0.05)
            header, *lines = rows.read_text().splitlines() if rows.exists() else ["val_accuracy"]
            column = header.split(",").index("val_accuracy")
            curve += [(time.time() - began, float(line.split(",")[column])) for line in lines[len(curve) :]]
        process.kill()
        process.wait()
        return curve


def time_to(curve: Curve, accuracy: float) -> float | None:
    return next((round(seconds, 1) for seconds, found in curve if found >= accuracy), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--peers", default=sys.executable)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--run", choices=["fastai", "tutorial"], help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        {"fastai": fastai, "tutorial": tutorial}[args.run](args.folder, args.weights, args.began)
        return
    from machine import machine

    where, kept = (args.folder, args.weights, args.seconds), ["--transfer.cache_stages", "true"]
    contestants = {
        "linear-probe": lambda: convsmith("linear-probe", [], *where),
        "finetune, stages kept": lambda: convsmith("finetune", kept, *where),
        "finetune": lambda: convsmith("finetune", [], *where),
        "fastai": lambda: peer("fastai", args.peers, *where),
        "tutorial": lambda: peer("tutorial", args.peers, *where),
    }
    record = json.loads(OUT.read_text()) if OUT.exists() and args.only else {"contestants": {}}
    record |= {"model": MODEL, "ended_after_seconds": args.seconds}
    for name, run in contestants.items():
        if args.only and name not in args.only:
            continue
        here, curve = machine(), run()
        record["contestants"][name] = {
            "machine": here,
            "load_after": round(os.getloadavg()[0], 2),
            "seconds_to_accuracy": {str(accuracy): time_to(curve, accuracy) for accuracy in ACCURACIES},
            "curve": [[round(seconds, 2), accuracy] for seconds, accuracy in curve],
        }
        print(name, json.dumps(record["contestants"][name]["seconds_to_accuracy"]), curve[-1:], flush=True)
        OUT.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
