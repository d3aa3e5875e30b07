"""Events that trainings, studies and other long tasks emit. Shows nothing.

A listener is a function of one event. It must not change anything: results do not depend on listeners.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Counted:
    """`done` of `total` items are processed. `what` names the work, for example ``decoding`` or ``explaining``."""

    what: str
    done: int
    total: int


@dataclass(frozen=True)
class Doing:
    """Work begins of which nothing is counted, for example ``evaluating``; the next event ends it."""

    what: str


@dataclass(frozen=True)
class Note:
    """A sentence that a person should read; one that `bears_on_result` is shown again where a training has ended."""

    text: str
    bears_on_result: bool = False


@dataclass(frozen=True)
class ReportWritten:
    """The report at the end of a training."""

    path: Path


@dataclass(frozen=True)
class TrainingStarted:
    """A training is about to start or to be resumed: its data, its network, and the expected cost.

    `train`, `val` and `test` are numbers of images, `unused` numbers of files by the reason; `is_own`
    says whether the data or the network came from Python; `macs` are the multiply-accumulate operations for one image;
    `memory` is in bytes; `seconds_per_epoch` is None if it was not measured. `image_epochs` of the `epochs` train
    stages, on images or on kept outputs of frozen stages, the others the head, on features that are computed once.
    `step` steps have been done; an epoch has `steps` steps. `watch` is the command that shows the run's numbers live,
    if there is one; `keep` is train.keep; `feed` says how images reach an accelerator.
    """

    directory: Path
    source: str
    train: int
    val: int
    test: int
    unused: Mapping[str, int]
    classes: tuple[str, ...]
    image_size: int | tuple[int, int]
    working_size: int | tuple[int, int]
    channels: int
    resize: str
    model: str
    is_own: bool
    parameters: int
    macs: int
    device: str
    threads: int
    layout: str
    precision: str
    memory: float
    seconds_per_epoch: float | None
    epochs: int
    image_epochs: int
    steps: int
    step: int
    notes: tuple[str, ...]
    watch: str | None = None
    keep: str = "best"
    feed: str = ""


@dataclass(frozen=True)
class StepProgress:
    """The current epoch so far. `loss` is the mean data loss, `seconds` the time spent in training."""

    epoch: int
    position: int
    steps: int
    step: int
    loss: float
    accuracy: float
    images: int
    learning_rate: float
    seconds: float
    bad_step: int  # the first step with a loss that is not finite, or -1

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class EpochEnd:
    """A finished epoch: its row in metrics.csv, and whether it is the best so far, where that one is kept."""

    row: dict[str, Any]
    best: bool


@dataclass(frozen=True)
class FeatureExtractionProgress:
    """Progress of the single pass over the images that a frozen backbone needs, in images."""

    done: int
    total: int


@dataclass(frozen=True)
class Unfroze:
    """From the epoch after `epoch` on, `stages` are trained as well; `parameters` is their total number."""

    epoch: int
    stages: tuple[str, ...]
    parameters: int


@dataclass(frozen=True)
class Interrupted:
    """The run has been saved and can be resumed."""

    signal: int


@dataclass(frozen=True)
class Finished:
    """A run has finished: its summary.json, its evaluation-val.json (if any), and where its tracker shows it."""

    summary: dict[str, Any]
    evaluation: dict[str, Any] | None
    tracked: str | None


@dataclass(frozen=True)
class Ended:
    """All that a training writes is written, its report included."""


@dataclass(frozen=True)
class Serving:
    """A server responds at `url` until it is interrupted; if `local`, it can be reached only from this machine."""

    url: str
    port: int
    local: bool


@dataclass(frozen=True)
class StudyStarted:
    """A new study has been written to `directory`, and its first run is about to start.

    `seconds` is the expected duration of all `runs`, with `max_workers` at a time; `sealed` is the number of
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
    """`images` are divided into folds; the first has `train`, `val` (inner validation) and `held_out` images."""

    images: int
    train: int
    val: int
    held_out: int
    model: str
    epochs: int
    threads: int


@dataclass(frozen=True)
class AblationStarted(StudyStarted):
    """`arms` (including the base) are compared on `images`.

    `detectable` is the smallest difference that 8 of 10 such studies would detect, and `power` says so in words, with
    what is assumed; None where nothing is known of how the metric varies.
    """

    arms: int
    folds: int
    repeats: int
    seeds: int
    images: int
    detectable: float | None
    power: str | None
    budget: float | None  # minutes


@dataclass(frozen=True)
class TuningStarted(StudyStarted):
    """`space` lists the keys that are searched; `name` is Optuna's name for the study in `storage`."""

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
    """A learning-rate range test starts: `steps` batches, with rates from `low` to `high`."""

    model: str
    source: str
    optimizer: str
    batch_size: int
    low: float
    high: float
    steps: int


@dataclass(frozen=True)
class JobsStarted:
    """A study has `total` runs, of which `before` had been done already. `what` is the word for them."""

    total: int
    before: int
    what: str = "runs"


@dataclass(frozen=True)
class JobProgress:
    """Progress of run `index` among a study's remaining runs: `share` is from 0 to 1."""

    index: int
    share: float


@dataclass(frozen=True)
class JobDone:
    """A run of a study has ended, with its `record` or the reason why it `failed`."""

    index: int
    name: str
    record: Mapping[str, Any] | None
    failed: str | None = None


@dataclass(frozen=True)
class ArmGivenUp:
    """Successive halving has dropped an arm after `done` of its `runs`, to stay within the budget."""

    arm: str
    done: int
    runs: int


#: Why a look has stopped an arm before the end of the plan.
STOPPED = {
    "verdict": "its verdict is clear",
    "no chance": "the trainings that are left would hardly bring a verdict",
    "budget": "the budget is spent",
}


@dataclass(frozen=True)
class ArmStopped:
    """A look at a study has stopped an arm after `done` of its `runs`; `because` is one of `interim.REASONS`."""

    arm: str
    because: str
    done: int
    runs: int


@dataclass(frozen=True)
class RaceStarted:
    """A race of candidates starts or goes on: what was found in the data, and how they are divided.

    `folds` is 0 where a part of the images is set aside for the estimate; `held_out` images are it, or a fold.
    """

    directory: Path
    source: str
    lines: tuple[str, ...]
    images: int
    folds: int
    held_out: int
    sealed: int
    minutes: float
    backbones: int
    spent: float


@dataclass(frozen=True)
class CandidateDone:
    """A candidate of a race has ended, with its entry in auto.json, after `spent` of the `budget` in seconds.

    `means` are its mean `accuracy` and `loss` over the inner validation images of the folds; None if it was left out.
    """

    entry: Mapping[str, Any]
    means: Mapping[str, float | None]
    spent: float
    budget: float


@dataclass(frozen=True)
class RaceWon:
    """The race is over: the winner is trained on all that the estimate leaves."""

    name: str
    because: str
    images: int


@dataclass(frozen=True)
class TrialDone:
    """A trial has ended, with its record as in trials.csv and the `best` one so far (None if none is complete)."""

    metric: str
    record: Mapping[str, Any]
    best: Mapping[str, Any] | None


Listener = Callable[[Any], None]


def counter(listener: Listener, what: str, within: Doing | None = None) -> Callable[[int, int], None]:
    """A function of (done, total) that tells a listener how far the counted work `what` has come.

    It is a part of other work, `within`, which begins before it and goes on after it.
    """
    if within:
        listener(within)

    def tell(done: int, total: int) -> None:
        listener(Counted(what, done, total))
        if within and done == total:
            listener(within)

    return tell


def nobody(event: object) -> None:
    """A listener that shows nothing."""
