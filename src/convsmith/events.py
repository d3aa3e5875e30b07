"""What happens during long work, as values: trainings and studies tell of it, whoever listens may show it.

A listener is a function of one event. It changes nothing: what is computed does not depend on who listens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Counted:
    """Work that is counted: `done` of `total` things. `what` says which, such as ``decoding`` or ``explaining``."""

    what: str
    done: int
    total: int


@dataclass(frozen=True)
class Note:
    """A sentence that a person should read."""

    text: str


@dataclass(frozen=True)
class TrainingStarted:
    """A training before its next step: what it trains on, with what, and what that is expected to take.

    `train`, `val` and `test` count images, `skipped` files that do not decode; `macs` are the multiply-accumulate
    operations of one image; `memory` is in bytes; `seconds_per_epoch` is None where it was not measured. `image_epochs`
    of the `epochs` train on images, the others on features that are computed once. `step` steps are done, and an epoch
    has `steps`.
    """

    directory: Path
    source: str
    train: int
    val: int
    test: int
    skipped: int
    classes: int
    image_size: int
    working_size: int
    channels: int
    resize: str
    model: str
    parameters: int
    macs: int
    device: str
    threads: int
    layout: str
    memory: float
    seconds_per_epoch: float | None
    epochs: int
    image_epochs: int
    steps: int
    step: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class StepProgress:
    """The present epoch so far. `loss` is the mean data loss, `seconds` the time in training."""

    epoch: int
    position: int
    steps: int
    step: int
    loss: float
    accuracy: float
    images: int
    learning_rate: float
    seconds: float
    bad_step: int  # the first step whose loss was not finite, or -1

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class EpochEnd:
    """A finished epoch: its row in metrics.csv, and whether it is the best so far."""

    row: dict[str, Any]
    best: bool


@dataclass(frozen=True)
class FeatureExtractionProgress:
    """The one pass over the images that a frozen backbone needs: how many are done, of how many."""

    done: int
    total: int


@dataclass(frozen=True)
class Unfroze:
    """From the epoch after `epoch` on, `stages` train too; `parameters` are all that train then."""

    epoch: int
    stages: tuple[str, ...]
    parameters: int


@dataclass(frozen=True)
class Interrupted:
    """The run has been saved and can be resumed."""

    signal: int


@dataclass(frozen=True)
class Finished:
    """A run at its end: summary.json, evaluation-val.json, and where its tracker shows it."""

    summary: dict[str, Any]
    evaluation: dict[str, Any]
    tracked: str | None


@dataclass(frozen=True)
class Written:
    """Files that a command has written."""

    paths: tuple[Path, ...]


@dataclass(frozen=True)
class Serving:
    """A server answers at `url`, until it is interrupted; `local`: it can be reached from this machine alone."""

    url: str
    port: int
    local: bool


@dataclass(frozen=True)
class StudyStarted:
    """A new study has been written to `directory`, and its first run follows.

    `seconds` is the time that all its `runs` are expected to take, `max_workers` at a time; `sealed` is the number of
    images in the test split, which no run reads.
    """

    directory: Path
    question: str | None
    source: str
    sealed: int
    runs: int
    max_workers: int
    seconds: float


@dataclass(frozen=True)
class CrossvalStarted(StudyStarted):
    """`images` are divided into folds, the first of which has `train`, `val` (inner validation) and `held_out`."""

    images: int
    train: int
    val: int
    held_out: int
    model: str
    epochs: int
    threads: int


@dataclass(frozen=True)
class AblationStarted(StudyStarted):
    """`arms` (the base is one) are compared on `images`.

    `detectable` is the smallest difference in accuracy that 8 of 10 such studies would find; None for other metrics.
    """

    arms: int
    folds: int
    repeats: int
    seeds: int
    images: int
    detectable: float | None
    budget: float | None  # minutes


@dataclass(frozen=True)
class TuningStarted(StudyStarted):
    """`space` has the keys that are searched; `name` is Optuna's for the study in `storage`."""

    train: int
    val: int
    space: tuple[str, ...]
    pruner: str
    seed: int
    epochs: int
    threads: int
    storage: str | None
    name: str


@dataclass(frozen=True)
class LrFindStarted:
    """A learning-rate range test begins: `steps` batches from the rate `low` to `high`."""

    model: str
    source: str
    optimizer: str
    batch_size: int
    low: float
    high: float
    steps: int


@dataclass(frozen=True)
class JobsStarted:
    """A study has `total` runs to do, of which `before` were done when it was called. `what` they are called."""

    total: int
    before: int
    what: str = "runs"


@dataclass(frozen=True)
class JobProgress:
    """Run `index` of a study's waiting runs is at `share` (0 to 1)."""

    index: int
    share: float


@dataclass(frozen=True)
class JobDone:
    """A run of a study has ended: its `record`, or why it `failed`."""

    index: int
    name: str
    record: Mapping[str, Any] | None
    failed: str | None = None


@dataclass(frozen=True)
class ArmGivenUp:
    """Successive halving gives up an arm after `done` of its `runs`, to keep within the budget."""

    arm: str
    done: int
    runs: int


@dataclass(frozen=True)
class TrialDone:
    """A trial has ended: its record as in trials.csv, and the `best` one so far (None while none is complete)."""

    metric: str
    record: Mapping[str, Any]
    best: Mapping[str, Any] | None


Listener = Callable[[Any], None]


def nobody(event: object) -> None:
    """A listener that shows nothing."""
