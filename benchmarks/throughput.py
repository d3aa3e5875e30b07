"""Images per second of training simple-cnn on CIFAR-10: convsmith, a plain PyTorch loop, and PyTorch Lightning.

    pip install -e '.[bench]'
    python benchmarks/throughput.py CIFAR10_PARQUET_FOLDER [--rounds 3] [--out docs/results/throughput.json]

All three train the same network with Adam, batch 128, horizontal flip and a 4-pixel shift-crop. convsmith runs as
its users run it (the command line). The other two use a DataLoader with two worker processes and torchvision's
transforms on images that are decoded already. The contestants take turns; each runs two epochs in a process of its
own, and the second epoch counts, when workers are up and kernels are chosen.
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
from pathlib import Path

import numpy as np

IMAGES = 17_000
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def data(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The first IMAGES training images, uint8 [N, 32, 32, 3], and their labels."""
    from convsmith.data.config import DataConfig
    from convsmith.data.dataset import open_dataset

    train = open_dataset(DataConfig(source=str(folder))).train
    return train.gather(np.arange(IMAGES)), train.labels[:IMAGES]


def loader(folder: Path):
    import torch
    from torchvision import transforms

    images, labels = data(folder)
    transform = transforms.Compose(
        [
            transforms.ToPILImage(),
            transforms.RandomHorizontalFlip(),
            transforms.RandomCrop(32, padding=4),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )

    class Images(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, index: int):
            return transform(images[index]), int(labels[index])

    return torch.utils.data.DataLoader(Images(), batch_size=128, shuffle=True, num_workers=2, persistent_workers=True)


def network():
    from torch import nn

    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(4096, 200), nn.ReLU(), nn.Dropout(0.3), nn.Linear(200, 10)),
    )


def plain(folder: Path) -> float:
    import torch

    batches, model = loader(folder), network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
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
    import pytorch_lightning as pl
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
            return torch.optim.Adam(self.parameters(), lr=1e-3)

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


def convsmith(folder: Path) -> float:
    with tempfile.TemporaryDirectory() as runs:
        flags = "--epochs 2 --name one --augment.hflip --augment.shift 4 --augment.shift_fill zero --track.wandb off"
        limit = str(round(IMAGES / 0.85))  # 15% of the images become the val split
        command = [sys.executable, "-m", "convsmith.cli", "train", "--data", str(folder), "--data.limit", limit]
        subprocess.run([*command, "--runs-dir", runs, *flags.split()], check=True, stdout=subprocess.DEVNULL)
        with (Path(runs) / "one/metrics.csv").open() as file:
            return float(list(csv.DictReader(file))[1]["images_per_second"])


CONTESTANTS = {"convsmith": convsmith, "plain": plain, "lightning": lightning}


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
    rates: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    data(args.folder)  # decoded once, before anybody's clock runs
    for number in range(args.rounds):
        for name, taken in rates.items():
            command = [sys.executable, __file__, str(args.folder), "--only", name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            taken.append(float(done.stdout.splitlines()[-1]))
            print(f"round {number + 1}  {name:10} {taken[-1]:8,.0f} images/s", flush=True)
    medians = {name: statistics.median(taken) for name, taken in rates.items()}
    result = {
        "rounds": rates,
        "medians": medians,
        "ratios": {
            name: statistics.median(ours / theirs for ours, theirs in zip(rates["convsmith"], rates[name], strict=True))
            for name in CONTESTANTS
            if name != "convsmith"
        },
        "cores": os.cpu_count(),
        "peak_megabytes_of_any_process": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
    }
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
