"""`convsmith auto` and others, given the same minutes and the same weights: accuracy on images that nobody has seen.

    pip install fastai keras                      (contestants that are not installed are left out, which is noted)
    pip install autogluon.multimodal              (pins an older PyTorch: an environment of its own, --python-autogluon)
    python benchmarks/auto.py ANTS_BEES CIFAR10 WEIGHTS_FOLDER [--minutes 5] [--only SET ...] [--contestants NAME ...]

Each contestant is a process of its own that gets a folder of class folders and M minutes, from its start to its end,
and then predicts a folder of images without labels, which is nobody's time. Contestants take turns, set by set:

- `convsmith auto`, with all the weights of the folder in its cache, as anybody can put them there;
- fastai's `vision_learner` and `fine_tune`, as its course recommends, and PyTorch's transfer-learning tutorial (all
  layers, SGD 0.001, momentum 0.9, batches of 4, a tenth of the rate after 7 epochs, the best epoch by validation), both
  from the strongest of the weights; fastai gets as many epochs as fit, measured on its first batches, the tutorial at
  most its 25;
- Keras's "image classification from scratch" (a small Xception) on PyTorch: keras.applications has no architecture into
  which these weights could be loaded, and its own cannot be downloaded here, so it is without pretrained weights;
- AutoGluon's `MultiModalPredictor` with `time_limit` (1.6.3 needs torch below 2.14 and timm below 1.0.7).

Sets: ants_bees (its train folder; its val folder is held out), CIFAR-10 with 50 and 250 images a class, scikit-learn's
digits, and three of our own that punish habits from photographs: `textures` (gray gratings that differ in their
direction, so that a mirror image is another class), `drawings` (b, d, p, q of 16 x 16 pixels), `imbalanced` (four
classes of CIFAR-10 with 300, 100, 40 and 15 images; held out are 200 of each). Writes docs/results/auto.json.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

OUT = Path(__file__).resolve().parents[1] / "docs" / "results" / "auto.json"
SHARED_MODEL = "tf_efficientnet_lite2"  # of those who take one
MEAN = STD = (0.5, 0.5, 0.5)  # as its weights expect
SIZE, RESIZED = 260, 292  # its input, and the shorter side before the crop of 0.89
SMALLEST = 96  # pixels to which small images are enlarged for it
EPOCHS = 25  # of the tutorial at most
VAL = 0.2  # of the images that a contestant gets, where it does not divide them itself

Images = list[tuple[str, Image.Image]]  # class and image


# The sets: images to learn from, and images held out.


def ants_bees(args: argparse.Namespace) -> tuple[Images, Images]:
    def read(split: str) -> Images:
        files = sorted((args.ants_bees / split).glob("*/*"))
        return [(file.parent.name, Image.open(file).convert("RGB")) for file in files]

    return read("train"), read("val")


def cifar(args: argparse.Namespace, counts: dict[int, int], test: int) -> tuple[Images, Images]:
    """The first `counts[label]` train images of each class, and the first `test` test images of each."""
    import io

    import pyarrow.parquet as parquet

    def read(split: str, wanted: dict[int, int]) -> Images:
        left, found = dict(wanted), []
        for file in sorted(args.cifar10.rglob(f"*{split}*.parquet")):
            table = parquet.read_table(file)
            for image, label in zip(table["img"].to_pylist(), table["label"].to_pylist(), strict=True):
                if left.get(label, 0):
                    left[label] -= 1
                    found.append((f"class{label}", Image.open(io.BytesIO(image["bytes"])).convert("RGB")))
        assert not any(left.values()), f"{split}: {left} images are missing"
        return found

    return read("train", counts), read("test", dict.fromkeys(counts, test))


def digits(args: argparse.Namespace) -> tuple[Images, Images]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    pixels = (data.images * 15.9375).astype(np.uint8)
    every: Images = [(str(label), Image.fromarray(image)) for image, label in zip(pixels, data.target, strict=True)]
    train, test = train_test_split(every, test_size=359, random_state=0, stratify=data.target)
    return train, test


def textures(args: argparse.Namespace) -> tuple[Images, Images]:
    """Noisy gratings, 64 x 64, in six directions of which three mirror the other three."""
    rng = np.random.default_rng(0)
    directions = {"steep-right": 65, "right": 45, "flat-right": 25, "steep-left": 115, "left": 135, "flat-left": 155}

    def draw(degrees: float) -> Image.Image:
        y, x = np.mgrid[:64, :64]
        angle = math.radians(degrees + rng.normal(0, 4))
        wave = np.sin((x * math.cos(angle) + y * math.sin(angle)) * rng.uniform(0.4, 0.9) + rng.uniform(0, 6.3))
        values = 128 + rng.uniform(15, 45) * wave + rng.normal(0, 30, (64, 64))
        return Image.fromarray(values.clip(0, 255).astype(np.uint8))

    def some(count: int) -> Images:
        return [(name, draw(degrees)) for name, degrees in directions.items() for _ in range(count)]

    return some(40), some(100)


def drawings(args: argparse.Namespace) -> tuple[Images, Images]:
    """A bowl and a stem, 16 x 16: which letter it is depends on the side of the stem and its end."""
    rng = np.random.default_rng(1)

    def draw(letter: str) -> Image.Image:
        image = Image.new("L", (64, 64), 255)
        pen, shift = ImageDraw.Draw(image), rng.integers(-6, 7, 2)
        left, up, radius = letter in "bp", letter in "bd", int(rng.integers(8, 12))
        x, y = 32 + int(shift[0]), 32 + int(shift[1])
        width = int(rng.integers(2, 6))
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=int(rng.integers(0, 90)), width=width)
        stem = x - radius if left else x + radius
        pen.line((stem, y + radius * (-2.4 if up else 2.4), stem, y), fill=int(rng.integers(0, 90)), width=width)
        turned = image.rotate(float(rng.normal(0, 6)), fillcolor=255).resize((16, 16), Image.Resampling.BOX)
        noisy = np.asarray(turned, dtype=np.float64) + rng.normal(0, 12, (16, 16))
        return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))

    def some(count: int) -> Images:
        return [(letter, draw(letter)) for letter in "bdpq" for _ in range(count)]

    return some(60), some(150)


SETS: dict[str, Callable[[argparse.Namespace], tuple[Images, Images]]] = {
    "ants_bees": ants_bees,
    "cifar10-50": lambda args: cifar(args, dict.fromkeys(range(10), 50), 200),
    "cifar10-250": lambda args: cifar(args, dict.fromkeys(range(10), 250), 200),
    "digits": digits,
    "textures": textures,
    "drawings": drawings,
    "imbalanced": lambda args: cifar(args, {0: 300, 1: 100, 2: 40, 3: 15}, 200),
}


def write(images: Images, folder: Path, named: bool) -> dict[str, str]:
    """Write images into class folders, or with numbers for names; returns the class of each file."""
    labels = {}
    for number, (label, image) in enumerate(images):
        file = folder / label / f"{number:05}.png" if named else folder / f"{number:05}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file)
        labels[file.name] = label
    return labels


# The contestants: each trains on the folder `train` and writes its prediction for each file of `test`.


class Task:
    """What a contestant is given, and its clock, which runs since the process was started."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.folder, self.weights, self.minutes = args.task, args.weights, args.minutes
        self.deadline = args.started + 60 * args.minutes
        self.train, self.test = self.folder / "train", sorted((self.folder / "test").iterdir())
        self.classes = sorted(entry.name for entry in self.train.iterdir())

    @property
    def left(self) -> float:
        return float(self.deadline - time.time())

    @property
    def smallest(self) -> int:
        """The least width of the first images of the classes."""
        return min(Image.open(next((self.train / name).iterdir())).size[0] for name in self.classes)

    @property
    def size(self) -> tuple[int, int]:
        """The shorter side of the images as the shared network sees them, and its input."""
        return (RESIZED, SIZE) if self.smallest >= SMALLEST else (128, 128)

    def done(self, predicted: list[str]) -> None:
        (self.folder / "seconds.json").write_text(json.dumps(self.stopped))
        pairs = dict(zip((file.name for file in self.test), predicted, strict=True))
        (self.folder / "predicted.json").write_text(json.dumps(pairs))

    def finished(self) -> None:
        """The training has ended: what follows is nobody's time."""
        self.stopped = time.time()


