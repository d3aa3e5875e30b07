"""Finetuning on few photographs: convsmith, a plain PyTorch loop, and fastai or else Lightning; same folds, one run.

    python benchmarks/transfer.py FOLDER WEIGHTS.safetensors [--model tf_efficientnet_lite0] [--folds 5] [--epochs 10]

Contestants take turns, fold by fold, from the same weights. Each chooses its best epoch on the fold's inner validation
part and is scored once on the images held out. convsmith runs as its users run it (`crossval --preset finetune` and
`linear-probe`). The plain loop is in the manner of PyTorch's transfer-learning tutorial: all layers, SGD 0.001 with
momentum 0.9, batches of 4, a tenth of the rate after 7 epochs, random resized crops and mirroring. fastai's `fine_tune`
takes part where fastai is installed, else Lightning's BackboneFinetuning where that is, else neither, which is noted.
`cache` compares the epochs of a linear probe with and without kept features. Writes docs/results/transfer.json.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

OUT = Path(__file__).resolve().parents[1] / "docs" / "results" / "transfer.json"
MEAN = STD = (0.5, 0.5, 0.5)
SIZE = 224
OURS = ("finetune", "linear-probe")


class Images(torch.utils.data.Dataset):
    """Files of the data folder with their labels, decoded each time they are asked for."""

    def __init__(self, folder: Path, ids: list[str], classes: list[str], train: bool) -> None:
        from torchvision import transforms

        normalize = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        shown = [transforms.Resize(256), transforms.CenterCrop(SIZE)]
        varied = [transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip()]
        self.transform = transforms.Compose([*(varied if train else shown), *normalize])
        self.files = [(folder / name, classes.index(Path(name).parent.name)) for name in ids]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path, label = self.files[index]
        return self.transform(Image.open(path).convert("RGB")), label


def loaders(args: argparse.Namespace, fold: dict[str, list[str]], batch: int) -> dict[str, Any]:
    classes = sorted({Path(name).parent.name for names in fold.values() for name in names})
    return {
        part: torch.utils.data.DataLoader(
            Images(args.folder, ids, classes, part == "train"), batch_size=batch, shuffle=part == "train"
        )
        for part, ids in fold.items()
    }


def network(args: argparse.Namespace) -> nn.Module:
    import timm

    net = timm.create_model(args.model, pretrained=False)
    net.load_state_dict(load_file(args.weights))
    net.reset_classifier(args.classes)
    return net


@torch.inference_mode()
def accuracy(net: nn.Module, batches: Any) -> float:
    net.eval()
    hits = [(net(images).argmax(1) == labels) for images, labels in batches]
    return float(torch.cat(hits).float().mean())


def best_of(net: nn.Module, parts: dict[str, Any], epochs: int, epoch: Callable[[int], None]) -> dict[str, float]:
    """Train epoch by epoch; the held-out accuracy of the best epoch by inner validation, and the time until then."""
    began, best, found = time.perf_counter(), -1.0, {}
    for number in range(epochs):
        epoch(number)
        val = accuracy(net, parts["val"])
        if val > best:
            best = val
            stopped = time.perf_counter()
            found = {"accuracy": accuracy(net, parts["held-out"]), "seconds_to_best": stopped - began}
            began += time.perf_counter() - stopped  # the look at the held-out part is not their time
    return found | {"seconds": time.perf_counter() - began}


def plain(args: argparse.Namespace, fold: dict[str, list[str]]) -> dict[str, float]:
    net, parts = network(args), loaders(args, fold, 4)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)

    def epoch(number: int) -> None:
        net.train()
        for images, labels in parts["train"]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()
            optimizer.step()
        schedule.step()

    return best_of(net, parts, args.epochs, epoch)


def fastai(args: argparse.Namespace, fold: dict[str, list[str]]) -> dict[str, float]:
    from fastai.vision import all as vision

    items = [args.folder / name for name in [*fold["train"], *fold["val"]]]
    block = vision.DataBlock(
        blocks=(vision.ImageBlock, vision.CategoryBlock),
        get_y=vision.parent_label,
        splitter=vision.IndexSplitter(range(len(fold["train"]), len(items))),
        item_tfms=vision.Resize(256),
        batch_tfms=[*vision.aug_transforms(size=SIZE), vision.Normalize.from_stats(MEAN, STD)],
    )
    data, net = block.dataloaders(items, bs=16, num_workers=0), network(args)
    head = {id(parameter) for parameter in net.get_classifier().parameters()}

    def split(model: nn.Module) -> list[list[nn.Parameter]]:
        parameters = list(model.parameters())
        return [[p for p in parameters if id(p) not in head], [p for p in parameters if id(p) in head]]

    learner = vision.Learner(data, net, splitter=split, metrics=vision.accuracy)
    with tempfile.TemporaryDirectory() as folder, learner.no_bar():
        learner.path = Path(folder)
        began = time.perf_counter()
        learner.fine_tune(args.epochs, cbs=vision.SaveModelCallback(monitor="accuracy"))
        seconds = time.perf_counter() - began
    held_out = learner.dls.test_dl([args.folder / name for name in fold["held-out"]], with_labels=True)
    return {"accuracy": float(learner.validate(dl=held_out)[1]), "seconds": seconds, "seconds_to_best": seconds}


def lightning(args: argparse.Namespace, fold: dict[str, list[str]]) -> dict[str, float]:
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import BackboneFinetuning

    parts, net = loaders(args, fold, 16), network(args)
    head = net.get_classifier()
    net.reset_classifier(0)
    watched: dict[str, float] = {"best": -1.0}

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = net, head

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(self.backbone(images))

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=1e-3)

        def on_train_epoch_end(self) -> None:
            stopped = time.perf_counter()
            if (val := accuracy(self, parts["val"])) > watched["best"]:
                watched.update(best=val, at=stopped, accuracy=accuracy(self, parts["held-out"]))
            self.train()

    trainer = pl.Trainer(
        max_epochs=args.epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[BackboneFinetuning(unfreeze_backbone_at_epoch=max(1, args.epochs // 3), backbone_initial_lr=1e-4)],
    )
    began = time.perf_counter()
    trainer.fit(Module(), parts["train"])
    return {
        "accuracy": watched["accuracy"],
        "seconds": time.perf_counter() - began,
        "seconds_to_best": watched["at"] - began,
    }


def contestants() -> tuple[dict[str, Callable[..., dict[str, float]]], str]:
    """The peers that are here, and in words which of the two frameworks that is."""
    if importlib.util.find_spec("fastai"):
        return {"plain": plain, "fastai fine_tune": fastai}, "fastai took part"
    if importlib.util.find_spec("pytorch_lightning"):
        return {
            "plain": plain,
            "lightning BackboneFinetuning": lightning,
        }, "fastai is not installed; Lightning took part"
    return {"plain": plain}, "neither fastai nor Lightning is installed: left out"


def ours(args: argparse.Namespace, preset: str, runs: str) -> tuple[list[dict[str, float]], list[dict[str, list[str]]]]:
    """convsmith's cross-validation, whole: its scores by fold, and the folds for the others."""
    command = ["crossval", "--preset", preset, "--folds", str(args.folds), *flags(args), "--name", preset]
    subprocess.run([sys.executable, "-m", "convsmith.cli", *command, "--runs-dir", runs], check=True)
    study = Path(runs, preset)
    record = json.loads((study / "crossval.json").read_text())
    divisions = json.loads((study / "folds.json").read_text())
    pool = divisions["pool"]
    folds = [
        {part: [pool[at] for at in fold[part]] for part in ("train", "val", "held-out")}
        for fold in divisions["divisions"]
    ]
    return [{key: fold[key] for key in ("accuracy", "seconds", "epochs")} for fold in record["per_fold"]], folds


