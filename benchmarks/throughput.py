"""Images per second of training simple-cnn on CIFAR-10: convsmith, four others, and what the machine would allow.

    pip install -e '.[bench]'
    python benchmarks/throughput.py CIFAR10_PARQUET_FOLDER [--rounds 3] [--out docs/results/throughput.json]

All train the same network with Adam, batch 128, horizontal flips and shifts by up to 4 pixels. convsmith runs as its
users run it (the command line), in float32 and with --train.precision auto, which may take bfloat16. The plain loop,
Lightning and fastai share a DataLoader with two worker processes and torchvision's transforms on images that are
decoded already; Keras runs on JAX, compiles its step, and gets batches that NumPy has augmented. The contestants take
turns; each runs two epochs in a process of its own, and the second epoch counts, when workers are up and kernels are
compiled.

`bound` is what the network's own convolutions and matrix products would allow if nothing else took time: each of them
alone, forward and with the gradients that training needs, in the faster memory layout of each.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine

IMAGES = 10_000
BATCH, SHIFT, RATE = 128, 4, 1e-3
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
BOUND_STEPS = 30


def data(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The first IMAGES training images, uint8 [N, 32, 32, 3], and their labels."""
    from convsmith.data.config import DataConfig
    from convsmith.data.dataset import open_dataset

    train = open_dataset(DataConfig(source=str(folder))).train
    return train.gather(np.arange(IMAGES)), train.labels[:IMAGES]


def loader(folder: Path):
    import torch
    from torchvision.transforms import v2

    images, labels = data(folder)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    transform = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomCrop(32, padding=SHIFT),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )

    class Images(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(pixels)

        def __getitem__(self, index: int):
            return transform(pixels[index]), int(labels[index])

    return torch.utils.data.DataLoader(Images(), batch_size=BATCH, shuffle=True, num_workers=2, persistent_workers=True)


def network():
    from torch import nn

    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(4096, 200), nn.ReLU(), nn.Linear(200, 10)),
    )


def plain(folder: Path) -> float:
    import torch

    batches, model = loader(folder), network()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    criterion = torch.nn.CrossEntropyLoss()
    for _ in range(2):
        began = time.perf_counter()
        for images, labels in batches:
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
        seconds = time.perf_counter() - began
    return IMAGES / seconds


def lightning(folder: Path) -> float:
    import lightning as pl
    import torch

    times: list[float] = []

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def training_step(self, batch, _):
            images, labels = batch
            return torch.nn.functional.cross_entropy(self.network(images), labels)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=RATE)

        def on_train_epoch_start(self) -> None:
            times.append(time.perf_counter())

        def on_train_epoch_end(self) -> None:
            times.append(time.perf_counter())

    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), loader(folder))
    return IMAGES / (times[3] - times[2])


def fastai(folder: Path) -> float:
    """fastai's Learner and Adam, on the DataLoader of the plain loop."""
    import fastai.callback.progress  # noqa: F401  (gives a Learner its no_bar)
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import Adam
    from torch import nn

    batches = loader(folder)
    learner = Learner(DataLoaders(batches, batches), network(), nn.CrossEntropyLoss(), opt_func=Adam, lr=RATE, wd=0)
    times: list[float] = []
    fit_epoch = learner._do_epoch_train

    def timed() -> None:
        began = time.perf_counter()
        fit_epoch()
        times.append(time.perf_counter() - began)

    learner._do_epoch_train = timed
    with learner.no_bar(), learner.no_logging():
        learner.fit(2)
    return IMAGES / times[1]


