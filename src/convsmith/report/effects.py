"""What an arm of an ablation changes, image by image and class by class. No drawing, and nothing is trained.

The differences come from `studies.by_image`, and their intervals from `studies.variance`, as those of the study do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convsmith import records
from convsmith.data.dataset import HELD_OUT
from convsmith.rundir import RunDir
from convsmith.studies.by_image import less, predicted
from convsmith.studies.comparison import Plan
from convsmith.studies.config import BASE
from convsmith.studies.statistics import corrected_level
from convsmith.studies.variance import Shared, Training, cells, compare_by_image, moments, shared_excess

FEWEST = 2  # images of a class, below which nothing varies


@dataclass(frozen=True)
class ClassEffect:
    """What an arm changes in the accuracy on the images of a class; `interval` allows for the number of classes.

    It is None where the images show no variation that it could be computed from.
    """

    name: str
    images: int
    difference: float
    interval: tuple[float, float] | None

    @property
    def kind(self) -> str:
        """As in `intervals.SHAPES`: ``helps`` or ``hurts`` where the interval excludes zero, else ``unclear``."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return "unclear"
        return "helps" if self.difference > 0 else "hurts"


@dataclass(frozen=True, eq=False)
class Sides:
    """How often each image of the pool was classified correctly by the trainings of the base and of an arm.

    `trainings`, `base` and `arm` int64 [N] are counts; an image that no training of both held out has 0 trainings.
    `base_said` and `arm_said` int64 [N] are the classes of the last wrong predictions, -1 where there was none.
    """

    labels: NDArray[np.int64]
    trainings: NDArray[np.int64]
    base: NDArray[np.int64]
    arm: NDArray[np.int64]
    base_said: NDArray[np.int64]
    arm_said: NDArray[np.int64]

    @property
    def shift(self) -> NDArray[np.float64]:
        """The share of its trainings by which an image was right more often under the arm, float64 [N]."""
        shift: NDArray[np.float64] = (self.arm - self.base) / self.trainings.clip(min=1)
        return shift

    def changed(self, better: bool) -> NDArray[np.int64]:
        """Positions of the images that are right more often under the arm (or less often), the most changed first."""
        shift = self.shift if better else -self.shift
        order = np.argsort(-shift, kind="stable")
        return order[: int((shift > 0).sum())]


@dataclass(frozen=True, eq=False)
class Seen:
    """What a training found on the images that it held out: by metric, and its answers (classes, int64 [n])."""

    values: dict[str, Training]
    labels: NDArray[np.int64]
    answers: NDArray[np.int64]


def of_an_image(metric: str) -> str:
    """What is told of an image in a study of this metric: the metric, if it is a mean over images, or the accuracy."""
    return metric if records.METRICS[metric].mean else "accuracy"


def seen(plan: Plan, arm: str) -> dict[int, Seen]:
    """The trainings of an arm that are done, by their index. UserError where their files are gone or damaged."""
    metrics, found = dict.fromkeys([of_an_image(plan.spec["metric"]), "accuracy"]), {}
    for index, job in plan.done(arm).items():
        (one,) = predicted([job], plan.folds)  # one after the other: the probabilities of a whole study may be many
        values = {metric: one.training(metric) for metric in metrics}
        found[index] = Seen(values, one.outcomes.labels, one.outcomes.predicted)
    return found