def cache(args: argparse.Namespace, runs: str) -> dict[str, float]:
    """Seconds of an epoch of the linear probe, from the second on, with kept features and without."""
    medians = {}
    for name, kept in (("kept", "true"), ("not kept", "false")):
        command = ["train", "--preset", "linear-probe", *flags(args), "--epochs", "4", "--name", f"cache-{kept}"]
        command += ["--transfer.cache_features", kept, "--runs-dir", runs]
        subprocess.run([sys.executable, "-m", "convsmith.cli", *command], check=True)
        with Path(runs, f"cache-{kept}", "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        medians[name] = statistics.median(float(row["seconds"]) for row in rows[1:])
        medians[f"accuracy, {name}"] = float(rows[-1]["val_accuracy"])
    return medians | {"ratio": medians["not kept"] / medians["kept"]}


def flags(args: argparse.Namespace) -> list[str]:
    model = ["--model", f"timm/{args.model}", "--transfer.weights", str(args.weights)]
    return ["--data", str(args.folder), *model, "--track.wandb", "off"]


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
    with tempfile.TemporaryDirectory() as runs:
        for preset in OURS:
            scores[f"convsmith {preset}"], folds = ours(args, preset, runs)
        for number, fold in enumerate(folds):
            for name, contestant in peers.items():
                torch.manual_seed(number)
                scores.setdefault(name, []).append(contestant(args, fold))
                print(f"fold {number + 1}  {name:30} {scores[name][-1]}", flush=True)
        kept = cache(args, runs)
    means = {
        name: {key: statistics.mean(fold[key] for fold in of) for key in of[0]} for name, of in scores.items() if of
    }
    result = {"per_fold": scores, "mean": means, "cache": kept, "peers": said, "epochs": args.epochs}
    result |= {"cores": os.cpu_count(), "threads": torch.get_num_threads()}
    print(json.dumps(result, indent=2))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