def ours(task: Task) -> None:
    cache, runs = task.folder / "cache", task.folder / "runs"
    shutil.copytree(task.weights, cache / "weights")
    environment = {**os.environ, "CONVSMITH_CACHE": str(cache)}
    command = [sys.executable, "-m", "convsmith.cli"]
    minutes = ["--minutes", str(task.left / 60)]
    words = [*command, "auto", str(task.train), *minutes, "--name", "auto", "--runs-dir", str(runs)]
    # The images held out here are a test split that nobody has; a second one would only take images from the training.
    words += ["--data.test_fraction", "0", "--track.wandb", "off"]
    said = subprocess.run(words, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    task.finished()
    print(said, flush=True)
    out = task.folder / "predicted.csv"
    words = [*command, "predict", str(runs / "auto"), str(task.folder / "test"), "--out", str(out)]
    subprocess.run(words, env=environment, check=True, stdout=subprocess.DEVNULL)
    with out.open() as file:
        predicted = {Path(row["id"]).name: row["predicted"] for row in csv.DictReader(file)}
    task.done([predicted[file.name] for file in task.test])


def fastai(task: Task) -> None:
    import torch
    from fastai.vision import all as vision
    from safetensors.torch import load_file

    torch.manual_seed(0)
    resized, size = task.size

    def learner() -> Any:
        block = vision.DataBlock(
            blocks=(vision.ImageBlock, vision.CategoryBlock(vocab=task.classes)),
            get_items=vision.get_image_files,
            get_y=vision.parent_label,
            splitter=vision.RandomSplitter(VAL, seed=0),
            item_tfms=vision.Resize(resized),
            batch_tfms=[*vision.aug_transforms(size=size), vision.Normalize.from_stats(MEAN, STD)],
        )
        data = block.dataloaders(task.train, bs=16)
        made = vision.vision_learner(data, SHARED_MODEL, pretrained=False, normalize=False, metrics=vision.accuracy)
        body, given = made.model[0].model, load_file(task.weights / f"{SHARED_MODEL}.safetensors")
        body.load_state_dict({name: given[name] for name in body.state_dict()})  # all but ImageNet's classifier
        return made

    measured = learner()
    images, labels = next(iter(measured.dls.train))
    began = time.time()
    for _ in range(2):
        measured.loss_func(measured.model(images), labels).backward()
    steps = len(measured.dls.train) * (1 + VAL / 2)
    epoch = (time.time() - began) / 2 * steps * 1.15  # loading, and the optimiser
    epochs = max(1, min(30, int(task.left / epoch - 0.6)))  # the frozen epoch takes about 0.6 of one
    print(f"an epoch takes about {epoch:.1f} s: fine_tune({epochs})", flush=True)
    final = learner()
    with final.no_bar(), final.no_logging():
        final.fine_tune(epochs)
    task.finished()
    logits, _ = final.get_preds(dl=final.dls.test_dl(task.test))
    task.done([task.classes[number] for number in logits.argmax(1).tolist()])


def tutorial(task: Task) -> None:
    import timm
    import torch
    from safetensors.torch import load_file
    from torch import nn
    from torchvision import datasets, transforms

    torch.manual_seed(0)
    resized, size = task.size
    normalize = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    shown = transforms.Compose([transforms.Resize(resized), transforms.CenterCrop(size), *normalize])
    varied = transforms.Compose([transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), *normalize])
    order = torch.randperm(len(datasets.ImageFolder(task.train))).tolist()
    cut = int(VAL * len(order))
    sets = {"train": (varied, order[cut:]), "val": (shown, order[:cut])}
    loaders = {
        part: torch.utils.data.DataLoader(
            torch.utils.data.Subset(datasets.ImageFolder(task.train, how), rows), 4, shuffle=True, num_workers=2
        )
        for part, (how, rows) in sets.items()
    }
    net = timm.create_model(SHARED_MODEL, pretrained=False)
    net.load_state_dict(load_file(task.weights / f"{SHARED_MODEL}.safetensors"))
    net.classifier = nn.Linear(net.num_features, len(task.classes))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    best, kept, took = -1.0, net.state_dict(), 0.0
    for _ in range(EPOCHS):
        began = time.time()
        net.train()
        for images, labels in loaders["train"]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()
            optimizer.step()
            if task.left < 0.1 * took:
                break
        schedule.step()
        net.eval()
        with torch.inference_mode():
            right = [(net(images).argmax(1) == labels).float() for images, labels in loaders["val"]]
        accuracy = float(torch.cat(right).mean())
        if accuracy > best:
            best, kept = accuracy, {name: value.clone() for name, value in net.state_dict().items()}
        took = time.time() - began
        if task.left < took:
            break
    task.finished()
    net.load_state_dict(kept)
    with torch.inference_mode():
        logits = torch.cat([net(shown(Image.open(file).convert("RGB"))[None]) for file in task.test])
    task.done([task.classes[number] for number in logits.argmax(1).tolist()])


