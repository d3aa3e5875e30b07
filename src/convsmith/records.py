"""The schema of every file that is written or read, and the table of METRICS. Computes nothing and imports no NumPy.

Whoever writes a file and whoever reads it use the same schema, through `write` and `read`. A file says in
`format_version` which edition of the schemas it follows; the files of the first edition say nothing and count as 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from convsmith.errors import UserError
from convsmith.files import read_json, write_json

FORMAT_VERSION = 2

Unit = Literal["share", "nats", "score"]


@dataclass(frozen=True)
class Metric:
    """One way to score a classifier on labelled images.

    `name` is its key in every file, `label` its heading. A `share` lies in [0, 1] and is shown in per cent, `nats` are
    those of a cross-entropy, and a `score` is a number without a unit; `digits` are shown behind the point. The
    function of the same name in `prediction.metrics` computes it. Where `averages` is true it has a value a class, and
    an evaluation holds its macro, micro and weighted averages; the macro average goes by the bare name. `lowest` and
    `highest` bound it. The `headline` metrics are those that a table shows where it has no room for all. Up to
    `one_up_to` classes it is 1 whatever a net does, and nothing to show.
    """

    name: str
    label: str
    unit: Unit
    higher_is_better: bool = True
    digits: int = 2
    averages: bool = False
    lowest: float = 0.0
    highest: float = 1.0
    headline: bool = False
    one_up_to: int = 0

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is: the factor that makes the best value the largest."""
        return 1 if self.higher_is_better else -1

    @property
    def heading(self) -> str:
        """The label, with the unit where the values do not show theirs: ``loss (nats)``."""
        return f"{self.label} ({self.unit})" if self.unit == "nats" else self.label

    @property
    def scale(self) -> int:
        """What a value is multiplied by to be shown in its unit."""
        return 100 if self.unit == "share" else 1

    def within(self, value: float) -> float:
        """`value`, or the bound that it is beyond: of the end of a symmetric interval."""
        return min(max(value, self.lowest), self.highest)


#: Every metric, by its name, in the order in which tables show them.
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "accuracy", "share", headline=True),
        Metric("precision", "precision", "share", averages=True, headline=True),
        Metric("recall", "recall", "share", averages=True, headline=True),
        Metric("f1", "F1", "share", averages=True, headline=True),
        Metric("loss", "loss", "nats", higher_is_better=False, digits=4, highest=math.inf, headline=True),
        Metric("ece", "ECE", "share", higher_is_better=False),
        Metric("top5_accuracy", "top-5 accuracy", "share", one_up_to=5),
        Metric("balanced_accuracy", "balanced accuracy", "share"),
        Metric("auroc", "AUROC", "score", digits=4),
        Metric("mcc", "MCC", "score", digits=4, lowest=-1.0),
    )
}
HEADLINES: tuple[str, ...] = tuple(name for name, metric in METRICS.items() if metric.headline)

#: What `train.monitor` may be, and under which names metrics.csv, W&B and tuning have the metrics of the val split.
MONITORS: tuple[str, ...] = tuple(f"val_{name}" for name in METRICS)

if TYPE_CHECKING:
    MetricName = str
    Monitor = str
else:  # types for a config's field, whose choices are those of the table
    MetricName = Literal[tuple(METRICS)]
    Monitor = Literal[MONITORS]

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Names = Annotated[list[str], Field(min_length=1)]


def metric_of(monitor: str) -> Metric:
    """The metric that ``val_<name>`` monitors."""
    return METRICS[monitor.removeprefix("val_")]


def is_better(monitor: str, row: Mapping[str, Any], best: Mapping[str, Any] | None, min_delta: float = 0.0) -> bool:
    """Whether the epoch of `row` is to be kept in place of `best`, an earlier epoch; both are rows of metrics.csv.

    It is where its `monitor` is better by more than `min_delta`, or, with a `min_delta` of 0, where both are equal and
    its val_loss is lower: an accuracy of few images has many ties. Otherwise the earlier epoch stays. UserError where
    a row has no such metric (an older edition recorded it).
    """
    if best is None:
        return True
    gain = metric_of(monitor).sign * (recorded(row, monitor) - recorded(best, monitor))
    tied = gain == 0 and min_delta == 0
    return gain > min_delta or (tied and recorded(row, "val_loss") < recorded(best, "val_loss"))


