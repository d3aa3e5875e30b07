"""What the trainings of a study found image by image, from their predictions. Nothing is trained or tested here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from convsmith import records
from convsmith.data.dataset import HELD_OUT
from convsmith.errors import UserError, damaged
from convsmith.prediction.evaluation import read_predictions
from convsmith.prediction.influence import BY_IMAGE
from convsmith.prediction.metrics import Outcomes
from convsmith.rundir import RunDir
from convsmith.studies.variance import Training

AGREE = 1e-3  # relative; how far a metric may be from the recorded one, which came from unrounded probabilities


class Job(Protocol):
    """A training of a study that is done: see `fold_job.FoldJob`."""

    @property
    def directory(self) -> str: ...
    @property
    def index(self) -> int: ...
    def record(self) -> dict[str, Any]: ...


@dataclass(frozen=True, eq=False)
class Predicted:
    """The predictions of a training for the images that it held out, by their positions in the pool, int64 [n]."""

    path: Path
    record: Mapping[str, Any]
    images: NDArray[np.int64]
    groups: NDArray[np.int64] | None
    outcomes: Outcomes

    def training(self, metric: str) -> Training:
        """The values of the images, whose mean is the metric; UserError if it is not the one that was recorded.

        The loss is not, where probabilities were so small that their file has them as 0.
        """
        values = BY_IMAGE[metric](self.outcomes)
        found, known = float(values.mean()), records.recorded(self.record, metric)
        if abs(found - known) > AGREE * max(1.0, abs(known)):
            raise UserError(
                f"the {metric} of each image cannot be had from '{self.path}': its rows give {found:.4g}, and "
                f"{known:.4g} was recorded; choose another metric"
            )
        place = self.record
        return Training(place["repeat"], place["fold"], place["seed"], self.images, values, self.groups)


def predicted(jobs: Iterable[Job], folds: Mapping[str, Any]) -> list[Predicted]:
    """The predictions of `jobs`, all of them done; `folds` is the content of folds.json.

    UserError where those of a training are gone or damaged.
    """
    position = {name: at for at, name in enumerate(folds["pool"])}
    groups = None if (known := folds.get("groups")) is None else np.array(known, dtype=np.int64)
    return [_read(job, folds["divisions"][job.index], position, groups) for job in jobs]


def differences(
    arm: Mapping[int, Job], base: Mapping[int, Job], folds: Mapping[str, Any], metric: str
) -> list[Training]:
    """The paired differences, arm minus base, of the trainings that both have done, in the order of their indices."""
    both = sorted(arm.keys() & base.keys())
    ours, theirs = (predicted((of[index] for index in both), folds) for of in (arm, base))
    return [less(one.training(metric), other.training(metric)) for one, other in zip(ours, theirs, strict=True)]


def differences_of_all(
    arms: Mapping[str, Mapping[int, Job]], base: Mapping[int, Job], folds: Mapping[str, Any], metric: str
) -> dict[str, list[Training] | UserError]:
    """As `differences`, of each arm by its name, or why an arm has none. The base is read once."""

    def read(jobs: Mapping[int, Job]) -> dict[int, Training]:
        indices = sorted(jobs)
        return {
            index: of.training(metric)
            for index, of in zip(indices, predicted((jobs[index] for index in indices), folds), strict=True)
        }

    found: dict[str, list[Training] | UserError] = {}
    theirs: dict[int, Training] | None = None
    for name, jobs in arms.items():
        try:
            theirs = read(base) if theirs is None else theirs
            ours = read({index: jobs[index] for index in jobs.keys() & base.keys()})
            found[name] = [less(one, theirs[index]) for index, one in ours.items()]
        except UserError as error:
            found[name] = error
    return found


def less(one: Training, other: Training) -> Training:
    """The difference of two trainings of one fold."""
    assert np.array_equal(one.images, other.images), "two trainings of a fold hold out the same images"
    return Training(one.repeat, one.fold, one.seed, one.images, one.values - other.values, one.groups)


def _read(
    job: Job, division: Mapping[str, Any], position: Mapping[str, int], groups: NDArray[np.int64] | None
) -> Predicted:
    run = RunDir(Path(job.directory))
    path = run.predictions(HELD_OUT)
    known = read_predictions(path, records.read(run.evaluation(HELD_OUT), records.Evaluation)["classes"])
    found = np.array([position.get(name, -1) for name in known.ids], dtype=np.int64)
    images, order = np.sort(np.array(division[HELD_OUT], dtype=np.int64)), np.argsort(found)
    if not np.array_equal(found[order], images):
        raise damaged(path, "its images are not those that this fold held out")
    outcomes = Outcomes(known.labels[order], known.log_probabilities[order], known.probabilities[order])
    return Predicted(path, job.record(), images, None if groups is None else groups[images], outcomes)