def keras(task: Task) -> None:
    os.environ["KERAS_BACKEND"] = "torch"
    import keras as k
    from keras import layers

    k.utils.set_random_seed(0)
    size = 180 if task.smallest >= SMALLEST else max(32, task.smallest)
    every = [(file, number) for number, name in enumerate(task.classes) for file in (task.train / name).iterdir()]

    def read(files: list[Path]) -> np.ndarray:
        return np.stack(
            [np.asarray(Image.open(file).convert("RGB").resize((size, size)), np.float32) for file in files]
        )

    order = np.random.default_rng(0).permutation(len(every))
    pixels, labels = read([file for file, _ in every])[order], np.array([label for _, label in every])[order]
    cut = int(VAL * len(every))

    # https://keras.io/examples/vision/image_classification_from_scratch
    inputs = k.Input((size, size, 3))
    x = layers.RandomRotation(0.1)(layers.RandomFlip("horizontal")(inputs))
    x = layers.Rescaling(1 / 255)(x)
    x = layers.Activation("relu")(layers.BatchNormalization()(layers.Conv2D(128, 3, strides=2, padding="same")(x)))
    before = x
    for width in (256, 512, 728):
        for _ in range(2):
            x = layers.Activation("relu")(x)
            x = layers.BatchNormalization()(layers.SeparableConv2D(width, 3, padding="same")(x))
        x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
        x = layers.add([x, layers.Conv2D(width, 1, strides=2, padding="same")(before)])
        before = x
    x = layers.Activation("relu")(layers.BatchNormalization()(layers.SeparableConv2D(1024, 3, padding="same")(x)))
    x = layers.Dropout(0.25)(layers.GlobalAveragePooling2D()(x))
    model = k.Model(inputs, layers.Dense(len(task.classes))(x))
    model.compile(
        k.optimizers.Adam(3e-4), k.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )

    class Clock(k.callbacks.Callback):
        took = 0.0

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.began = time.time()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.took = time.time() - self.began
            self.model.stop_training |= task.left < self.took

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.model.stop_training |= task.left < 0

    best = k.callbacks.ModelCheckpoint(
        task.folder / "best.weights.h5", monitor="val_accuracy", save_best_only=True, save_weights_only=True
    )
    model.fit(
        pixels[cut:],
        labels[cut:],
        batch_size=32,
        epochs=EPOCHS * 4,
        validation_data=(pixels[:cut], labels[:cut]),
        callbacks=[Clock(), best],
        verbose=0,
    )
    task.finished()
    if (task.folder / "best.weights.h5").exists():
        model.load_weights(task.folder / "best.weights.h5")
    logits = model.predict(read(task.test), verbose=0)
    task.done([task.classes[number] for number in logits.argmax(1)])


