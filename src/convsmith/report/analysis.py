"""Numbers that a page shows about predictions: classes, calibration, suspected labels, pairs of models. No drawing."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convsmith.errors import missing_extra
from convsmith.prediction.calibration import Reliability, fit_temperature, log_softmax, reliability
from convsmith.prediction.evaluation import Predictions
from convsmith.prediction.metrics import class_f1, class_precision, class_recall, wilson_interval
from convsmith.studies.statistics import PairedAccuracies, paired_accuracies

DRAWS = 1000
OPTIMAL = 200  # classes up to which the leaves are ordered optimally, which takes the cube of their number

Interval = tuple[float, float] | None


@dataclass(frozen=True)
class ClassScores:
    """Scores of one class; an interval is None where there was nothing to measure it on."""

    name: str
    support: int
    precision: float
    precision_interval: Interval
    recall: float
    recall_interval: Interval
    f1: float
    f1_interval: Interval


def class_scores(confusion: NDArray[np.int64], classes: Sequence[str], rng: np.random.Generator) -> list[ClassScores]:
    """The scores of each class of a confusion matrix [K, K] (rows = true class) with 95% intervals.

    Precision and recall are proportions of images and get Wilson's interval (1927). F1 is not a proportion and gets the
    percentile bootstrap over images, which for counts is a multinomial draw of the cells (Efron and Tibshirani 1993,
    ch. 13).
    """
    true_positives, support, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall, f1 = class_precision(confusion), class_recall(confusion), class_f1(confusion)
    low, high = np.quantile(_bootstrapped_f1(confusion, rng), [0.025, 0.975], axis=0)
    result = []
    for at, name in enumerate(classes):
        result.append(
            ClassScores(
                name=name,
                support=int(support[at]),
                precision=float(precision[at]),
                precision_interval=_share(true_positives[at], predicted[at]),
                recall=float(recall[at]),
                recall_interval=_share(true_positives[at], support[at]),
                f1=float(f1[at]),
                f1_interval=(float(low[at]), float(high[at])) if support[at] + predicted[at] else None,
            )
        )
    return result


def _share(count: int, of: int) -> Interval:
    return wilson_interval(int(count), int(of)) if of else None


def _bootstrapped_f1(confusion: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float64]:
    """F1 by class of `DRAWS` bootstrap samples, float64 [DRAWS, K]; 0 where a sample has nothing of a class."""
    classes = len(confusion)
    true, guessed = np.nonzero(confusion)
    counts = confusion[true, guessed]
    drawn = rng.multinomial(counts.sum(), counts / counts.sum(), size=DRAWS)
    # What each cell adds to the true positives, images and predictions of its classes, summed by one product each.
    cells = np.arange(len(true))
    rows, columns = np.zeros((len(true), classes)), np.zeros((len(true), classes))
    rows[cells, true] = 1
    columns[cells, guessed] = 1
    true_positives, total = drawn @ (rows * columns), drawn @ (rows + columns)
    return np.divide(2 * true_positives, total, out=np.zeros_like(total), where=total > 0)


def confused_order(confusion: NDArray[np.int64]) -> NDArray[np.int64]:
    """An order of the classes [K] in which those that are mistaken for each other are adjacent.

    It comes from average-linkage clustering on the distance 1 - (share of i predicted as j + share of j predicted as i)
    / 2, with optimally ordered leaves (Bar-Joseph et al. 2001). Where no two classes are confused, the order is kept.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    shares = confusion / confusion.sum(axis=1, keepdims=True).clip(min=1)
    alike = (shares + shares.T) / 2
    np.fill_diagonal(alike, 0)
    if len(confusion) < 3 or not alike.any():
        return np.arange(len(confusion))
    distances = squareform(1 - alike, checks=False)
    tree = linkage(distances, "average")
    if len(confusion) <= OPTIMAL:
        tree = optimal_leaf_ordering(tree, distances)
    return np.asarray(leaves_list(tree), dtype=np.int64)


FEWEST = 20  # images; a temperature fitted to fewer means nothing


