"""Scores of a classifier, each a pure function of its confusion matrix.

In a confusion matrix here a row is a true class and a column a predicted class. Averages run over all of
the model's classes, and what is undefined counts as zero (a class never predicted has precision 0, a class
that is absent has recall 0): scikit-learn's ``zero_division=0`` with ``labels`` given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from torch import Tensor


def confusion_matrix(labels: ArrayLike, predictions: ArrayLike, classes: int) -> NDArray[np.int64]:
    """Counts int64 [classes, classes] of true and predicted class indices, each int [N]."""
    true, predicted = np.asarray(labels, dtype=np.int64), np.asarray(predictions, dtype=np.int64)
    assert true.shape == predicted.shape, f"{true.shape} labels, {predicted.shape} predictions"
    assert all(((index >= 0) & (index < classes)).all() for index in (true, predicted)), "class index out of range"
    return np.bincount(true * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def confusion_counts(labels: Tensor, predictions: Tensor, classes: int) -> Tensor:
    """The same on the tensors' device: int64 [classes, classes] of int64 [N], without waiting for the device.

    (`torch.bincount` would wait: on CUDA it reads the largest index back to size its result.)
    """
    cells = labels * classes + predictions
    counts = cells.new_zeros(classes * classes).scatter_add_(0, cells, cells.new_ones(1).expand_as(cells))
    return counts.reshape(classes, classes)


@dataclass(frozen=True, eq=False)
class Averages:
    """One score in its three averages, and by class (float64 [K])."""

    macro: float
    micro: float
    weighted: float
    per_class: NDArray[np.float64]

    def to_dict(self) -> dict[str, float]:
        return {"macro": self.macro, "micro": self.micro, "weighted": self.weighted}


@dataclass(frozen=True, eq=False)
class Scores:
    """What a confusion matrix says. `support` is the number of samples of each true class, int64 [K]."""

    accuracy: float
    precision: Averages
    recall: Averages
    f1: Averages
    support: NDArray[np.int64]

    def flat(self) -> dict[str, float]:
        """Accuracy and the macro averages, by the names that metrics.csv uses."""
        return {
            "accuracy": self.accuracy,
            "precision": self.precision.macro,
            "recall": self.recall.macro,
            "f1": self.f1.macro,
        }


def scores(confusion: NDArray[Any] | Tensor) -> Scores:
    """Accuracy, precision, recall and F1 of a confusion matrix [K, K] (an array, or a tensor on any device).

    Precision TP / (TP + FP), recall TP / (TP + FN), F1 their harmonic mean 2 TP / (2 TP + FP + FN). Macro F1 is
    the mean of the classes' F1, not the F1 of the means. Micro averages equal the accuracy, as each sample
    has one label and one prediction.
    """
    counts = np.asarray(confusion if isinstance(confusion, np.ndarray) else confusion.cpu(), dtype=np.int64)
    assert counts.ndim == 2, f"a confusion matrix has two axes, not {counts.shape}"
    hits, support, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    accuracy = float(_ratio(hits.sum(), support.sum()))

    def averages(per_class: NDArray[np.float64]) -> Averages:
        weighted = _ratio((per_class * support).sum(), support.sum())
        return Averages(float(per_class.mean()), accuracy, float(weighted), per_class)

    return Scores(
        accuracy=accuracy,
        precision=averages(_ratio(hits, predicted)),
        recall=averages(_ratio(hits, support)),
        f1=averages(_ratio(2 * hits, support + predicted)),
        support=support,
    )


def _ratio(part: ArrayLike, whole: ArrayLike) -> NDArray[np.float64]:
    """`part` / `whole`, zero where `whole` is zero."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    result: NDArray[np.float64] = np.divide(part, whole, out=np.zeros_like(part), where=whole != 0)
    return result


def wilson_interval(correct: int, count: int) -> tuple[float, float]:
    """95% confidence interval of a proportion such as accuracy (Wilson 1927): how sure `count` samples let us be."""
    z = 1.959963984540054  # the 97.5% quantile of the standard normal distribution
    share = correct / count
    centre = share + z * z / (2 * count)
    margin = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max((centre - margin) / scale, 0.0), min((centre + margin) / scale, 1.0)