def autogluon(task: Task) -> None:
    import pandas as pd
    from autogluon.multimodal import MultiModalPredictor

    rows = [{"image": str(file), "label": name} for name in task.classes for file in (task.train / name).iterdir()]
    predictor = MultiModalPredictor(label="label", path=str(task.folder / "autogluon"), verbosity=1)
    settings = {
        "model.names": ["timm_image"],
        "model.timm_image.checkpoint_name": SHARED_MODEL,
        "model.timm_image.pretrained": True,  # from its file, in the place where timm looks for it
        "env.num_workers": 2,
    }
    import timm

    made = timm.create_model

    def with_weights(name: str, **options: Any) -> Any:
        file = task.weights / f"{SHARED_MODEL}.safetensors"
        return made(
            name, **{**options, "pretrained_cfg_overlay": {"file": str(file)}} if name == SHARED_MODEL else options
        )

    timm.create_model = with_weights
    predictor.fit(pd.DataFrame(rows), time_limit=int(task.left), hyperparameters=settings, seed=0)
    task.finished()
    found = predictor.predict(pd.DataFrame({"image": [str(file) for file in task.test]}))
    task.done([str(name) for name in found])


CONTESTANTS: dict[str, tuple[Callable[[Task], None], str]] = {
    "convsmith auto": (ours, "convsmith"),
    "fastai fine_tune": (fastai, "fastai"),
    "PyTorch tutorial": (tutorial, "timm"),
    "Keras from scratch": (keras, "keras"),
    "AutoGluon": (autogluon, "autogluon"),
}