def keras(folder: Path) -> float:
    os.environ["KERAS_BACKEND"] = "jax"
    import keras
    from keras import layers

    images, labels = data(folder)
    padded = np.pad(images, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)))
    scale, offset = (np.float32(values) for values in (1 / (255 * np.array(STD)), -np.array(MEAN) / np.array(STD)))
    count, steps = len(images), len(images) // BATCH

    class Batches(keras.utils.PyDataset):
        def on_epoch_begin(self) -> None:
            self.draws = np.random.default_rng()
            self.order = self.draws.permutation(count)

        def __len__(self) -> int:
            return steps

        def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
            if not index:
                self.on_epoch_begin()
            chosen = self.order[index * BATCH : (index + 1) * BATCH]
            down, across = self.draws.integers(0, 2 * SHIFT + 1, (2, BATCH, 1))
            rows, columns = down + np.arange(32), across + np.arange(32)
            columns = np.where(self.draws.random((BATCH, 1)) < 0.5, columns[:, ::-1], columns)
            moved = padded[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]
            return moved * scale + offset, labels[chosen]

    model = keras.Sequential(
        [
            layers.Input((32, 32, 3)),
            *(layers.Conv2D(32, 3, padding="same", use_bias=False), layers.BatchNormalization(momentum=0.9)),
            *(layers.ReLU(), layers.MaxPooling2D(2)),
            *(layers.Conv2D(64, 3, padding="same", use_bias=False), layers.BatchNormalization(momentum=0.9)),
            *(layers.ReLU(), layers.MaxPooling2D(2)),
            *(layers.Flatten(), layers.Dense(200, activation="relu"), layers.Dense(10)),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(RATE), loss)
    times: list[float] = []

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            times.append(time.perf_counter())

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            times.append(time.perf_counter())

    model.fit(Batches(), epochs=2, verbose=0, callbacks=[Clock()])
    return steps * BATCH / (times[3] - times[2])


def _convsmith(folder: Path, precision: str) -> float:
    with tempfile.TemporaryDirectory() as runs:
        flags = "--epochs 2 --name one --augment.hflip --augment.shift 4 --augment.shift_fill zero --track.wandb off"
        limit = str(round(IMAGES / 0.85))  # 15% of the images become the val split
        command = [sys.executable, "-m", "convsmith.cli", "train", "--data", str(folder), "--data.limit", limit]
        command += ["--train.precision", precision, "--model.hidden_dropout", "0"]
        subprocess.run([*command, "--runs-dir", runs, *flags.split()], check=True, stdout=subprocess.DEVNULL)
        with (Path(runs) / "one/metrics.csv").open() as file:
            return float(list(csv.DictReader(file))[1]["images_per_second"])


def _layers() -> list[tuple[Any, Any]]:
    """Each convolution and linear layer of the network, with a batch of its inputs; the images need no gradient."""
    import torch
    from torch import nn

    layers, x = [], torch.randn(BATCH, 3, 32, 32)
    for layer in network():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layers.append((layer, x.detach().requires_grad_(bool(layers))))
        x = layer(x)
    return layers


def _bound(dtype_name: str) -> float:
    import torch

    from convsmith.runtime import keep_freed_memory

    keep_freed_memory()
    seconds = 0.0
    for layer, inputs in _layers():
        layouts = [torch.contiguous_format, torch.channels_last] if inputs.ndim == 4 else [torch.contiguous_format]
        times = []
        for layout in layouts:
            dtype = getattr(torch, dtype_name)
            x = inputs.detach().to(dtype, memory_format=layout).requires_grad_(inputs.requires_grad)
            part = layer.to(dtype=dtype, memory_format=layout)
            wanted = [part.weight, x] if x.requires_grad else [part.weight]
            gradient = torch.randn_like(part(x))
            taken = []
            for _ in range(BOUND_STEPS):
                began = time.perf_counter()
                torch.autograd.grad(part(x), wanted, gradient)
                taken.append(time.perf_counter() - began)
            times.append(statistics.median(taken))
        seconds += min(times)
    return BATCH / seconds


CONTESTANTS: dict[str, Callable[[Path], float]] = {
    "convsmith": lambda folder: _convsmith(folder, "auto"),
    "convsmith_float32": lambda folder: _convsmith(folder, "float32"),
    "plain": plain,
    "lightning": lightning,
    "fastai": fastai,
    "keras": keras,
    "bound_bfloat16": lambda _: _bound("bfloat16"),
    "bound_float32": lambda _: _bound("float32"),
}


def ratios(rates: dict[str, list[float]], ours: str) -> dict[str, float]:
    """The median over the rounds of our rate divided by each other one of the same round."""
    return {
        name: statistics.median(mine / other for mine, other in zip(rates[ours], others, strict=True))
        for name, others in rates.items()
        if not name.startswith("convsmith")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", choices=CONTESTANTS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(CONTESTANTS[args.only](args.folder)))
        return
    here = machine()
    rates: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    data(args.folder)  # decoded once, before anybody's clock runs
    for number in range(args.rounds):
        for name, taken in rates.items():
            command = [sys.executable, __file__, str(args.folder), "--only", name]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            taken.append(float(done.stdout.splitlines()[-1]))
            print(f"round {number + 1}  {name:18} {taken[-1]:8,.0f} images/s", flush=True)
    result = {
        "machine": here,
        "rounds": rates,
        "medians": {name: statistics.median(taken) for name, taken in rates.items()},
        "ratios": ratios(rates, "convsmith"),
        "ratios_float32": ratios(rates, "convsmith_float32"),
        "peak_megabytes_of_any_process": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
    }
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
