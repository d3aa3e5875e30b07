"""Finetuning on few photographs: convsmith, a plain PyTorch loop and fastai; same folds, same weights, in turns.

    python benchmarks/transfer.py FOLDER WEIGHTS.safetensors [--model tf_efficientnet_lite0] [--folds 5] [--epochs 10]

Fold by fold, all in this process and with the same threads, each contestant starts from the same weights, chooses its
best epoch on the fold's inner validation part and is scored on the images held out. convsmith runs the presets
`finetune` and `linear-probe` as `crossval` runs them, with an empty cache. The plain loop is in the manner of PyTorch's
transfer-learning tutorial: all layers, SGD 0.001 with momentum 0.9, batches of 4, a tenth of the rate after 7 epochs,
random resized crops and mirroring. fastai (`pip install fastai`) runs `vision_learner` and `fine_tune` with its own
augmentation; where it is not installed it is left out, which is noted. Peers see images resized as the weights expect.

Time: of convsmith the whole run with the pass over a frozen backbone, decoding and preparation apart (they come once).
Of a peer its training and validation (loading is part of them) up to the first epoch whose mean held-out accuracy over
the folds is what the peer delivers in the end, or what ours does where that is less: a look at the answers that only
the peers get. `cache` compares the epochs of a linear probe with and without kept features. Writes
docs/results/transfer.json.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from convsmith import parts
from convsmith.config import RunConfig, compose
from convsmith.evidence import study
from convsmith.evidence.crossval import divide
from convsmith.evidence.fold_job import FoldJob, perform
from convsmith.experiment import epochs
from convsmith.rundir import write_json
from convsmith.runtime import Interrupts

OUT = Path(__file__).resolve().parents[1] / "docs" / "results" / "transfer.json"
MEAN = STD = (0.5, 0.5, 0.5)
SIZE, RESIZED = 224, 256
OURS = ("finetune", "linear-probe")
PARTS = ("train", "val", "held-out")

Fold = dict[str, list[str]]
Curve = list[dict[str, float]]  # an entry an epoch: seconds so far, accuracy on val and on held-out


class Images(torch.utils.data.Dataset):
    """Files of the data folder with their labels, decoded each time they are asked for."""

    def __init__(self, folder: Path, ids: list[str], classes: list[str], train: bool) -> None:
        from torchvision import transforms

        cubic = transforms.InterpolationMode.BICUBIC
        normalize = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        shown = [transforms.Resize(RESIZED, cubic), transforms.CenterCrop(SIZE)]
        varied = [transforms.RandomResizedCrop(SIZE, interpolation=cubic), transforms.RandomHorizontalFlip()]
        self.transform = transforms.Compose([*(varied if train else shown), *normalize])
        self.files = [(folder / name, classes.index(Path(name).parent.name)) for name in ids]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path, label = self.files[index]
        return self.transform(Image.open(path).convert("RGB")), label


def loaders(folder: Path, fold: Fold, batch: int) -> dict[str, Any]:
    classes = sorted({Path(name).parent.name for names in fold.values() for name in names})
    return {
        part: torch.utils.data.DataLoader(
            Images(folder, fold[part], classes, part == "train"),
            batch_size=batch,
            shuffle=part == "train",
            num_workers=os.cpu_count() or 1,
        )
        for part in PARTS
    }


@torch.inference_mode()
def accuracy(net: nn.Module, batches: Any) -> float:
    net.eval()
    hits = [(net(images).argmax(1) == labels) for images, labels in batches]
    return float(torch.cat(hits).float().mean())


class Watch:
    """Accuracies after each epoch; looking at the held-out part is nobody's time."""

    def __init__(self) -> None:
        self.curve: Curve = []
        self.began = time.perf_counter()

    def epoch(self, net: nn.Module, val: Any, held_out: Any) -> None:
        entry = {"val": accuracy(net, val), "seconds": time.perf_counter() - self.began}
        stopped = time.perf_counter()
        self.curve.append(entry | {"held_out": accuracy(net, held_out)})
        self.began += time.perf_counter() - stopped


def plain(args: argparse.Namespace, fold: Fold) -> Curve:
    import timm

    net, data = timm.create_model(args.model, pretrained=False), loaders(args.folder, fold, 4)
    net.load_state_dict(load_file(args.weights))
    net.classifier = nn.Linear(net.num_features, args.classes)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    watch = Watch()
    for _ in range(args.epochs):
        net.train()
        for images, labels in data["train"]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()
            optimizer.step()
        schedule.step()
        watch.epoch(net, data["val"], data["held-out"])
    return watch.curve


def fastai(args: argparse.Namespace, fold: Fold) -> Curve:
    from fastai.vision import all as vision

    items = [args.folder / name for name in [*fold["train"], *fold["val"]]]
    block = vision.DataBlock(
        blocks=(vision.ImageBlock, vision.CategoryBlock),
        get_y=vision.parent_label,
        splitter=vision.IndexSplitter(range(len(fold["train"]), len(items))),
        item_tfms=vision.Resize(RESIZED),
        batch_tfms=[*vision.aug_transforms(size=SIZE), vision.Normalize.from_stats(MEAN, STD)],
    )
    data = block.dataloaders(items, bs=16)
    learner = vision.vision_learner(data, args.model, pretrained=False, normalize=False)
    body = learner.model[0].model
    own, given = body.state_dict(), load_file(args.weights)
    body.load_state_dict({name: given[name] for name in own})  # all but ImageNet's classifier
    held_out = data.test_dl([args.folder / name for name in fold["held-out"]], with_labels=True)
    watch = Watch()

    class Watching(vision.Callback):
        def after_epoch(self) -> None:
            watch.epoch(learner.model, data.valid, held_out)

    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(args.epochs, cbs=Watching())
    return watch.curve