def scores(labels: dict[str, str], predicted: dict[str, str]) -> dict[str, float]:
    right = {
        name: [predicted[file] == label for file, label in labels.items() if label == name] for name in labels.values()
    }
    every = [hit for hits in right.values() for hit in hits]
    return {
        "accuracy": float(np.mean(every)),
        "balanced_accuracy": float(np.mean([np.mean(h) for h in right.values()])),
    }


def contest(args: argparse.Namespace, name: str, folder: Path, labels: dict[str, str]) -> dict[str, Any]:
    """Run one contestant in a process and an empty folder of its own."""
    python = args.python_autogluon if name == "AutoGluon" and args.python_autogluon else sys.executable
    with tempfile.TemporaryDirectory() as place:
        task = Path(place)
        for part in ("train", "test"):
            (task / part).symlink_to(folder / part)
        began = time.time()
        words = [
            python,
            __file__,
            str(args.ants_bees),
            str(args.cifar10),
            str(args.weights),
            "--minutes",
            str(args.minutes),
        ]
        words += ["--play", name, "--task", str(task), "--started", str(began)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60 * (3 * args.minutes + 5))
        if not (task / "predicted.json").exists():
            return {"failed": done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]}
        seconds = json.loads((task / "seconds.json").read_text()) - began
        found = scores(labels, json.loads((task / "predicted.json").read_text()))
        said = done.stdout.strip().splitlines()[-1:] if name == "convsmith auto" else []
        return {**found, "seconds": seconds, **({"said": said[0]} if said else {})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ants_bees", type=Path)
    parser.add_argument("cifar10", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--only", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--python-autogluon", help="the Python of an environment that has AutoGluon")
    parser.add_argument("--out", type=Path, default=OUT)
    for hidden, kind in (("--play", str), ("--task", Path), ("--started", float)):  # for the contestants' processes
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.ants_bees, args.cifar10, args.weights = (p.resolve() for p in (args.ants_bees, args.cifar10, args.weights))
    if args.play:
        CONTESTANTS[args.play][0](Task(args))
        return
    absent = [
        name
        for name in args.contestants
        if not importlib.util.find_spec(CONTESTANTS[name][1]) and not (name == "AutoGluon" and args.python_autogluon)
    ]
    result = json.loads(args.out.read_text()) if args.out.exists() else {"sets": {}}
    for name in args.only:
        with tempfile.TemporaryDirectory() as place:
            train, test = SETS[name](args)
            folder = Path(place)
            write(train, folder / "train", named=True)
            labels = write(test, folder / "test", named=False)
            entry = result["sets"].setdefault(name, {"contestants": {}})
            entry |= {"train": len(train), "held_out": len(test), "minutes": args.minutes}
            for contestant in args.contestants:
                if contestant in absent:
                    entry["contestants"][contestant] = {"failed": ["it is not installed"]}
                    continue
                entry["contestants"][contestant] = found = contest(args, contestant, folder, labels)
                print(f"{name:12} {contestant:20} {json.dumps(found)}", flush=True)
                result |= {"cores": os.cpu_count(), "model": SHARED_MODEL}
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