@dataclass(frozen=True, eq=False)
class Scaling:
    """`temperature` is fitted to all images; `after` and `loss_after` (nats) are cross-fitted, see `scaling`."""

    temperature: float
    before: Reliability
    after: Reliability
    loss_before: float
    loss_after: float


def scaling(predictions: Predictions, rng: np.random.Generator) -> Scaling | None:
    """The effect of temperature scaling (Guo et al. 2017), cross-fitted; None for fewer than 20 images.

    The images are split into random halves, each half is scaled by the temperature fitted to the other, and the two are
    measured together: on the images that it was fitted to, even a useless temperature would look good.
    """
    logits, labels = predictions.log_probabilities, predictions.labels
    if len(labels) < FEWEST:
        return None
    scaled = np.empty_like(logits)
    halves = np.array_split(rng.permutation(len(labels)), 2)
    for half, other in (halves, halves[::-1]):
        scaled[half] = logits[half] / fit_temperature(logits[other], labels[other])
    before, after = log_softmax(logits), log_softmax(scaled)
    return Scaling(
        temperature=fit_temperature(logits, labels),
        before=_reliability(before, labels),
        after=_reliability(after, labels),
        loss_before=_loss(before, labels),
        loss_after=_loss(after, labels),
    )


def _reliability(log_probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> Reliability:
    confidences = np.exp(log_probabilities.max(axis=1)).clip(max=1.0)
    return reliability(confidences, log_probabilities.argmax(axis=1) == labels)


def _loss(log_probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    return float(-log_probabilities[np.arange(len(labels)), labels].mean())


def likely_label_errors(predictions: Predictions) -> NDArray[np.int64]:
    """Positions [M] of the images whose label is likely wrong, the most likely first.

    This is confident learning (Northcutt, Jiang and Chuang 2021, arXiv:1911.00068) as implemented in cleanlab: an image
    is suspected where the probability of another class exceeds the mean probability of that class on its own images.
    The probabilities must be held-out ones. UserError where cleanlab is not installed.
    """
    if importlib.util.find_spec("cleanlab") is None:
        raise missing_extra("cleanlab", "report")
    from cleanlab.filter import find_label_issues

    # The rows are float32 numbers whose sum misses 1 by rounding, which cleanlab checks.
    probabilities = predictions.probabilities / predictions.probabilities.sum(axis=1, keepdims=True)
    with warnings.catch_warnings():
        # It cannot judge a class with a single image, which nobody would expect.
        warnings.filterwarnings("ignore", message="May not flag all label issues")
        found = find_label_issues(
            predictions.labels, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1
        )
    return np.asarray(found, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Pairing:
    """Two models image by image, in the first one's order: `first` and `second` bool [N] say where each is correct.

    `partner` int64 [N] is the position of each image in the second model's predictions.
    """

    first: NDArray[np.bool_]
    second: NDArray[np.bool_]
    partner: NDArray[np.int64]

    @property
    def only_first(self) -> NDArray[np.int64]:
        """Positions of the images that only the first model classifies correctly."""
        return np.flatnonzero(self.first & ~self.second)

    @property
    def only_second(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.second & ~self.first)

    def test(self, level: float = 0.95) -> PairedAccuracies:
        """McNemar's exact test and the interval of the difference that belongs to it."""
        return paired_accuracies(len(self.only_first), len(self.only_second), len(self.first), level)


def pair(first: Predictions, second: Predictions) -> Pairing | str:
    """Both models' predictions image by image; or why they cannot be paired, as the end of a sentence."""
    position = {name: at for at, name in enumerate(second.ids)}
    if set(first.ids) != position.keys():
        common = len(set(first.ids) & position.keys())
        sizes = f"{common:,} of {len(first.ids):,} and {len(second.ids):,} in common"
        return f"their validation splits contain different images ({sizes})"
    partner = np.array([position[name] for name in first.ids], dtype=np.int64)
    ours = [first.classes[label] for label in first.labels]
    theirs = [second.classes[label] for label in second.labels[partner]]
    if ours != theirs:
        return "their images have different labels"
    return Pairing(first.correct, second.correct[partner], partner)
