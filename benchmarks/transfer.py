"""Finetuning on few photographs: convsmith, a plain PyTorch loop and fastai; same folds, same weights, in turns.

    python benchmarks/transfer.py FOLDER WEIGHTS.safetensors [--model tf_efficientnet_lite0] [--folds 5] [--epochs 10]

Fold by fold, all in this process and with the same threads, each contestant starts from the same weights, trains on the
same images, chooses its best epoch by the loss on the same inner validation images and is scored on the images held
out. convsmith runs its presets `finetune` and `linear-probe`. The plain loop is in the manner of PyTorch's
transfer-learning tutorial: all layers, SGD 0.001 with momentum 0.9, batches of 4, a tenth of the rate after 7 epochs,
random resized crops and mirroring. fastai (`pip install fastai`) runs `vision_learner` and `fine_tune` with its own
augmentation; where it is not installed it is left out, which is noted. Peers see images resized as the weights expect.

Everybody's time runs from the files on: decoding, convsmith's choice of a layout and its pass over the frozen backbone
(its cache is empty in each fold), the peers' loaders, training, validation. Looking at the held-out images is nobody's
time. The time to an accuracy is the mean time of the first epoch whose mean held-out accuracy over the folds is that.
`cache` compares the epochs of a linear probe with and without kept features. Writes docs/results/transfer.json.
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

from convsmith.config import RunConfig, compose
from convsmith.data.dataset import unseal_test
from convsmith.events import EpochEnd
from convsmith.prediction.evaluate import batches_of, logits_of
from convsmith.runtime import Interrupts
from convsmith.studies.crossval import divide
from convsmith.training import setup
from convsmith.training.loop import epochs

OUT = Path(__file__).resolve().parents[1] / "docs" / "results" / "transfer.json"
MEAN = STD = (0.5, 0.5, 0.5)
SIZE, RESIZED = 224, 256
PRESETS = ("finetune", "linear-probe")

Fold = dict[str, list[str]]  # ids of train, val and test, which here is what the fold holds out
Curve = list[dict[str, float]]  # an entry an epoch


class Watch:
    """Seconds, validation loss and held-out accuracy after each epoch."""

    def __init__(self) -> None:
        self.curve: Curve = []
        self.began = time.perf_counter()

    def epoch(self, val_loss: float, held_out: Callable[[], float]) -> None:
        stopped = time.perf_counter()
        entry = {"seconds": stopped - self.began, "val_loss": val_loss, "accuracy": held_out()}
        self.curve.append(entry)
        self.began += time.perf_counter() - stopped


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
            Images(folder, ids, classes, part == "train"),
            batch_size=batch,
            shuffle=part == "train",
            num_workers=os.cpu_count() or 1,
        )
        for part, ids in fold.items()
    }


@torch.inference_mode()
def evaluate(net: nn.Module, batches: Any) -> tuple[float, float]:
    """Mean cross-entropy and accuracy."""
    net.eval()
    plain = torch.Tensor  # fastai's batches are of types of its own
    answers = [(net(images.as_subclass(plain)), labels.as_subclass(plain)) for images, labels in batches]
    logits, labels = torch.cat([logits for logits, _ in answers]), torch.cat([labels for _, labels in answers])
    return float(nn.functional.cross_entropy(logits, labels)), float((logits.argmax(1) == labels).float().mean())


def ours(args: argparse.Namespace, preset: str, number: int, fold: Fold) -> Curve:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CONVSMITH_CACHE"] = f"{folder}/cache"
        watch = Watch()
        config = config_of(args, preset, **{"train.seed": str(number)})
        experiment = setup.start(setup.prepare(config, splits=fold), Path(folder))
        test = unseal_test(experiment.dataset)

        def held_out() -> float:
            with torch.inference_mode():
                logits = logits_of(
                    experiment.state.evaluated,
                    batches_of(test, experiment.device),
                    experiment.to_input,
                    experiment.device,
                )
            assert logits is not None
            return float((logits.argmax(1) == test.labels).mean())

        for event in epochs(experiment, Interrupts()):
            if isinstance(event, EpochEnd):
                watch.epoch(event.row["val_loss"], held_out)
    return watch.curve


def plain(args: argparse.Namespace, number: int, fold: Fold) -> Curve:
    import timm

    watch = Watch()
    torch.manual_seed(number)
    net, data = timm.create_model(args.model, pretrained=False), loaders(args.folder, fold, 4)
    net.load_state_dict(load_file(args.weights))
    net.classifier = nn.Linear(net.num_features, len({Path(name).parent.name for name in fold["train"]}))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    for _ in range(args.epochs):
        net.train()
        for images, labels in data["train"]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()
            optimizer.step()
        schedule.step()
        watch.epoch(evaluate(net, data["val"])[0], lambda: evaluate(net, data["test"])[1])
    return watch.curve


def fastai(args: argparse.Namespace, number: int, fold: Fold) -> Curve:
    from fastai.vision import all as vision

    watch = Watch()
    torch.manual_seed(number)
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
    given = load_file(args.weights)
    body.load_state_dict({name: given[name] for name in body.state_dict()})  # all but ImageNet's classifier
    held_out = data.test_dl([args.folder / name for name in fold["test"]], with_labels=True)

    class Watching(vision.Callback):
        order = 60  # after fastai's own recorder

        def after_epoch(self) -> None:
            val_loss = float(learner.recorder.values[-1][1])
            watch.epoch(val_loss, lambda: evaluate(learner.model, held_out)[1])

    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(args.epochs, cbs=Watching())
    return watch.curve


def peers() -> tuple[dict[str, Callable[..., Curve]], str]:
    """The peers that are here, and in words which they are."""
    if importlib.util.find_spec("fastai"):
        return {"plain": plain, "fastai fine_tune": fastai}, "fastai took part"
    return {"plain": plain}, "fastai is not installed: left out"


def config_of(args: argparse.Namespace, preset: str, **flags: str) -> RunConfig:
    model = {"model.name": f"timm/{args.model}", "transfer.weights": str(args.weights)}
    return compose(preset, None, {"data.source": str(args.folder), "track.wandb": "off", **model, **flags})


def divided(args: argparse.Namespace) -> list[Fold]:
    """The folds that `crossval` makes of the data's train and val images."""
    prepared = setup.prepare(config_of(args, "linear-probe"))
    ids = prepared.dataset.pool().ids
    return [
        {part: [ids[at] for at in rows] for part, rows in (("train", f.train), ("val", f.val), ("test", f.held_out))}
        for f in divide(prepared.dataset, prepared.config, args.folds, 1)
    ]