def contestants() -> tuple[dict[str, Callable[..., Curve]], str]:
    """The peers that are here, and in words which they are."""
    if importlib.util.find_spec("fastai"):
        return {"plain": plain, "fastai fine_tune": fastai}, "fastai took part"
    return {"plain": plain}, "fastai is not installed: left out"


def config_of(args: argparse.Namespace, preset: str, **flags: str) -> RunConfig:
    model = {"model.name": f"timm/{args.model}", "transfer.weights": str(args.weights)}
    return compose(preset, None, {"data.source": str(args.folder), "track.wandb": "off", **model, **flags})


class Ours:
    """A preset of convsmith, prepared once; then a fold at a time, as the workers of `crossval` run it."""

    def __init__(self, args: argparse.Namespace, preset: str, runs: Path) -> None:
        began = time.perf_counter()
        prepared = parts.prepare(config_of(args, preset))
        divisions = divide(prepared.dataset, prepared.config, args.folds, 1)
        self.runs, self.config, self.hash = runs / preset, prepared.config, prepared.dataset.hash
        self.record = study.folds_record(prepared.dataset, divisions)
        self.runs.mkdir()
        write_json(self.runs / study.FOLDS, self.record)
        self.preparation = time.perf_counter() - began

    def folds(self) -> list[Fold]:
        pool = self.record["pool"]
        return [{part: [pool[at] for at in fold[part]] for part in PARTS} for fold in self.record["divisions"]]

    def run(self, number: int) -> dict[str, float]:
        config = self.config.with_values(train={"seed": number}).model_dump(mode="json")
        place = str(self.runs / str(number))
        job = FoldJob(f"fold {number}", place, str(self.runs / study.FOLDS), number, config, self.hash)
        record = perform(job.message(), lambda _: None)
        assert record is not None, "interrupted"
        return {key: record[key] for key in ("accuracy", "seconds", "epochs")}


def delivered(curve: Curve) -> dict[str, float]:
    """The epoch that its inner validation chooses; the earlier of equals."""
    return max(curve, key=lambda epoch: epoch["val"])


def reached(curves: list[Curve], target: float) -> float | None:
    """Mean seconds up to the first epoch whose mean held-out accuracy is `target`; None where there is none."""
    for number in range(len(curves[0])):
        if statistics.mean(curve[number]["held_out"] for curve in curves) >= target:
            return statistics.mean(curve[number]["seconds"] for curve in curves)
    return None


def compared(ours: dict[str, list[dict[str, float]]], peers: dict[str, list[Curve]]) -> dict[str, Any]:
    means = {
        name: {key: statistics.mean(fold[key] for fold in folds) for key in folds[0]} for name, folds in ours.items()
    }
    for name, curves in peers.items():
        chosen = [delivered(curve) for curve in curves]
        mine = statistics.mean(epoch["held_out"] for epoch in chosen)
        means[name] = {"accuracy": mine, "seconds": statistics.mean(curve[-1]["seconds"] for curve in curves)}
        for preset in ours:
            target = min(mine, means[preset]["accuracy"])
            seconds = reached(curves, target)
            if seconds is not None:
                means[name][f"times the time of {preset}"] = seconds / means[preset]["seconds"]
    return means


def cache(args: argparse.Namespace, runs: Path) -> dict[str, float]:
    """Seconds of an epoch of the linear probe, from the second on, with kept features and without."""
    found = {}
    for name, kept in (("kept", "true"), ("not kept", "false")):
        config = config_of(args, "linear-probe", **{"train.epochs": "4", "transfer.cache_features": kept})
        experiment = parts.start(parts.prepare(config), runs, f"cache-{kept}")
        for _ in epochs(experiment, Interrupts()):
            pass
        with experiment.run.metrics.open() as file:
            rows = list(csv.DictReader(file))
        found[name] = statistics.median(float(row["seconds"]) for row in rows[1:])
        found[f"accuracy, {name}"] = float(rows[-1]["val_accuracy"])
    return found | {"ratio": found["not kept"] / found["kept"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--model", default="tf_efficientnet_lite0")
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10, help="of the peers")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    args.folder, args.weights = args.folder.resolve(), args.weights.resolve()
    peers, said = contestants()
    scores: dict[str, list[dict[str, float]]] = {}
    curves: dict[str, list[Curve]] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CONVSMITH_CACHE"] = f"{folder}/cache"
        ours = {preset: Ours(args, preset, Path(folder)) for preset in OURS}
        for number, fold in enumerate(ours["finetune"].folds()):
            for preset, contestant in ours.items():
                scores.setdefault(preset, []).append(contestant.run(number))
                print(f"fold {number + 1}  {preset:20} {scores[preset][-1]}", flush=True)
            for name, peer in peers.items():
                torch.manual_seed(number)
                curves.setdefault(name, []).append(peer(args, fold))
                print(f"fold {number + 1}  {name:20} {delivered(curves[name][-1])}", flush=True)
        result = {
            "mean": compared(scores, curves),
            "preparation": {preset: contestant.preparation for preset, contestant in ours.items()},
            "cache": cache(args, Path(folder)),
            "per_fold": scores | curves,
            "peers": said,
            "epochs": args.epochs,
            "folds": args.folds,
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        }
    print(json.dumps({key: value for key, value in result.items() if key != "per_fold"}, indent=2))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