@dataclass(frozen=True, eq=False)
class Paired:
    """The trainings that an arm and the base have both done; `pool` has the names of the images."""

    pool: Sequence[str]
    classes: Sequence[str]
    pairs: Sequence[tuple[Seen, Seen]]

    @classmethod
    def of(cls, plan: Plan, arm: str, base: Mapping[int, Seen]) -> Paired:
        """`base` is what `seen` gives for the base. UserError as there."""
        ours, first = seen(plan, arm), next(iter(plan.done(BASE).values()))
        names = records.read(RunDir(Path(first.directory)).evaluation(HELD_OUT), records.Evaluation)["classes"]
        return cls(plan.folds["pool"], names, [(ours[at], base[at]) for at in sorted(ours.keys() & base.keys())])

    def differences(self, metric: str) -> list[Training]:
        """Arm minus base, image by image, of each training: of the metric `of_an_image`, or of the accuracy."""
        return [less(ours.values[metric], base.values[metric]) for ours, base in self.pairs]

    @cached_property
    def sides(self) -> Sides:
        size = len(self.pool)
        trainings, base, arm = (np.zeros(size, dtype=np.int64) for _ in range(3))
        labels, base_said, arm_said = (np.full(size, -1, dtype=np.int64) for _ in range(3))
        for ours, theirs in self.pairs:
            images = theirs.values["accuracy"].images
            trainings[images] += 1
            labels[images] = theirs.labels
            for found, right, said in ((theirs, base, base_said), (ours, arm, arm_said)):
                correct = found.answers == found.labels
                right[images] += correct
                said[images] = np.where(correct, said[images], found.answers)
        return Sides(labels, trainings, base, arm, base_said, arm_said)


def by_image(trainings: Sequence[Training]) -> NDArray[np.float64]:
    """The mean difference of each image over the trainings that held it out, float64 [images]."""
    images, at = np.unique(np.concatenate([one.images for one in trainings]), return_inverse=True)
    values = np.concatenate([one.values for one in trainings])
    means: NDArray[np.float64] = np.bincount(at, values, len(images)) / np.bincount(at, minlength=len(images))
    return means


def class_effects(paired: Paired) -> list[ClassEffect]:
    """The effect on each class, the largest gain first.

    Each class has the interval of the test by image, at the level corrected for the classes (Bonferroni), so that
    all of them hold together with the study's level. What the trainings add to the noise of images is known of few
    trainings only: the classes share it, as the arms of a study do.
    """
    trainings, labels = paired.differences("accuracy"), paired.sides.labels
    level = corrected_level(len(paired.classes))
    of_classes: dict[str, list[Training]] = {}
    for number, name in enumerate(paired.classes):
        those = (_those(training, labels[training.images] == number) for training in trainings)
        if of_class := [one for one in those if len(one.images)]:
            of_classes[name] = of_class
    shared = shared_excess([moments(of_class) for of_class in of_classes.values() if _testable(of_class)])
    found = [
        ClassEffect(name, len(_images(of_class)), *_effect(of_class, level, shared))
        for name, of_class in of_classes.items()
    ]
    return sorted(found, key=lambda one: -one.difference)


def _those(training: Training, wanted: NDArray[np.bool_]) -> Training:
    groups = None if training.groups is None else training.groups[wanted]
    return replace(training, images=training.images[wanted], values=training.values[wanted], groups=groups)


def _images(trainings: Sequence[Training]) -> set[int]:
    return set().union(*(one.images.tolist() for one in trainings))


def _testable(trainings: Sequence[Training]) -> bool:
    """Whether several folds have held out images of a class; two images are the fewest that vary."""
    return cells(trainings) > 1 and len(_images(trainings)) >= FEWEST


def _effect(
    trainings: Sequence[Training], level: float, shared: Shared | None
) -> tuple[float, tuple[float, float] | None]:
    """The difference on a class with its interval; None where there is too little to have one."""
    if not _testable(trainings):
        return float(by_image(trainings).mean()), None
    found = compare_by_image(trainings, level=level, shared=shared)
    if found.low is None or found.high is None or found.standard_error == 0:  # few images that do not differ are few
        return found.mean_difference, None
    return found.mean_difference, (max(-1.0, found.low), min(1.0, found.high))


def gains(effects: Sequence[ClassEffect]) -> Mapping[str, list[str]]:
    """The names of the classes whose interval excludes zero, by kind."""
    return {kind: [one.name for one in effects if one.kind == kind] for kind in ("helps", "hurts")}