def shown(metric: str, value: float) -> str:
    """A value of this metric (or of the val split's, as in val_f1) in words: ``91.60%`` or ``0.2481``."""
    known = metric_of(metric)
    return f"{known.scale * value:.{known.digits}f}{'%' if known.unit == 'share' else ''}"


def metric_values(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Each metric's value by its name, from the record of an evaluation; those that its edition did not know lack."""
    found = {name: evaluation[name] for name in METRICS if name in evaluation}
    return {name: value["macro"] if METRICS[name].averages else value for name, value in found.items()}


def worth_showing(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """As `metric_values`, but for those that are 1 for so few classes whatever a net does."""
    classes = len(evaluation["classes"])
    return {name: value for name, value in metric_values(evaluation).items() if classes > METRICS[name].one_up_to}


def recorded(record: Mapping[str, Any], name: str) -> float:
    """The number of this name in a row or a record; UserError where its edition did not record it."""
    if record.get(name) is None:
        known = ", ".join(key for key in record if key in METRICS or key in MONITORS)
        raise UserError(f"this run has not recorded '{name}' (an older convsmith wrote it). It has: {known}")
    return float(record[name])


class Record(BaseModel):
    """Base of every schema. Keys that a schema does not name pass: later editions may add some."""

    model_config = ConfigDict(allow_inf_nan=False, extra="allow")

    format_version: Count = 1


class Scored(Record):
    """Base of what holds metrics by their names, or those of the val split as val_<name>: each lies in its bounds.

    None stands for a metric that the run's edition did not know.
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


class Averages(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False, extra="allow")

    macro: Share


class ClassScores(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False, extra="allow")

    precision: Share
    recall: Share
    f1: Share
    support: Annotated[int, Field(ge=0)]


class ConfusionMatrix(BaseModel):
    """Rows are true classes, columns predicted ones."""

    model_config = ConfigDict(extra="allow")

    labels: Names
    counts: list[list[Annotated[int, Field(ge=0)]]]


class Evaluation(Scored):
    """evaluation-<split>.json. Metrics that came after the first edition are absent from its files."""

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


class CleanTraining(BaseModel):
    """How the kept model does on a fixed sample of `n` train images without augmentation, in eval mode."""

    model_config = ConfigDict(allow_inf_nan=False, extra="allow")

    accuracy: Share
    loss: NotNegative
    n: Count


class Summary(Record):
    """summary.json of a finished run; `val` holds each metric of the val split by its name."""

    name: str
    best_epoch: Count
    epochs: Count
    val: dict[str, float]
    train: CleanTraining | None = None
    parameters: Count
    seconds: NotNegative
    images_per_second: NotNegative
    stopped_because: str
    skipped_files: int = 0


class SplitIds(BaseModel):
    model_config = ConfigDict(extra="allow")

    train: Names
    val: Names


class Splits(Record):
    """splits.json: the ids of each split, and the hash of the data that was divided."""

    hash: str
    splits: SplitIds


class Environment(Record):
    """environment.json."""

    versions: dict[str, str] = {}


class Unread(BaseModel):
    model_config = ConfigDict(extra="allow")

    id: str
    kind: str
    message: str


class Skipped(Record):
    """skipped.json: the files that do not decode, and why. The first edition wrote the bare list."""

    files: list[Unread]


class DataCheck(Record):
    """What `data check --out` writes: a verdict on each file, and what was found of all of them together."""

    source: str
    files: list[dict[str, Any]]
    verdicts: dict[str, Count]
    counts: dict[str, dict[str, Annotated[int, Field(ge=0)]]]


class TestAccess(Record):
    """A line of test-access.jsonl."""

    when: str
    command: str


class Fold(Scored):
    """fold.json of a finished fold: what it scored on the images that it held out."""

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


class Division(BaseModel):
    model_config = ConfigDict(extra="allow", populate_by_name=True)

    repeat: Count
    number: Count
    train: list[int]
    val: list[int]


class Folds(Record):
    """folds.json of a study: the ids of the pool and of the sealed test split; folds as positions in the pool."""

    hash: str
    pool: Names
    test: list[str]
    divisions: Annotated[list[Division], Field(min_length=1)]


class StudyStart(Record):
    """begun.json: what study.yaml and config.yaml said when the study was started."""

    study: dict[str, Any]
    config: dict[str, Any]


class ArmStart(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False, extra="allow")

    config: dict[str, Any]
    hash: str
    seconds_per_epoch: NotNegative


class Arms(Record):
    """arms.json: by its name each arm's resolved config, the hash of its data, and the expected seconds an epoch."""

    __pydantic_extra__: dict[str, ArmStart]


class Optuna(Record):
    """optuna.json: where Optuna keeps a tuning study, and the data of its base config with their hash."""

    study: str
    storage: str | None
    data: dict[str, Any]
    hash: str


class FoldScore(Scored):
    fold: Count
    n: Count
    seconds: NotNegative


class Crossval(Record):
    """crossval.json; `std` and `ci95` are empty where fewer than two folds are done."""

    folds: Count
    repeats: Count
    missing: dict[str, str]
    per_fold: list[FoldScore]
    mean: dict[str, float]
    std: dict[str, float]
    ci95: dict[str, tuple[float, float]]


class Arm(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False, extra="allow")

    name: str
    changes: dict[str, Any]
    mean: float | None
    verdict: str = ""


class Ablation(Record):
    """ablation.json."""

    metric: str
    base: Arm
    arms: list[Arm]


class MetricsRow(Scored):
    """A row of metrics.csv. A cell of a metric that the run's edition did not know is absent."""

    epoch: Count
    train_loss: float  # focal and weighted losses, smoothing and penalties included
    train_accuracy: Share
    val_loss: NotNegative
    val_accuracy: Share
    val_f1: Share
    learning_rate: NotNegative
    seconds: NotNegative


def write(path: Path, kind: type[Record], value: Mapping[str, Any]) -> dict[str, Any]:
    """Write `value` as JSON with the present `format_version` in front, and return what `read` will give of it.

    A value that does not fit its schema is our own mistake: an AssertionError.
    """
    record = versioned(value)
    problem = _problem(kind, record)
    assert problem is None, f"{path.name}: {problem}"
    write_json(path, record)
    return dict(value)


def read(path: Path, kind: type[Record]) -> dict[str, Any]:
    """A JSON object that fits its schema, without `format_version`.

    UserError where it does not fit, or where a newer edition wrote it.
    """
    value = read_json(path)
    check(path, kind, value)
    return unversioned(path, value)


def versioned(value: Mapping[str, Any]) -> dict[str, Any]:
    """`value` with the present `format_version` in front."""
    return {"format_version": FORMAT_VERSION, **value}


def unversioned(path: Path, value: Mapping[str, Any]) -> dict[str, Any]:
    """`value`, read from `path`, without its `format_version`; UserError where a newer edition wrote it."""
    refuse_newer(path, value.get("format_version", 1))
    return {key: inner for key, inner in value.items() if key != "format_version"}


def check(path: Path, kind: type[Record], value: Any, where: str = "") -> None:
    """UserError where `value`, read from `path` (at `where`), does not fit `kind` or is of a newer edition."""
    if isinstance(value, Mapping):
        refuse_newer(path, value.get("format_version", 1))
    if (problem := _problem(kind, value)) is not None:
        raise damaged(path, where + problem)


def refuse_newer(path: Path, version: Any) -> None:
    """UserError for a file of a later edition than this one can read."""
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise damaged(path, f"format_version is {version!r}")
    if version > FORMAT_VERSION:
        raise UserError(
            f"'{path}' was written by a newer convsmith (format_version {version}; this one reads up to "
            f"{FORMAT_VERSION}): pip install --upgrade convsmith"
        )


def damaged(path: Path, reason: str) -> UserError:
    """The error for a file that does not hold what it should."""
    return UserError(f"'{path}' is damaged ({reason}): restore it, or run again")


def read_lines(path: Path, kind: type[Record]) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file; none where the file is absent."""
    if not path.exists():
        return []
    try:
        values = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    except ValueError as error:
        raise damaged(path, str(error)) from None
    for number, value in enumerate(values, start=1):
        check(path, kind, value, f"line {number}, ")
    return values


def _problem(kind: type[Record], value: Any) -> str | None:
    """``precision.macro: Field required``; None where the value fits."""
    try:
        kind.model_validate(value)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        return f"{key}: {problem['msg']}" if key else str(problem["msg"])
    return None
