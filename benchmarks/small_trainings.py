"""Many small nets on disjoint populations of CIFAR-10, whose predictions real_studies.py makes studies of.

    python benchmarks/small_trainings.py CIFAR10_PARQUET_FOLDER WORK [--minutes 90]

The 60,000 images, train and test together, at 16 x 16 pixels, are cut into populations that share no image. On each,
the folds of an ordinary cross-validation are trained for 8 epochs, from several seeds: the base A, a net of three
convolutions, and arms of fewer channels, B and C. As in `ablate`, arm and base of the same seed see the images in the
same order. Of every held-out image the log-probabilities of all classes are kept, in
WORK/<kind>-<folds>/<population>.npz as float32 [images, classes] under <arm>-<seed>-<repeat>, beside `labels` [images]
and `fold-<repeat>` [images], the fold that holds each image out. What is there is not trained again, so that the same
command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy, max_pool2d

from convsmith.data.cache import open_images
from convsmith.data.config import DataConfig, DecodeRules
from convsmith.data.sources import open_source
from convsmith.nets.build import build
from convsmith.nets.config import BlockConfig, ModelConfig
from convsmith.nets.convnet import ConvNet
from convsmith.optim.config import OptimConfig, RegularizeConfig, ScheduleConfig
from convsmith.optim.optimizers import build_optimizer, keep_base_rates, parameter_groups
from convsmith.optim.schedules import Schedule
from convsmith.studies.folds import divided

SIZE, CLASSES = 16, 10
WIDTHS = {"A": 8, "B": 4, "C": 5}  # channels of the first convolution; the two others have twice as many
TOGETHER = 10  # nets that are trained side by side
EPOCHS, BATCH, RATE = 8, 30, 0.1
ORDER = ("conv", "pool", "norm", "activation", "dropout")
#: Its populations were trained from the same seeds, before others got their own. That left no trace: seeds that all
#: populations share explain 1% of the variance of a fold's difference in accuracy (0 to 6% for the others).
SAME_SEEDS = "600-5"
SKEW = 8.0  # a skewed population has so many times more images of its most frequent class than of its rarest
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Stage:
    """Trainings of an arm on all populations of a kind: from seeds `seeds`, in the repeats `repeats`, both from 1."""

    kind: str
    folds: int
    arm: str
    seeds: tuple[int, ...]
    repeats: tuple[int, ...] = (1,)

    @property
    def folder(self) -> str:
        return f"{self.kind}-{self.folds}"


#: The stages of a line are trained together, population by population, on so many populations in each of five turns.
STAGES = (
    (
        (44, 44, 44, 44, 100),
        [Stage("600", 5, arm, seeds, (1, 2)) for arm, seeds in (("A", (1, 2)), ("B", (1,)), ("C", (1,)))],
    ),
    (
        (10, 20, 30, 60, 90),
        [Stage("skewed", 5, arm, seeds) for arm, seeds in (("A", (1, 2)), ("B", (1,)), ("C", (1,)))],
    ),
    (
        (10, 20, 44, 44, 100),
        [Stage("600", 5, "A", (3, 4, 5, 6, 7, 8)), *(Stage("600", 5, arm, (2, 3)) for arm in ("B", "C"))],
    ),
    ((6, 12, 20, 40, 100), [Stage("600", 10, arm, seeds) for arm, seeds in (("A", (1, 2)), ("B", (1,)), ("C", (1,)))]),
    ((3, 6, 12, 30, 30), [Stage("2000", 5, arm, seeds) for arm, seeds in (("A", (1, 2)), ("B", (1,)), ("C", (1,)))]),
)


def read_images(folder: Path, cache: Path) -> tuple[NDArray[np.uint8], Ints]:
    """All images, uint8 [60000, SIZE, SIZE, 3], and their labels."""
    source = open_source(DataConfig(source=str(folder)))
    images = open_images(source, DecodeRules(working_size=SIZE), cache)
    assert len(images.kept) == len(source) == 60_000
    pixels = (
        images.pixels.take(np.arange(len(source)), axis=0)
        if isinstance(images.pixels, np.ndarray)
        else images.pixels.take(np.arange(len(source)))
    )
    return pixels, source.labels


def populations(kind: str, labels: Ints) -> list[Ints]:
    """Disjoint rows of the images, of each population of a kind."""
    draw = np.random.default_rng(0)
    if kind != "skewed":
        return np.split(draw.permutation(len(labels)), len(labels) // int(kind))
    # The order of the classes turns from population to population, so that each class is used up evenly.
    shares = SKEW ** -np.linspace(0, 1, CLASSES)
    counts = np.stack([np.roll(draw.multinomial(600, shares / shares.sum()), turn) for turn in range(90)])
    found: list[list[Ints]] = [[] for _ in counts]
    for label in range(CLASSES):
        rows = draw.permutation(np.flatnonzero(labels == label))
        assert counts[:, label].sum() <= len(rows)
        for part, taken in zip(found, np.split(rows, np.cumsum(counts[:, label])), strict=False):
            part.append(taken)
    return [draw.permutation(np.concatenate(parts)) for parts in found]


class Nets(torch.nn.Module):
    """Nets of one architecture side by side, as one net of grouped convolutions, which trains some three times as fast.

    It takes images [N, nets x 3, SIZE, SIZE], those of each net after one another, to logits [N, nets, CLASSES]. No
    layer mixes the nets and their losses are added, so that each is trained as it would be alone.
    """

    def __init__(self, nets: Sequence[ConvNet]) -> None:
        super().__init__()
        self.count = len(nets)
        self.convolutions, self.norms = torch.nn.ModuleList(), torch.nn.ModuleList()
        for blocks in zip(*(net.blocks for net in nets), strict=True):
            one = blocks[0].conv
            conv = torch.nn.Conv2d(
                self.count * one.in_channels,
                self.count * one.out_channels,
                one.kernel_size,
                padding=one.padding,
                groups=self.count,
                bias=False,
            )
            norm = torch.nn.BatchNorm2d(self.count * one.out_channels)
            with torch.no_grad():
                conv.weight.copy_(torch.cat([block.conv.weight for block in blocks]))
            self.convolutions.append(conv)
            self.norms.append(norm)
        self.weight = torch.nn.Parameter(torch.stack([net.head.weight for net in nets]).detach())
        self.bias = torch.nn.Parameter(torch.cat([net.head.bias for net in nets]).detach())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = images
        for conv, norm in zip(self.convolutions, self.norms, strict=True):
            maps = norm(max_pool2d(conv(maps), 2)).relu()
        features = maps.mean((2, 3)).view(len(images), self.count, -1)
        return torch.einsum("ngf,gcf->ngc", features, self.weight) + self.bias.view(self.count, CLASSES)


def new_net(width: int, seed: int) -> ConvNet:
    """A net of three convolutions, whose weights follow the seed."""
    torch.manual_seed(seed)
    blocks = tuple(BlockConfig(channels=width * factor, order=ORDER) for factor in (1, 2, 2))
    net = build(ModelConfig(name="convnet", blocks=blocks, global_pool="average"), 3, SIZE, CLASSES)
    assert isinstance(net, ConvNet)
    return net


def side_by_side(images: Sequence[torch.Tensor]) -> torch.Tensor:
    """Images float32 [N, 3, H, W] of each net -> [N, nets x 3, H, W]."""
    return torch.cat(list(images), dim=1).contiguous(memory_format=torch.channels_last)


def train(images: Sequence[torch.Tensor], labels: Sequence[torch.Tensor], width: int, seeds: Sequence[int]) -> Nets:
    """Nets trained on `images` float32 [N, 3, SIZE, SIZE] each; weights and order of the images follow their seeds.

    An epoch has as many whole batches as the fewest images of a net give; the rest of its order is left out.
    """
    nets = Nets([new_net(width, seed) for seed in seeds]).to(memory_format=torch.channels_last)
    optim, regularize = OptimConfig(name="sgd", lr=RATE, nesterov=True), RegularizeConfig(l2=5e-4)
    optimizer = keep_base_rates(build_optimizer(parameter_groups(nets), optim, regularize, torch.device("cpu")))
    steps = min(map(len, labels)) // BATCH
    schedule = Schedule(ScheduleConfig(name="one-cycle", anneal="linear"), steps, EPOCHS)
    orders = [torch.Generator().manual_seed(seed) for seed in seeds]
    nets.train()
    for epoch in range(EPOCHS):
        drawn = [torch.randperm(len(own), generator=order) for own, order in zip(labels, orders, strict=True)]
        for number in range(steps):
            rows = [own[number * BATCH : (number + 1) * BATCH] for own in drawn]
            factor = schedule.factor(epoch * steps + number)
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor
            logits = nets(side_by_side([own[part] for own, part in zip(images, rows, strict=True)]))
            target = torch.stack([own[part] for own, part in zip(labels, rows, strict=True)], dim=1)
            loss = cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum") / BATCH
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return nets.eval()


def held_out(
    images: torch.Tensor, labels: torch.Tensor, fold_of: Sequence[Ints], width: int, seeds: Sequence[int]
) -> list[Floats]:
    """Of each division and seed, the log-probabilities of every image under the net of the fold that holds it out.

    Each is float32 [N, CLASSES]; the nets of all folds and seeds are trained side by side.
    """
    parts = [(own, fold, seed) for own, seed in zip(fold_of, seeds, strict=True) for fold in range(own.max() + 1)]
    rows = [(torch.from_numpy(own != fold), torch.from_numpy(own == fold)) for own, fold, _ in parts]
    moments = [torch.std_mean(images[others], (0, 2, 3), keepdim=True) for others, _ in rows]
    inputs = [(images - mean) / std for std, mean in moments]
    nets = train(
        [own[others] for own, (others, _) in zip(inputs, rows, strict=True)],
        [labels[others] for others, _ in rows],
        width,
        [1000 * seed + fold for _, fold, seed in parts],
    )
    with torch.inference_mode():
        pieces = zip(*(own.split(200) for own in inputs), strict=True)
        scores = torch.cat([nets(side_by_side(piece)) for piece in pieces]).log_softmax(2)
    found = [np.empty((len(images), CLASSES), dtype=np.float32) for _ in seeds]
    for number, ((_, held), (_, _, seed)) in enumerate(zip(rows, parts, strict=True)):
        found[list(seeds).index(seed)][held.numpy()] = scores[held, number].numpy()
    return found


def folds_of(labels: Ints, folds: int, repeat: int) -> Ints:
    """The fold, from 0, that holds each image out."""
    fold_of = np.empty(len(labels), dtype=np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a skewed population may have fewer images of a class than folds
        for number, (_, held) in enumerate(divided(labels, folds, repeat)):
            fold_of[held] = number
    return fold_of


def kept(path: Path) -> dict[str, NDArray[Any]]:
    """What is there of a population."""
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as there:
        return dict(there)


def advance(stages: Sequence[Stage], path: Path, pixels: NDArray[np.uint8], labels: Ints, own_seeds: int) -> int:
    """Train what a population lacks, and write it to `path`; how many trainings that were.

    `own_seeds` is added to the seeds, so that they are those of this population alone.
    """
    there, trainings = kept(path), 0
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last)
    for stage in stages:
        wanted = [(seed, repeat) for seed in stage.seeds for repeat in stage.repeats]
        wanted = [one for one in wanted if key(stage.arm, *one) not in there]
        at_once = max(1, TOGETHER // stage.folds)
        for first in range(0, len(wanted), at_once):
            chunk = wanted[first : first + at_once]
            fold_of = [folds_of(labels, stage.folds, repeat) for _, repeat in chunk]
            seeds = [own_seeds + 100 * repeat + seed for seed, repeat in chunk]
            found = held_out(images, torch.from_numpy(labels), fold_of, WIDTHS[stage.arm], seeds)
            there |= {key(stage.arm, *one): scores for one, scores in zip(chunk, found, strict=True)}
            for (_, repeat), own in zip(chunk, fold_of, strict=True):
                assert np.array_equal(there.setdefault(f"fold-{repeat}", own), own), f"{path} was divided otherwise"
            trainings += len(chunk) * stage.folds
    if trainings:
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, **there | {"labels": labels})
        os.replace(partial, path)
    return trainings


def key(arm: str, seed: int, repeat: int) -> str:
    return f"{arm}-{seed}-{repeat}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--minutes", type=float, default=90.0, help="processor time after which it stops")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pixels, labels = read_images(args.data, args.work / "cache")
    every = {kind: populations(kind, labels) for kind in ("600", "skewed", "2000")}
    for turn in range(5):
        for counts, stages in STAGES:
            folder = args.work / stages[0].folder
            folder.mkdir(parents=True, exist_ok=True)
            for number, rows in enumerate(every[stages[0].kind][: counts[turn]]):
                began = time.process_time()
                own_seeds = 0 if folder.name == SAME_SEEDS else 1000 * (number + 1)
                trainings = advance(stages, folder / f"{number:03d}.npz", pixels[rows], labels[rows], own_seeds)
                if trainings:
                    seconds = time.process_time() - began
                    print(f"{folder.name}/{number:03d}: {trainings} trainings, {seconds:.1f} s", flush=True)
                if time.process_time() > 60 * args.minutes:
                    print("the time is up: the same command goes on from here")
                    return


if __name__ == "__main__":
    main()
