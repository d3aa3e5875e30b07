"""Each of `records.METRICS` as a mean over images: what each image of a split adds to the value of the metric.

Accuracy and loss are such means as they are. The others are replaced by their linear approximation about their value:
the value itself, plus the influence of each image on it (Hampel 1974), which sums to zero over the images. The mean is
then exactly the metric, and the variance of the mean that of the metric but for terms that vanish with the number of
images. This is the infinitesimal jackknife (Efron 1982); for the AUROC it is the method of DeLong et al. (1988).

It was preferred to a bootstrap over the images within the folds, which gives a variance of a single study but no value
for an image: the values of different trainings of the same image would have nothing to be paired by.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from convsmith.prediction import metrics
from convsmith.prediction.calibration import bins_of
from convsmith.prediction.metrics import Outcomes

Floats = NDArray[np.float64]
Function = Callable[[Outcomes], Floats]

#: The function of each of `records.METRICS`, by its name: float64 [N], whose mean is the metric (its macro average).
BY_IMAGE: dict[str, Function] = {}


def _by_image(function: Function) -> Function:
    """Register a function under its name, that of its metric."""
    BY_IMAGE[function.__name__] = function
    return function


@_by_image
def accuracy(outcomes: Outcomes) -> Floats:
    return np.asarray(outcomes.predicted == outcomes.labels, dtype=np.float64)


@_by_image
def loss(outcomes: Outcomes) -> Floats:
    losses: Floats = -outcomes.log_probabilities[np.arange(len(outcomes.labels)), outcomes.labels]
    return losses


@_by_image
def top5_accuracy(outcomes: Outcomes) -> Floats:
    return metrics.among_top5(outcomes).astype(np.float64)


@_by_image
def precision(outcomes: Outcomes) -> Floats:
    hit, _, guessed = _indicators(outcomes)
    return _mean_ratio(hit, guessed, np.full(outcomes.classes, 1 / outcomes.classes))


@_by_image
def recall(outcomes: Outcomes) -> Floats:
    hit, true, _ = _indicators(outcomes)
    return _mean_ratio(hit, true, np.full(outcomes.classes, 1 / outcomes.classes))


@_by_image
def f1(outcomes: Outcomes) -> Floats:
    hit, true, guessed = _indicators(outcomes)
    return _mean_ratio(2 * hit, true + guessed, np.full(outcomes.classes, 1 / outcomes.classes))


@_by_image
def balanced_accuracy(outcomes: Outcomes) -> Floats:
    hit, true, _ = _indicators(outcomes)
    present = outcomes.support > 0
    return _mean_ratio(hit, true, present / present.sum())


@_by_image
def ece(outcomes: Outcomes) -> Floats:
    """Within a bin, the sum of confidence minus correct has one sign; it changes where a bin is calibrated."""
    confidence = outcomes.probabilities.max(axis=1).astype(np.float64)
    gaps, bins = confidence - accuracy(outcomes), bins_of(confidence)
    signs = np.sign(np.bincount(bins, gaps))
    values: Floats = signs[bins] * gaps
    return values


@_by_image
def auroc(outcomes: Outcomes) -> Floats:
    """The placement values of each class's images among the others, and of the others among them (DeLong et al.)."""
    count = len(outcomes.labels)
    classes = np.flatnonzero((outcomes.support > 0) & (outcomes.support < count))
    if not len(classes):
        return np.full(count, 0.5)
    values = np.zeros(count)
    for index in classes:
        own = outcomes.labels == index
        scores = outcomes.probabilities[:, index]
        above = _share_below(scores[own], scores[~own])
        area = above.mean()
        values += area
        values[own] += (above - area) * count / own.sum()
        values[~own] += (1 - _share_below(scores[~own], scores[own]) - area) * count / (~own).sum()
    return values / len(classes)


@_by_image
def mcc(outcomes: Outcomes) -> Floats:
    """The derivative of ``(c - p t) / sqrt((1 - p p)(1 - t t))``: c is the accuracy, p and t are shares of classes."""
    value = metrics.mcc(outcomes)
    count = len(outcomes.labels)
    true, guessed = outcomes.support / count, outcomes.times_predicted / count
    of_guesses, of_labels = 1 - guessed @ guessed, 1 - true @ true
    if of_guesses <= 0 or of_labels <= 0:
        return np.full(count, value)
    hits = accuracy(outcomes)
    covered = true[outcomes.predicted] - true @ guessed
    matched = guessed[outcomes.labels] - true @ guessed
    top = hits - hits.mean() - covered - matched
    bottom = (guessed[outcomes.predicted] - guessed @ guessed) / of_guesses
    bottom = bottom + (true[outcomes.labels] - true @ true) / of_labels
    values: Floats = value + top / np.sqrt(of_guesses * of_labels) + value * bottom
    return values


def _indicators(outcomes: Outcomes) -> tuple[Floats, Floats, Floats]:
    """Of each image and class, float64 [N, K]: whether it is predicted rightly, of that class, predicted as it."""
    classes = np.arange(outcomes.classes)
    true = (outcomes.labels[:, None] == classes).astype(np.float64)
    guessed = (outcomes.predicted[:, None] == classes).astype(np.float64)
    return true * guessed, true, guessed


def _mean_ratio(part: Floats, whole: Floats, weights: Floats) -> Floats:
    """The mean by `weights` [K] of the classes' ratios of sums, as values of images; both are [N, K].

    A ratio r of two means m and n has the influence (m_i - r n_i) / n. It is 0 where the whole is 0.
    """
    wholes = whole.mean(axis=0)
    defined = wholes > 0
    ratios = np.divide(part.mean(axis=0), wholes, out=np.zeros(len(wholes)), where=defined)
    factors = np.divide(weights, wholes, out=np.zeros(len(wholes)), where=defined)
    values: Floats = ratios @ weights + (part - ratios * whole) @ factors
    return values


def _share_below(values: NDArray[np.float32], others: NDArray[np.float32]) -> Floats:
    """The share of `others` that lies below each of `values`; ties count half."""
    ranked = np.sort(others)
    below = np.searchsorted(ranked, values, "left") + np.searchsorted(ranked, values, "right")
    return below / (2 * len(others))
