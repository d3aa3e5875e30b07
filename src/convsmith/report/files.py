"""The files of a run as they were written, or else one line that says which of them is damaged and where."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from convsmith.errors import UserError
from convsmith.files import read_json
from convsmith.tracking import csv as metrics_csv

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Loss = Annotated[float, Field(ge=0)]
Many = Annotated[list[str], Field(min_length=1)]


class _Known(BaseModel):
    """What a page reads of a JSON file; whatever else is in it passes."""

    model_config = ConfigDict(allow_inf_nan=False)


class _Macro(_Known):
    macro: Share


class Evaluation(_Known):
    """evaluation-<split>.json."""

    n: Count
    accuracy: Share
    loss: Loss
    precision: _Macro
    recall: _Macro
    f1: _Macro
    ece: Share


class Summary(_Known):
    """summary.json."""

    best_epoch: Count
    epochs: Count
    parameters: Count
    seconds: Loss
    stopped_because: str


class _Parts(_Known):
    train: Many
    val: Many


class Splits(_Known):
    """splits.json."""

    hash: str
    splits: _Parts


class Fold(_Known):
    """fold.json of a fold of a cross-validation."""

    fold: Count
    repeat: Count


class Folds(_Known):
    """folds.json of a study."""

    hash: str


class _Scored(_Known):
    fold: Count
    n: Count
    seconds: Loss
    accuracy: Share
    precision: Share
    recall: Share
    f1: Share
    loss: Loss


class Crossval(_Known):
    """crossval.json; `std` and `ci95` are empty where fewer than two folds are done."""

    folds: Count
    repeats: Count
    missing: dict[str, str]
    per_fold: Annotated[list[_Scored], Field(min_length=1)]
    mean: dict[str, float]
    std: dict[str, float]
    ci95: dict[str, tuple[float, float]]


class Environment(_Known):
    """environment.json."""

    versions: dict[str, str] = {}


class Opening(_Known):
    """A line of test-access.jsonl."""

    when: str
    command: str


class MetricsRow(_Known):
    """A row of metrics.csv."""

    epoch: Count
    train_loss: float  # focal and weighted losses, smoothing and penalties included
    train_accuracy: Share
    val_loss: Loss
    val_accuracy: Share
    val_f1: Share
    learning_rate: Loss
    seconds: Loss


@dataclass(frozen=True, eq=False)
class Predictions:
    """predictions-<split>.csv: `labels` int64 [N] index `classes`, `probabilities` float64 [N, K]."""

    ids: tuple[str, ...]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    classes: tuple[str, ...]

    @property
    def predicted(self) -> NDArray[np.int64]:
        winners: NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return winners

    @property
    def right(self) -> NDArray[np.bool_]:
        verdicts: NDArray[np.bool_] = self.predicted == self.labels
        return verdicts

    @property
    def log_probabilities(self) -> NDArray[np.float64]:
        """Logits up to a constant a row, hence good for losses and temperatures. A probability of 0 counts as 1e-45."""
        least = float(np.finfo(np.float32).smallest_subnormal)
        logarithms: NDArray[np.float64] = np.log(self.probabilities.clip(min=least))
        return logarithms

    @property
    def losses(self) -> NDArray[np.float64]:
        """The cross-entropy of each image in nats, float64 [N]."""
        losses: NDArray[np.float64] = -self.log_probabilities[np.arange(len(self.labels)), self.labels]
        return losses


def read(path: Path, kind: type[BaseModel]) -> dict[str, Any]:
    """A JSON object that has what `kind` names; UserError where it has not."""
    value = read_json(path)
    _check(path, kind, value)
    return dict(value)


def read_openings(path: Path) -> list[dict[str, Any]]:
    """The lines of test-access.jsonl; none where the file is absent, as the test split was never opened."""
    if not path.exists():
        return []
    try:
        openings = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    except ValueError as error:
        raise _damaged(path, str(error)) from None
    for opening in openings:
        _check(path, Opening, opening)
    return openings


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics.csv, at least one."""
    rows = [dict(row) for row in metrics_csv.read(path)]
    if not rows:
        raise _damaged(path, "it has no whole row")
    for number, row in enumerate(rows, start=1):
        _check(path, MetricsRow, row, f"row {number}, ")
    return rows


def read_predictions(path: Path, classes: Sequence[str], repeats: int = 1) -> Predictions:
    """A predictions-<split>.csv of a model with these `classes`.

    Of an image that is in it `repeats` times, as after a repeated cross-validation, the probabilities are averaged.
    """
    index = {name: at for at, name in enumerate(classes)}
    sums: dict[str, NDArray[np.float64]] = {}
    labels: dict[str, int] = {}
    times: dict[str, int] = {}
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            for number, row in enumerate(csv.DictReader(lines), start=1):
                name = row["id"]
                chances = np.array([float(row[f"p_{label}"]) for label in classes])
                if not math.isfinite(chances.sum()) or chances.min() < 0 or abs(chances.sum() - 1) > 0.01:
                    raise _damaged(path, f"row {number}: its probabilities are no shares of 1")
                if labels.setdefault(name, index[row["label"]]) != index[row["label"]]:
                    raise _damaged(path, f"row {number}: '{name}' has two labels")
                sums[name] = sums.get(name, 0) + chances
                times[name] = times.get(name, 0) + 1
                if times[name] > repeats:
                    raise _damaged(path, f"row {number}: '{name}' is in it more than once")
    except KeyError as error:
        raise _damaged(path, f"no column or class {error}") from None
    except (TypeError, csv.Error) as error:  # a row that ends too soon, a byte that no table has
        raise _damaged(path, str(error)) from None
    except UserError:
        raise
    except ValueError as error:
        raise _damaged(path, str(error)) from None
    if not sums:
        raise _damaged(path, "it has no rows")
    means = np.array([total / times[name] for name, total in sums.items()])
    return Predictions(tuple(sums), np.array(list(labels.values()), dtype=np.int64), means, tuple(classes))


def _check(path: Path, kind: type[BaseModel], value: Any, where: str = "") -> None:
    try:
        kind.model_validate(value)
    except ValidationError as error:
        raise _damaged(path, where + _first(error)) from None


def _first(error: ValidationError) -> str:
    """``precision.macro: Field required``."""
    problem = error.errors()[0]
    key = ".".join(map(str, problem["loc"]))
    return f"{key}: {problem['msg']}" if key else str(problem["msg"])


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"'{path}' is damaged ({reason}): restore it, or run again")
