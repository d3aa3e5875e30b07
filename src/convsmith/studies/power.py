"""What a study of a given size will find, and how large it must be, from what varies. Nothing is trained here.

What varies is told apart as in `variance`: images, whose difference lasts from training to training or does not, and
the excess noise of trainings. More repeats average out all but what lasts, which only more images make smaller.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from convsmith import records
from convsmith.data.dataset import Dataset
from convsmith.errors import UserError
from convsmith.rundir import RunDir, kind_of, runs_in
from convsmith.studies import text
from convsmith.studies.comparison import ARMS
from convsmith.studies.config import BASE, MOST_RUNS
from convsmith.studies.statistics import corrected_level
from convsmith.studies.study import MOST_DIVISIONS
from convsmith.studies.variance import ASSUMED_TRAININGS_STD, assumed_images_std, detectable

POWER = 0.8
ASSUMED_LASTING = 0.1  # of the variance between images; small nets on CIFAR-10 that differ in width showed 0.03
SMALL = 0.05  # a study that finds no smaller difference in accuracy is called small
USUAL = 0.02  # a difference in accuracy that a technique may well make


@dataclass(frozen=True)
class Components:
    """What varies, as standard deviations of differences in the metric's own unit, and where that is known from.

    `lasting` is that between images of what lasts over trainings, `passing` that of an image between trainings, and
    `trainings` the excess noise of a training.
    """

    lasting: float
    passing: float
    trainings: float
    source: str

    def images(self, passes: int) -> float:
        """The standard deviation between images of the difference that is averaged over `passes` trainings of each."""
        return math.sqrt(self.lasting**2 + self.passing**2 / passes)


def assumed() -> Components:
    """What is assumed of differences in accuracy before anything was trained."""
    whole = assumed_images_std()
    return Components(
        whole * math.sqrt(ASSUMED_LASTING),
        whole * math.sqrt(1 - ASSUMED_LASTING),
        ASSUMED_TRAININGS_STD,
        f"assumed: arm and base disagree on {100 * whole**2:.0f}% of the images, of which {100 * ASSUMED_LASTING:.0f}% "
        f"lasts from training to training, and a training has ±{100 * ASSUMED_TRAININGS_STD:g}% of noise of its own; a "
        "study on these data measures it",
    )


def recorded(runs_dir: Path, metric: str, data_hash: str) -> Components | None:
    """The median over the arms of the study in `runs_dir` that ran last on the same data with the same metric."""
    for run in runs_in(runs_dir) if runs_dir.is_dir() else []:
        try:
            if kind_of(run) != "ablate" or not run.ablation.exists():
                continue
            if records.read(run.path / ARMS, records.Arms)[BASE]["hash"] != data_hash:
                continue
            record = records.read(run.ablation, records.Ablation)
        except UserError:  # it is damaged, which `resume` says of the one that it is given
            continue
        if record["metric"] == metric and (known := _of_record(run, record)):
            return known
    return None


def _of_record(run: RunDir, record: Mapping[str, Any]) -> Components | None:
    found = []
    for arm in record["arms"]:
        images, trainings, passing = (arm.get(key) for key in ("images_std", "trainings_std", "rest_std"))
        if not images or trainings is None:
            continue
        passes = max(1, round(len(arm["per_fold"]) / record["folds"]))
        if passing is None:  # each image was held out once
            passing = images * math.sqrt(1 - ASSUMED_LASTING)
        found.append((math.sqrt(max(0.0, images**2 - passing**2 / passes)), passing, trainings))
    if not found:
        return None
    lasting, passing, trainings = (median(values) for values in zip(*found, strict=True))
    return Components(lasting, passing, trainings, f"as measured by the study '{run.path}'")


@dataclass(frozen=True)
class Design:
    """The size of a study of `arms` besides the base on `images` images, or groups of images as `units` says."""

    folds: int
    repeats: int
    seeds: int
    arms: int
    images: int
    units: str = "images"

    @property
    def runs(self) -> int:
        """The trainings of each arm."""
        return self.folds * self.repeats * self.seeds

    @property
    def most_repeats(self) -> int:
        """The largest number of repeats that a study may have."""
        return max(1, min(MOST_DIVISIONS // self.folds, MOST_RUNS // (self.folds * self.seeds * (1 + self.arms))))

    def repeated(self, repeats: int) -> Design:
        return replace(self, repeats=repeats)

    def finds(self, known: Components) -> float:
        """The smallest difference that the study calls in 8 of 10 cases, after Holm's correction, if `known` is so."""
        of_images = known.images(self.repeats * self.seeds)
        level, cells = corrected_level(self.arms), self.folds * self.repeats
        return detectable(of_images, known.trainings, self.images, self.runs, level, POWER, cells)


def enough(design: Design, known: Components, difference: float) -> Design | None:
    """The design with the fewest repeats that finds the `difference`; None where no possible number of them does."""
    low, high = 0, 1
    while design.repeated(high).finds(known) > difference:
        if high >= design.most_repeats:
            return None
        low, high = high, min(2 * high, design.most_repeats)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if design.repeated(middle).finds(known) <= difference else (middle, high)
    return design.repeated(high)


def images_for(design: Design, known: Components, difference: float) -> int:
    """About how many images are needed at least, however often the study is repeated."""
    return math.ceil(design.images * (design.repeated(design.most_repeats).finds(known) / difference) ** 2)


def power(design: Design, known: Components, metric: str) -> str:
    """A sentence on what a study will find; for accuracy with what it would need, if that is little."""
    finds, shown = design.finds(known), text.unit(metric)

    def words(difference: float) -> str:
        return shown.words(shown.value(difference))

    said = f"differences of {words(finds)} or more would be found in 8 of 10 such studies ({known.source})"
    if metric != "accuracy" or finds < SMALL:
        return said
    if enough_of := enough(design, known, USUAL):
        need = f"--repeats {enough_of.repeats} ({enough_of.runs} trainings of each arm) finds {words(USUAL)}"
    else:
        least = f"{images_for(design, known, USUAL):,} {design.units}"
        need = f"for {words(USUAL)} no number of repeats suffices, but at least {least} with many repeats"
    return f"{said}. That is too small a study for the differences that are usual: {need}"


def units_of(dataset: Dataset) -> tuple[int, str]:
    """What varies in the data, and the word for it: their images, or the groups of which these come."""
    groups = dataset.pool_groups()
    return (len(dataset.pool()), "images") if groups is None else (len(np.unique(groups)), "groups of images")


def known_of(runs_dir: Path, metric: str, dataset: Dataset) -> Components | None:
    """How differences vary: as an earlier study in `runs_dir` measured it, or as is assumed of accuracy."""
    return recorded(runs_dir, metric, dataset.hash) or (assumed() if metric == "accuracy" else None)
