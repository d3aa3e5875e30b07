"""The schemas of all JSON files, and the table of METRICS. Computes nothing and imports no NumPy.

Code that writes a file and code that reads it use the same schema, through `write` and `read`. `format_version` is the
edition of the schemas that a file follows; files of the first edition do not have it, which counts as 1.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from convsmith.errors import UserError, damaged
from convsmith.files import LARGEST_JSON, parse_json, read_json, read_text, write_json

FORMAT_VERSION = 2
STOPPED_EARLY = "early stopping"  # of a summary: why training ended before its last epoch

Unit = Literal["share", "nats", "score"]


@dataclass(frozen=True)
class Metric:
    """One way to score a classifier on labelled images.

    `name` is its key in all files, and `label` its heading. A `share` lies in [0, 1] and is shown in per cent, `nats`
    is the unit of a cross-entropy, and a `score` is a number without a unit; `digits` is the number of decimals shown.
    The function of the same name in `prediction.metrics` computes it. If `averages` is true, it has one value per
    class, and an evaluation contains its macro, micro and weighted averages; the bare name means the macro average.
    A `mean` over images is one as it is; what an image adds to any metric says `prediction.influence`.
    `lowest` and `highest` are its bounds. Tables that lack room for all metrics show the `headline` metrics. With up
    to `one_up_to` classes its value is always 1, and it is not shown.
    """

    name: str
    label: str
    unit: Unit
    higher_is_better: bool = True
    digits: int = 2
    averages: bool = False
    mean: bool = False
    lowest: float = 0.0
    highest: float = 1.0
    headline: bool = False
    one_up_to: int = 0

    @property
    def sign(self) -> int:
        """1 if higher is better, otherwise -1: the factor that makes the best value the largest."""
        return 1 if self.higher_is_better else -1

    @property
    def heading(self) -> str:
        """The label, with the unit if the values are shown without it: ``loss (nats)``."""
        return f"{self.label} ({self.unit})" if self.unit == "nats" else self.label

    @property
    def scale(self) -> int:
        """The factor by which a value is multiplied to be shown in its unit."""
        return 100 if self.unit == "share" else 1

    def within(self, value: float) -> float:
        """`value`, clipped to the bounds; for the ends of symmetric intervals."""
        return min(max(value, self.lowest), self.highest)


#: All metrics by name, in the order in which tables show them.
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "accuracy", "share", mean=True, headline=True),
        Metric("precision", "precision", "share", averages=True, headline=True),
        Metric("recall", "recall", "share", averages=True, headline=True),
        Metric("f1", "F1", "share", averages=True, headline=True),
        Metric("loss", "loss", "nats", higher_is_better=False, digits=4, mean=True, highest=math.inf, headline=True),
        Metric("ece", "ECE", "share", higher_is_better=False),
        Metric("top5_accuracy", "top-5 accuracy", "share", mean=True, one_up_to=5),
        Metric("balanced_accuracy", "balanced accuracy", "share"),
        Metric("auroc", "AUROC", "score", digits=4),
        Metric("mcc", "MCC", "score", digits=4, lowest=-1.0),
    )
}
HEADLINES: tuple[str, ...] = tuple(name for name, metric in METRICS.items() if metric.headline)

#: The choices of `train.monitor`, and the names of the val split's metrics in metrics.csv, W&B and tuning.
MONITORS: tuple[str, ...] = tuple(f"val_{name}" for name in METRICS)

if TYPE_CHECKING:
    MetricName = str
    Monitor = str
else:  # types for config fields, whose choices are those of the table
    MetricName = Literal[tuple(METRICS)]
    Monitor = Literal[MONITORS]

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0, le=2**53)]
NotNegative = Annotated[float, Field(ge=0)]
Names = Annotated[list[str], Field(min_length=1)]
Ends = Annotated[list[float], Field(min_length=2, max_length=2)]
Positions = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


def metric_of(monitor: str) -> Metric:
    """The metric that ``val_<name>`` monitors."""
    return METRICS[monitor.removeprefix("val_")]


def is_better(monitor: str, row: Mapping[str, Any], best: Mapping[str, Any] | None, min_delta: float = 0.0) -> bool:
    """Whether the epoch of `row` should replace the earlier epoch of `best`; both are rows of metrics.csv.

    It should if its `monitor` is better by more than `min_delta`, or, with a `min_delta` of 0, if both are equal and
    its val_loss is lower, since the accuracy on few images has many ties. Raises UserError if a row does not have the
    metric because an older edition wrote it.
    """
    if best is None:
        return True
    gain = metric_of(monitor).sign * (recorded(row, monitor) - recorded(best, monitor))
    tied = gain == 0 and min_delta == 0
    return gain > min_delta or (tied and recorded(row, "val_loss") < recorded(best, "val_loss"))


def shown(metric: str, value: float) -> str:
    """A value of this metric (or of the val split's, as in val_f1) as text: ``91.60%`` or ``0.2481``."""
    known = metric_of(metric)
    return f"{known.scale * value:.{known.digits}f}{'%' if known.unit == 'share' else ''}"


def metric_values(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """The metrics' values by name, from the record of an evaluation, without those that its edition did not know."""
    found = {name: evaluation[name] for name in METRICS if name in evaluation}
    return {name: value["macro"] if METRICS[name].averages else value for name, value in found.items()}


def informative(classes: int) -> dict[str, Metric]:
    """The metrics that can differ from 1 with so many classes; the others are not shown."""
    return {name: metric for name, metric in METRICS.items() if classes > metric.one_up_to}


def worth_showing(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Like `metric_values`, but only of the metrics that are `informative`."""
    kept = informative(len(evaluation["classes"]))
    return {name: value for name, value in metric_values(evaluation).items() if name in kept}


def recorded(record: Mapping[str, Any], name: str) -> float:
    """The number of this name in a row or a record; raises UserError if its edition did not record it."""
    if record.get(name) is None:
        known = ", ".join(key for key in record if key in METRICS or key in MONITORS)
        raise UserError(f"this run has no record of '{name}' (an older convsmith wrote it). It has: {known}")
    return float(record[name])


class Part(BaseModel):
    """Base of all schemas. Keys that a schema does not name are accepted, since later editions may add some."""

    model_config = ConfigDict(allow_inf_nan=False, extra="allow")


class Record(Part):
    """Base of the schemas of files and of their rows."""

    format_version: Count = 1


class Scored(Record):
    """Base of schemas with metrics by name, or as val_<name> for the val split; each must lie within its bounds.

    None means that the run's edition did not know the metric.
    """

    @model_validator(mode="after")
    def _within_bounds(self) -> Scored:
        for key, value in (self.model_extra or {}).items():
            if (metric := METRICS.get(key.removeprefix("val_"))) is None or value is None:
                continue
            for number in value.values() if metric.averages and isinstance(value, dict) else [value]:
                if not isinstance(number, int | float) or number != metric.within(number):
                    raise ValueError(f"{key} is {number}")
        return self


class Averages(Part):
    macro: Share
    micro: Share
    weighted: Share


class ClassScores(Part):
    precision: Share
    recall: Share
    f1: Share
    support: Annotated[int, Field(ge=0)]


class ConfusionMatrix(Part):
    """Rows are true classes, columns are predicted classes."""

    labels: Names
    counts: list[list[Annotated[int, Field(ge=0)]]]


class EvaluatedData(Part):
    """What `evaluate --data` was given: its place, one of its own splits (none: all images), and the images' hash.

    `skipped` files could not be decoded.
    """

    name: str
    source: str
    split: str | None
    hash: str
    skipped: Whole = 0


class Evaluation(Scored):
    """evaluation-<split>.json. Files of the first edition lack the metrics that were added later.

    `data` is there where the images are not a split of the run's own data.
    """

    n: Count
    accuracy: Share
    loss: NotNegative
    precision: Averages
    recall: Averages
    f1: Averages
    ece: Share
    per_class: dict[str, ClassScores]
    confusion_matrix: ConfusionMatrix
    classes: Names
    data: EvaluatedData | None = None

    @model_validator(mode="after")
    def _is_of_its_classes(self) -> Evaluation:
        names, counts = self.classes, self.confusion_matrix.counts
        if len(set(names)) < len(names):
            raise ValueError("classes has a name twice")
        if self.confusion_matrix.labels != names or self.per_class.keys() != set(names):
            raise ValueError("per_class or confusion_matrix.labels has other names than classes")
        if {len(counts), *map(len, counts)} != {len(names)}:
            raise ValueError("confusion_matrix.counts does not have a row and a column for each class")
        return self


class CleanTraining(Part):
    """Scores of the kept model on a fixed sample of `n` train images without augmentation, in eval mode."""

    accuracy: Share
    loss: NotNegative
    n: Count


class Summary(Record):
    """summary.json of a finished run; `val` holds each metric of the val split by its name, or is null without one."""

    name: str
    best_epoch: Count
    epochs: Count
    val: dict[str, float] | None
    train: CleanTraining | None = None
    parameters: Count
    seconds: NotNegative
    images_per_second: NotNegative
    stopped_because: str
    skipped_files: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _has_what_all_have(self) -> Summary:
        if self.val is not None and (missing := [name for name in HEADLINES if name not in self.val]):
            raise ValueError(f"val has no {missing[0]}")
        if self.best_epoch > self.epochs:
            raise ValueError(f"best_epoch is {self.best_epoch} of {self.epochs}")
        return self


class SplitIds(Part):
    """The ids of a split by its name; `test` and others are there only where the data have them. `val` may be empty."""

    __pydantic_extra__: dict[str, list[str]]
    train: Names
    val: list[str]

    @model_validator(mode="after")
    def _no_image_twice(self) -> SplitIds:
        ids = [name for part in (self.train, self.val, *self.__pydantic_extra__.values()) for name in part]
        if len(set(ids)) < len(ids):
            twice = next(name for name, times in Counter(ids).items() if times > 1)
            raise ValueError(f"'{twice}' is in it twice")
        return self


class ShardFacts(Part):
    """The size of a shard in bytes, and a hash of its headers and labels."""

    size: Count
    hash: str


class Splits(Record):
    """splits.json: the ids of each split, and the hash of the data.

    Of streamed images `shards` holds facts about each shard by its name.
    """

    hash: str
    splits: SplitIds
    shards: dict[str, ShardFacts] = {}


class Environment(Record):
    """environment.json; the versions of packages by name, and facts about the machine.

    `asked` is the config of a training before anything was chosen; empty where it was not recorded.
    """

    __pydantic_extra__: dict[str, str | int | float | bool | None]
    versions: dict[str, str] = {}
    asked: dict[str, Any] = {}


class Unread(Part):
    id: str
    kind: str
    message: str


class Skipped(Record):
    """skipped.json: the files that cannot be decoded, with reasons. The first edition wrote a bare list."""

    files: list[Unread]


class DataCheck(Record):
    """The file that `data check --out` writes: a verdict on each file, and results for all files together."""

    source: str
    files: list[dict[str, Any]]
    verdicts: dict[str, Count]
    counts: dict[str, dict[str, Annotated[int, Field(ge=0)]]]


class TestAccess(Record):
    """A line of test-access.jsonl."""

    when: str
    command: str


class Fold(Scored):
    """fold.json of a finished fold: its scores on the held-out images."""

    fold: Count
    repeat: Count
    seed: int
    n: Count
    seconds: NotNegative
    accuracy: Share
    precision: Share
    recall: Share
    f1: Share
    loss: NotNegative
    best_epoch: Count
    epochs: Count
    chosen: dict[str, Any]


class Division(Part):
    repeat: Count
    number: Count
    train: Positions
    val: Positions
    held_out: Positions = Field(alias="held-out")


class Folds(Record):
    """folds.json of a study: the ids of the pool and of the sealed test split, and folds as positions in the pool.

    `groups` has a number for each image of the pool, by which images belong together; None without `data.groups`.
    """

    hash: str
    pool: Names
    test: list[str]
    divisions: Annotated[list[Division], Field(min_length=1)]
    groups: list[Whole] | None = None

    @model_validator(mode="after")
    def _positions_are_in_the_pool(self) -> Folds:
        if self.groups is not None and len(self.groups) != len(self.pool):
            raise ValueError(f"groups has {len(self.groups)} numbers for {len(self.pool)} images")
        for number, one in enumerate(self.divisions):
            last = max(map(max, (one.train, one.val, one.held_out)))
            if last >= len(self.pool):
                raise ValueError(f"divisions.{number} names image {last} of {len(self.pool)}")
        return self


#: What varies in the statistics of a study: its images and trainings, or, in studies of older versions, its folds.
Test = Literal["images", "folds"]


def test_of(study: Mapping[str, Any]) -> Test:
    """The test of a study, from its study.yaml, ablation.json or crossval.json."""
    return "images" if study.get("test") == "images" else "folds"


class CrossvalSpec(Record):
    """study.yaml of a cross-validation."""

    kind: Literal["crossval"]
    folds: Count
    repeats: Count
    config: dict[str, dict[str, Any]]
    test: Test = "folds"


class AblationSpec(Record):
    """study.yaml of an ablation study."""

    kind: Literal["ablate"]
    question: str | None
    expected: dict[str, str]
    folds: Count
    repeats: Count
    seeds: Count
    metric: MetricName
    margin: NotNegative | None
    budget: NotNegative | None
    choices: list[dict[str, dict[str, Any]]]
    choice_epochs: Annotated[int, Field(ge=0)]
    base: dict[str, dict[str, Any]]
    arms: dict[str, dict[str, Any]]
    test: Test = "folds"
    stopping: Literal["looks"] | None = None  # how a budget is kept; in older versions by halving the arms


class TuningSpec(Record):
    """study.yaml of a tuning study; `studies.tune_config` checks its keys."""

    kind: Literal["tune"]


class AutoSpec(Record):
    """study.yaml of a race that has not ended; then its directory becomes that of a run."""

    kind: Literal["auto"]
    config: dict[str, dict[str, Any]]
    arrays: str | None = None  # the fingerprint of arrays, which have no other name


StudyKind = Literal["crossval", "ablate", "tune", "auto"]
#: The schema of study.yaml by its `kind`.
SPECS: dict[StudyKind, type[Record]] = {
    "crossval": CrossvalSpec,
    "ablate": AblationSpec,
    "tune": TuningSpec,
    "auto": AutoSpec,
}


class RacedFold(Part):
    """A candidate on the inner validation images of a fold, after calibration by `temperature`."""

    loss: NotNegative
    accuracy: Share
    n: Count
    temperature: Annotated[float, Field(gt=0)]
    penalty: NotNegative | None = None


class Raced(Part):
    """A candidate of a race: what it changes in the config, and how it ended, with the reason where it did not win."""

    name: str
    family: Literal["probe", "finetune", "scratch"]
    layer: dict[str, dict[str, Any]]
    state: Literal["raced", "stopped", "skipped"]
    reason: str = ""
    seconds: NotNegative
    folds: list[RacedFold] = []


class Estimate(Part):
    """The honest estimate: `how` is out of fold, or on images that were set aside; `scores` holds the metrics."""

    how: str
    n: Count
    accuracy: Share
    interval: Annotated[list[Share], Field(min_length=2, max_length=2)]
    scores: dict[str, float]
    sentence: str


class Auto(Record):
    """auto.json: the race of `convsmith auto`, written after each candidate. `folds` is 0 for a part set aside."""

    config: dict[str, dict[str, Any]]
    minutes: NotNegative
    seconds: NotNegative
    data: list[str]
    side: Count
    together: list[list[str]]
    images: Count
    folds: Whole
    candidates: list[Raced]
    running: dict[str, Any] | None = None
    winner: str | None = None
    temperature: Annotated[float, Field(gt=0)] | None = None
    stopped_because: str | None = None
    estimate: Estimate | None = None


class StudyStart(Record):
    """begun.json: the content of study.yaml and config.yaml when the study was started."""

    study: dict[str, Any]
    config: dict[str, Any]


class ArmStart(Part):
    config: dict[str, Any]
    hash: str
    seconds_per_epoch: NotNegative


class Arms(Record):
    """arms.json: each arm's resolved config, the hash of its data, and the expected seconds per epoch, by name."""

    __pydantic_extra__: dict[str, ArmStart]
    base: ArmStart


StopReason = Literal["verdict", "no chance", "budget", "plan"]


class ArmLook(Part):
    """What a look says of an arm: the share of its trainings, the test's p-values, the chance of a verdict."""

    fraction: Annotated[float, Field(gt=0, le=1)]
    p: Share
    p_equivalent: Share | None
    chance: Share | None = None


class Look(Part):
    """A look at a study: its trainings so far by arm, those that had not failed, who stopped, how far the others go."""

    trainings: dict[str, Whole]
    finished: dict[str, Whole]
    seconds: NotNegative
    arms: dict[str, ArmLook]
    stopped: dict[str, StopReason]
    next: dict[str, Whole]  # empty in the last look


class Looks(Record):
    """looks.json of an ablation with a budget; `workers` trainings at a time when it was started."""

    workers: Count
    looks: list[Look]


class Optuna(Record):
    """optuna.json: where Optuna stores a tuning study, and its base config's data section with the data's hash."""

    study: str
    storage: str | None
    data: dict[str, Any]
    hash: str


class FoldScore(Scored):
    fold: Count
    repeat: Count
    n: Count
    seconds: NotNegative


class Crossval(Record):
    """crossval.json; `std` and `ci95` are empty if fewer than two folds are finished.

    `without_interval` says of other metrics why they are not in these.
    """

    folds: Count
    repeats: Count
    missing: dict[str, str]
    per_fold: list[FoldScore]
    mean: dict[str, float]
    std: dict[str, float]
    ci95: dict[str, Ends]
    without_interval: dict[str, str] = {}
    test: Test = "folds"

    @model_validator(mode="after")
    def _metrics_are_in_every_part(self) -> Crossval:
        known = self.mean.keys() | self.std.keys() | self.ci95.keys()
        if unknown := known - METRICS.keys():
            raise ValueError(f"it has no metric {min(unknown)}")
        if self.std.keys() != self.ci95.keys() or not self.std.keys() <= self.mean.keys():
            raise ValueError("mean, std and ci95 have different metrics")
        for fold in self.per_fold:
            scores = fold.model_extra or {}
            if missing := [name for name in self.mean if not isinstance(scores.get(name), int | float)]:
                raise ValueError(f"per_fold has no {missing[0]}")
        return self


class ArmTraining(Part):
    """A training of an arm on a fold; `difference` from the base's, for all arms but the base."""

    fold: Count
    repeat: Count
    seed: int
    value: float
    seconds: NotNegative
    chosen: dict[str, Any]
    difference: float = 0.0


class Arm(Part):
    name: str
    changes: dict[str, Any]
    mean: float | None
    seconds: float | None
    per_fold: list[ArmTraining]


class BaseArm(Arm):
    std: float | None


class ArmStop(Part):
    """The look (from 1) that has stopped an arm, after how many trainings and why; the nominal level of its interval.

    "verdict": it was clear. "no chance": the rest of the plan would hardly bring one. "plan": all of it was done.
    """

    because: StopReason
    look: Count
    trainings: Whole
    level: Annotated[float, Field(gt=0, lt=1)]


class ComparedArm(Arm):
    difference: float | None
    ci95: Ends | None
    p: float | None
    p_holm: float | None
    bootstrap95: Ends | None
    verdict: str
    missing: Whole
    stopped: ArmStop | None = None


class Ablation(Record):
    """ablation.json; `studies.text` tells what its keys mean."""

    question: str | None
    metric: MetricName
    folds: Count
    repeats: Count
    seeds: Count
    margin: float | None
    level: Annotated[float, Field(gt=0, lt=1)]
    choices: list[dict[str, Any]]
    data: str
    n_images: Count
    epochs: Count
    base: BaseArm
    arms: list[ComparedArm]
    detectable: float | None
    dropped: dict[str, Count]
    failed: dict[str, str]
    test: Test = "folds"
    looks: Whole | None = None  # at a study with a budget, of so many minutes
    budget: NotNegative | None = None


class MetricsRow(Scored):
    """A row of metrics.csv. Cells of metrics that the run's edition did not know are absent."""

    epoch: Count
    train_loss: float  # the training loss, including focal terms, class weights and smoothing
    train_accuracy: Share
    val_loss: NotNegative
    val_accuracy: Share
    val_f1: Share
    learning_rate: NotNegative
    seconds: NotNegative


class _State(BaseModel):
    """Base of what a resume takes over as it is: whole numbers are no floats, and true is no number."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")


class ScheduleState(_State):
    """What the schedule plateau remembers."""

    factor: NotNegative
    best: float | None
    bad_epochs: Whole


class StoppingState(_State):
    """What early stopping remembers. The first edition did not keep `best_loss`."""

    monitor: Monitor
    patience: Whole | None
    min_delta: NotNegative
    best: float | None
    best_epoch: Whole
    reference: float | None
    bad_epochs: Whole
    best_loss: float | None = None
    keep: Literal["best", "last"] = "best"


class Scaling(Record):
    """How the losses of a training in float16 are scaled."""

    factor: Annotated[float, Field(gt=0)]
    good_steps: Whole


class Checkpoint(Record):
    """The facts of a checkpoint: what a training's state has besides tensors, and the config of that time."""

    model_config = ConfigDict(strict=True)

    epoch: Whole
    position: Whole
    step: Whole
    seconds: NotNegative
    total_seconds: NotNegative
    rates: Annotated[list[NotNegative], Field(min_length=1)]
    phase: Whole
    schedule: ScheduleState
    stopper: StoppingState
    config: dict[str, dict[str, Any]] = {}
    own_optimizer: list[dict[str, Any]] | None = None
    scaling: Scaling | None = None
    ranks: Annotated[int, Field(ge=1)] = 1  # the processes that trained together

    @model_validator(mode="after")
    def _possible(self) -> Checkpoint:
        if self.step < self.epoch + self.position:
            raise ValueError(f"{self.step} steps are too few for {self.epoch} epochs and {self.position} batches")
        if self.stopper.best_epoch > self.epoch:
            raise ValueError(f"the best of {self.epoch} epochs is epoch {self.stopper.best_epoch}")
        return self


def write(path: Path, kind: type[Record], value: Mapping[str, Any]) -> dict[str, Any]:
    """Write `value` as JSON with the current `format_version` in front, and return what `read` will return for it.

    A value that does not fit its schema is our own mistake and raises AssertionError.
    """
    record = versioned(value)
    reason = problem(kind, record)
    assert reason is None, f"{path.name}: {reason}"
    write_json(path, record)
    return dict(value)


def read(path: Path, kind: type[Record]) -> dict[str, Any]:
    """Read a JSON object that fits its schema, without `format_version`.

    Raises UserError if it does not fit, or if a newer edition wrote it.
    """
    value = read_json(path)
    check(path, kind, value)
    return unversioned(path, value)


def versioned(value: Mapping[str, Any]) -> dict[str, Any]:
    """`value` with the current `format_version` in front."""
    return {"format_version": FORMAT_VERSION, **value}


def unversioned(path: Path, value: Mapping[str, Any]) -> dict[str, Any]:
    """`value`, read from `path`, without its `format_version`; raises UserError if a newer edition wrote it."""
    refuse_newer(path, value.get("format_version", 1))
    return {key: inner for key, inner in value.items() if key != "format_version"}


def check(path: Path, kind: type[Record], value: Any, where: str = "") -> None:
    """Raise UserError if `value`, read from `path` (at `where`), does not fit `kind` or is of a newer edition.

    Numbers in quotes do not fit, since the value is used as it was read.
    """
    if isinstance(value, Mapping):
        refuse_newer(path, value.get("format_version", 1))
    if (reason := problem(kind, value, strict=True)) is not None:
        raise damaged(path, where + reason)


def refuse_newer(path: Path, version: Any) -> None:
    """Raise UserError for a file of a newer edition, which this one cannot read."""
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise damaged(path, f"format_version is {version!r}")
    if version > FORMAT_VERSION:
        raise UserError(
            f"'{path}' was written by a newer convsmith (format_version {version}; this one reads up to "
            f"{FORMAT_VERSION}): pip install --upgrade convsmith"
        )


def read_lines(path: Path, kind: type[Record]) -> list[dict[str, Any]]:
    """Read the objects of a JSON Lines file; none if the file does not exist."""
    if not path.exists():
        return []
    try:
        text = read_text(path, LARGEST_JSON)
        values = [parse_json(line) for line in text.removesuffix("\n").split("\n") if line]
    except ValueError as error:
        raise damaged(path, str(error)) from None
    for number, value in enumerate(values, start=1):
        check(path, kind, value, f"line {number}, ")
    return values


def problem(kind: type[BaseModel], value: Any, strict: bool | None = None) -> str | None:
    """The first problem, for example ``precision.macro: Field required``; None if the value fits.

    Only with `strict`, or where the schema itself asks for it, are conversions problems, such as of a text to a number
    or of a tuple to a list.
    """
    try:
        kind.model_validate(value, strict=strict)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        return f"{key}: {first['msg']}" if key else str(first["msg"])
    return None
