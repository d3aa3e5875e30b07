"""Computes each of `records.METRICS` by a pure function of a split's labels and logits. Writes nothing.

The rows of a confusion matrix are true classes, and its columns are predicted classes. Averages are taken over all of
the model's classes, and undefined values count as zero (a class that is never predicted has precision 0, a class
that is absent has recall 0), like scikit-learn's ``zero_division=0`` with ``labels`` given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from convsmith.errors import RunFailed
from convsmith.prediction.calibration import expected_calibration_error, log_softmax


def confusion_matrix(labels: ArrayLike, predictions: ArrayLike, classes: int) -> NDArray[np.int64]:
    """Counts int64 [classes, classes] of true and predicted class indices, each int [N]."""
    true, predicted = np.asarray(labels, dtype=np.int64), np.asarray(predictions, dtype=np.int64)
    assert true.shape == predicted.shape, f"{true.shape} labels, {predicted.shape} predictions"
    assert all(((index >= 0) & (index < classes)).all() for index in (true, predicted)), "class index out of range"
    return np.bincount(true * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def probabilities(logits: NDArray[Any]) -> NDArray[np.float32]:
    """Softmax of `logits` [N, K], computed in float64, as float32 [N, K]; each row's argmax is that of its logits.

    Raises `RunFailed` if a logit is not a finite number.
    """
    return _rounded(_checked_log_softmax(logits), np.argmax(logits, axis=1))


def _checked_log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    if not np.isfinite(logits).all():
        raise RunFailed(
            "the model's outputs are not finite numbers (its training diverged, or its weights are damaged)"
        )
    return log_softmax(logits)


def _rounded(log_probabilities: NDArray[np.float64], winner: NDArray[np.intp]) -> NDArray[np.float32]:
    result = np.exp(log_probabilities).astype(np.float32)
    # Rounding to float32 can make the largest two equal, so that the lower index wins: raise the true one by one ulp.
    tied = np.flatnonzero(result.argmax(axis=1) != winner)
    result[tied, winner[tied]] = np.nextafter(result[tied].max(axis=1), np.float32(1))
    return result


@dataclass(frozen=True, eq=False)
class Outcomes:
    """A split's labels int64 [N] and a model's logits float [N, K], with quantities that several metrics share.

    Where only the probabilities were `recorded`, float [N, K], the logits are their logarithms.
    """

    labels: NDArray[np.int64]
    logits: NDArray[Any]
    recorded: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        assert len(self.labels) == len(self.logits) > 0, f"{len(self.labels)} labels, {len(self.logits)} logits"

    @property
    def classes(self) -> int:
        return int(self.logits.shape[1])

    @cached_property
    def log_probabilities(self) -> NDArray[np.float64]:
        """Float64 [N, K]; raises `RunFailed` if a logit is not a finite number."""
        return _checked_log_softmax(self.logits)

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """Float32 [N, K], as in predictions-<split>.csv."""
        if self.recorded is not None:
            return self.recorded.astype(np.float32)
        return _rounded(self.log_probabilities, np.argmax(self.logits, axis=1))

    @cached_property
    def predicted(self) -> NDArray[np.intp]:
        """The most probable class of each image, [N]; of equally probable ones, that with the lower index."""
        winners: NDArray[np.intp] = np.argmax(self.logits, axis=1)
        return winners

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        """Counts [K, K]: rows are true classes, columns are predicted classes."""
        return confusion_matrix(self.labels, self.predicted, self.classes)

    @cached_property
    def support(self) -> NDArray[np.int64]:
        """The number of images of each true class, [K]."""
        counts: NDArray[np.int64] = self.confusion.sum(axis=1)
        return counts

    @cached_property
    def times_predicted(self) -> NDArray[np.int64]:
        """The number of images that were predicted as each class, [K]."""
        counts: NDArray[np.int64] = self.confusion.sum(axis=0)
        return counts

    @cached_property
    def true_positives(self) -> NDArray[np.int64]:
        """The number of images of each class that were predicted correctly, [K]."""
        return self.confusion.diagonal()


@dataclass(frozen=True, eq=False)
class Averages:
    """The three averages of a metric, and its values by class (float64 [K])."""

    macro: float
    micro: float
    weighted: float
    per_class: NDArray[np.float64]

    def to_dict(self) -> dict[str, float]:
        return {"macro": self.macro, "micro": self.micro, "weighted": self.weighted}


def class_precision(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """The precision of each class of a confusion matrix [K, K], float64 [K]; 0 for a class that is never predicted."""
    return _ratio(confusion.diagonal(), confusion.sum(axis=0))


def class_recall(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """The recall of each class of a confusion matrix [K, K], float64 [K]; 0 for a class without images."""
    return _ratio(confusion.diagonal(), confusion.sum(axis=1))


def class_f1(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """The F1 of each class of a confusion matrix [K, K], float64 [K]; 0 for a class that occurs nowhere."""
    return _ratio(2 * confusion.diagonal(), confusion.sum(axis=1) + confusion.sum(axis=0))


#: The function of each of `records.METRICS`, by its name.
COMPUTE: dict[str, Callable[[Outcomes], float | Averages]] = {}
Function = TypeVar("Function", bound=Callable[[Outcomes], float | Averages])


def _metric(function: Function) -> Function:
    """Register a function under its name."""
    COMPUTE[function.__name__] = function
    return function


@_metric
def accuracy(outcomes: Outcomes) -> float:
    """The fraction of the images that are predicted correctly."""
    return float(np.mean(outcomes.predicted == outcomes.labels))


@_metric
def precision(outcomes: Outcomes) -> Averages:
    """The fraction of true positives among the images predicted as a class: TP / (TP + FP)."""
    return _averages(outcomes, class_precision(outcomes.confusion))


@_metric
def recall(outcomes: Outcomes) -> Averages:
    """The fraction of true positives among the images of a class: TP / (TP + FN)."""
    return _averages(outcomes, class_recall(outcomes.confusion))


@_metric
def f1(outcomes: Outcomes) -> Averages:
    """The harmonic mean of precision and recall, 2 TP / (2 TP + FP + FN).

    Macro F1 is the mean of the classes' F1 values, not the F1 of mean precision and recall.
    """
    return _averages(outcomes, class_f1(outcomes.confusion))


@_metric
def loss(outcomes: Outcomes) -> float:
    """The mean cross-entropy in nats, computed in float64 without smoothing, class weights or penalties."""
    return 0.0 - float(outcomes.log_probabilities[np.arange(len(outcomes.labels)), outcomes.labels].mean())  # never -0


@_metric
def ece(outcomes: Outcomes) -> float:
    """The expected calibration error in 15 bins of equal width (Guo et al. 2017, arXiv:1706.04599)."""
    return expected_calibration_error(outcomes.probabilities.max(axis=1), outcomes.predicted == outcomes.labels)


@_metric
def top5_accuracy(outcomes: Outcomes) -> float:
    """The fraction of the images whose class is among the five most probable ones; with up to five classes it is 1."""
    return float(np.mean(among_top5(outcomes)))


def among_top5(outcomes: Outcomes) -> NDArray[np.bool_]:
    """Whether the class of each image, bool [N], is among its five most probable ones.

    Of equally probable classes the one with the lower index comes first, as in `Outcomes.predicted`.
    """
    images = np.arange(len(outcomes.labels))
    own = outcomes.probabilities[images, outcomes.labels][:, None]
    before = np.arange(outcomes.classes) < outcomes.labels[:, None]
    ahead = (outcomes.probabilities > own) | ((outcomes.probabilities == own) & before)
    found: NDArray[np.bool_] = np.count_nonzero(ahead, axis=1) < 5
    return found


@_metric
def balanced_accuracy(outcomes: Outcomes) -> float:
    """The mean recall of the classes that have images (Brodersen et al. 2010).

    The macro recall also counts classes without images, as zero.
    """
    present = outcomes.support > 0
    return float((outcomes.true_positives[present] / outcomes.support[present]).mean())


@_metric
def auroc(outcomes: Outcomes) -> float:
    """The area under the receiver operating characteristic of one class against the rest, averaged over classes.

    For a class it is the chance that a random image of the class is given a higher probability of the class than a
    random image of another class (Hanley and McNeil 1982); ties count half. It is undefined if a class has no images
    or all images; such classes are left out of the mean. If no class is left, it is 0.5, as for a random ranking.
    """
    count, areas = len(outcomes.labels), []
    # One row per class, so that the probabilities of each class are contiguous.
    ranked = np.sort(outcomes.probabilities.T, axis=1)
    for index in np.flatnonzero((outcomes.support > 0) & (outcomes.support < count)):
        own = outcomes.probabilities[outcomes.labels == index, index]
        # Twice the mean rank of equal values, counted from 1 (Mann and Whitney 1947).
        ranks = 1 + sum(np.searchsorted(ranked[index], own, side).astype(np.int64) for side in ("left", "right"))
        above = ranks.sum() / 2 - len(own) * (len(own) + 1) / 2
        areas.append(above / (len(own) * (count - len(own))))
    return float(np.mean(areas)) if areas else 0.5


@_metric
def mcc(outcomes: Outcomes) -> float:
    """Matthews' correlation coefficient of true and predicted classes, in [-1, 1] (Gorodkin 2004, eq. 8).

    It is 0 for uninformative guesses, and if it is undefined (all images or all predictions are of one class).
    """
    support, predicted = outcomes.support.astype(np.float64), outcomes.times_predicted.astype(np.float64)
    count = support.sum()
    covariance = count * outcomes.true_positives.sum() - predicted @ support
    variances = (count**2 - predicted @ predicted) * (count**2 - support @ support)
    return float(covariance / np.sqrt(variances)) if variances > 0 else 0.0


def _averages(outcomes: Outcomes, per_class: NDArray[np.float64]) -> Averages:
    """The averages of a metric. Micro averages equal the accuracy, as each image has one label and one prediction."""
    weighted = float((per_class * outcomes.support).sum() / outcomes.support.sum())
    return Averages(float(per_class.mean()), accuracy(outcomes), weighted, per_class)


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """`part` / `whole`, with zero where `whole` is zero."""
    result: NDArray[np.float64] = np.divide(part, whole, out=np.zeros(len(part)), where=whole != 0)
    return result


def accuracy_interval(record: Mapping[str, Any]) -> tuple[float, float]:
    """The 95% confidence interval of the accuracy in the record of an evaluation."""
    return wilson_interval(round(record["accuracy"] * record["n"]), record["n"])


def wilson_interval(correct: int, count: int) -> tuple[float, float]:
    """The 95% confidence interval of a proportion, for example the accuracy of `correct` / `count` (Wilson 1927)."""
    from scipy.stats import binomtest  # it is slow to import, and rarely needed

    interval = binomtest(correct, count).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)
