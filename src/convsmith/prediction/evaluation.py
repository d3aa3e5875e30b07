"""The record of evaluation-<split>.json and the rows of predictions-<split>.csv. Runs no model.

Both are computed from the same labels and logits and agree exactly: every number of the record except the loss can be
recomputed from the rows, with the probabilities read as float32. `prediction.evaluate` runs the model.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convsmith.errors import UserError, damaged, missing
from convsmith.files import open_text
from convsmith.prediction.metrics import COMPUTE, Averages, Outcomes, confusion_matrix, probabilities
from convsmith.records import METRICS


def evaluation(labels: NDArray[np.int64], logits: NDArray[Any], classes: Sequence[str]) -> dict[str, Any]:
    """Compute the record of a split from `labels` int64 [N], `logits` float [N, K] and the names of the K `classes`.

    It holds each of `METRICS` by its name; those with `averages` are objects, and are in `per_class` as well. Raises
    `RunFailed` if a logit is not a finite number.
    """
    assert logits.shape[1] == len(classes), f"{logits.shape[1]} logits, {len(classes)} classes"
    outcomes = Outcomes(labels, logits)
    values = {name: COMPUTE[name](outcomes) for name in METRICS}
    averages = {name: value for name, value in values.items() if isinstance(value, Averages)}
    return {
        "n": len(labels),
        **{name: value.to_dict() if isinstance(value, Averages) else value for name, value in values.items()},
        "per_class": {
            name: {
                **{metric: float(value.per_class[index]) for metric, value in averages.items()},
                "support": int(outcomes.support[index]),
            }
            for index, name in enumerate(classes)
        },
        "confusion_matrix": {
            "rows": "true class",
            "columns": "predicted class",
            "labels": list(classes),
            "counts": outcomes.confusion.tolist(),
        },
        "classes": list(classes),
    }


def prediction_rows(
    ids: Sequence[str], logits: NDArray[Any], classes: Sequence[str], labels: NDArray[np.int64] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield a row for each image: id, label (if `labels` are known), predicted, confidence, p_<class>...

    Classes are given by name. A probability is the shortest decimal that reads back as the same float32, which
    preserves the order, and with it the argmax. If two logits are equal, the class with the lower index is predicted.
    """
    assert len(ids) == len(logits), f"{len(ids)} ids, {len(logits)} logits"
    for index, (name, row) in enumerate(zip(ids, probabilities(logits), strict=True)):
        values = [float(str(value)) for value in row]
        winner = int(row.argmax())
        yield {
            "id": name,
            **({} if labels is None else {"label": classes[labels[index]]}),
            "predicted": classes[winner],
            "confidence": values[winner],
            **{f"p_{label}": value for label, value in zip(classes, values, strict=True)},
        }


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
    def correct(self) -> NDArray[np.bool_]:
        correct: NDArray[np.bool_] = self.predicted == self.labels
        return correct

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        """Counts [K, K]: rows are true classes, columns are predicted classes."""
        return confusion_matrix(self.labels, self.predicted, len(self.classes))

    @property
    def log_probabilities(self) -> NDArray[np.float64]:
        """Logits up to a constant per row, for losses and temperatures. A probability of 0 counts as 1e-45."""
        least = float(np.finfo(np.float32).smallest_subnormal)
        logarithms: NDArray[np.float64] = np.log(self.probabilities.clip(min=least))
        return logarithms

    @property
    def losses(self) -> NDArray[np.float64]:
        """The cross-entropy of each image in nats, float64 [N]."""
        losses: NDArray[np.float64] = -self.log_probabilities[np.arange(len(self.labels)), self.labels]
        return losses


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """The rows of a predictions-<split>.csv, which must have these `columns`; UserError if it is missing or damaged."""
    try:
        with open_text(path) as lines:
            reader = csv.DictReader(lines, strict=True)
            if absent := [name for name in columns if name not in (reader.fieldnames or ())]:
                raise damaged(path, f"it has no column {absent[0]}")
            for number, row in enumerate(reader, start=1):
                if None in row or None in row.values():
                    raise damaged(path, f"row {number} has more or fewer cells than there are columns")
                yield row
    except FileNotFoundError:
        raise missing(path) from None
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise damaged(path, str(error)) from None


def read_predictions(path: Path, classes: Sequence[str], repeats: int = 1) -> Predictions:
    """Read the predictions-<split>.csv of a model with these `classes`; raises UserError if it is damaged.

    An image may occur up to `repeats` times, as after a repeated cross-validation; its probabilities are averaged.
    """
    index = {name: at for at, name in enumerate(classes)}
    columns = ("id", "label", *(f"p_{label}" for label in classes))
    sums: dict[str, NDArray[np.float64]] = {}
    labels: dict[str, int] = {}
    times: dict[str, int] = {}
    for number, row in enumerate(read_rows(path, columns), start=1):
        name = row["id"]
        try:
            values = np.array([float(row[f"p_{label}"]) for label in classes])
        except ValueError as error:
            raise damaged(path, f"row {number}: {error}") from None
        if not math.isfinite(values.sum()) or values.min() < 0 or abs(values.sum() - 1) > 0.01:
            raise damaged(path, f"row {number}: its probabilities do not sum to 1")
        if (label := index.get(row["label"])) is None:
            raise damaged(path, f"row {number}: there is no class '{row['label']}'")
        if labels.setdefault(name, label) != label:
            raise damaged(path, f"row {number}: '{name}' has two labels")
        sums[name] = sums.get(name, 0) + values
        times[name] = times.get(name, 0) + 1
        if times[name] > repeats:
            raise damaged(path, f"row {number}: '{name}' is in it more than once")
    if not sums:
        raise damaged(path, "it has no rows")
    means = np.array([total / times[name] for name, total in sums.items()])
    return Predictions(tuple(sums), np.array(list(labels.values()), dtype=np.int64), means, tuple(classes))