def chosen(curve: Curve) -> dict[str, float]:
    """The epoch with the least validation loss."""
    return min(curve, key=lambda epoch: epoch["val_loss"])


def reached(curves: list[Curve], accuracy: float) -> float | None:
    """Mean seconds to the first epoch whose mean held-out accuracy is `accuracy` at least; None where none is."""
    for number in range(min(map(len, curves))):
        if statistics.mean(curve[number]["accuracy"] for curve in curves) >= accuracy:
            return statistics.mean(curve[number]["seconds"] for curve in curves)
    return None


def compared(curves: dict[str, list[Curve]]) -> dict[str, Any]:
    """Of each contestant: accuracy, seconds of the whole run, and everybody's seconds to that accuracy."""
    means: dict[str, Any] = {}
    for name, own in curves.items():
        accuracy = statistics.mean(chosen(curve)["accuracy"] for curve in own)
        means[name] = {
            "accuracy": accuracy,
            "seconds": statistics.mean(curve[-1]["seconds"] for curve in own),
            "seconds to this accuracy": {other: reached(theirs, accuracy) for other, theirs in curves.items()},
        }
    return means


def cache(args: argparse.Namespace, runs: Path) -> dict[str, float]:
    """Seconds of an epoch of the linear probe, from the second on, with kept features and without."""
    found = {}
    for name, kept in (("kept", "true"), ("not kept", "false")):
        config = config_of(args, "linear-probe", **{"train.epochs": "4", "transfer.cache_features": kept})
        experiment = setup.start(setup.prepare(config), runs, f"cache-{kept}")
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
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--only", type=int, help="so many of the folds")
    parser.add_argument("--epochs", type=int, default=10, help="of the peers")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    args.folder, args.weights = args.folder.resolve(), args.weights.resolve()
    others, said = peers()
    curves: dict[str, list[Curve]] = {name: [] for name in (*PRESETS, *others)}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CONVSMITH_CACHE"] = f"{folder}/cache"
        kept = cache(args, Path(folder))
        print(json.dumps(kept), flush=True)
        folds = divided(args)[: args.only]
    for number, fold in enumerate(folds):
        for name, own in curves.items():
            own.append(others[name](args, number, fold) if name in others else ours(args, name, number, fold))
            print(f"fold {number + 1}  {name:20} {own[-1][-1]['seconds']:.1f} s  {chosen(own[-1])}", flush=True)
    result = {
        "mean": compared(curves),
        "cache": kept,
        "curves": curves,
        "peers": said,
        "epochs": args.epochs,
        "folds": f"{len(folds)} of {args.folds}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps({key: value for key, value in result.items() if key != "curves"}, indent=2))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
