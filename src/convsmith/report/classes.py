"""Class by class: precision, recall and F1 with intervals, and the order in which confused classes stand together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convsmith.prediction.metrics import wilson_interval

DRAWS = 1000
OPTIMAL = 200  # classes up to which the leaves are ordered optimally, which takes the cube of their number

Interval = tuple[float, float] | None


@dataclass(frozen=True)
class ClassScores:
    """Scores of one class; an interval is None where nothing was there to measure it on."""

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

    Precision and recall are shares of images: Wilson's interval (1927). F1 is none: the percentile bootstrap over
    images, which for counts is a multinomial draw of the cells (Efron and Tibshirani 1993, ch. 13).
    """
    hits, support, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    low, high = np.quantile(_bootstrapped_f1(confusion, rng), [0.025, 0.975], axis=0)
    result = []
    for at, name in enumerate(classes):
        both = int(support[at] + predicted[at])
        result.append(
            ClassScores(
                name=name,
                support=int(support[at]),
                precision=float(hits[at] / max(predicted[at], 1)),
                precision_interval=wilson_interval(int(hits[at]), int(predicted[at])) if predicted[at] else None,
                recall=float(hits[at] / max(support[at], 1)),
                recall_interval=wilson_interval(int(hits[at]), int(support[at])) if support[at] else None,
                f1=float(2 * hits[at] / max(both, 1)),
                f1_interval=(float(low[at]), float(high[at])) if both else None,
            )
        )
    return result


def _bootstrapped_f1(confusion: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float64]:
    """F1 by class of `DRAWS` bootstrap samples, float64 [DRAWS, K]; 0 where a sample has nothing of a class."""
    classes = len(confusion)
    true, guessed = np.nonzero(confusion)
    counts = confusion[true, guessed]
    drawn = rng.multinomial(counts.sum(), counts / counts.sum(), size=DRAWS)
    # What each cell adds to its class's hits, images and predictions: sums over cells as one product each.
    cells = np.arange(len(true))
    rows, columns = np.zeros((len(true), classes)), np.zeros((len(true), classes))
    rows[cells, true] = 1
    columns[cells, guessed] = 1
    hits, total = drawn @ (rows * columns), drawn @ (rows + columns)
    return np.divide(2 * hits, total, out=np.zeros_like(total), where=total > 0)


def confused_order(confusion: NDArray[np.int64]) -> NDArray[np.int64]:
    """The classes [K] in an order in which those that are mistaken for each other stand together.

    Average-linkage clustering on the distance 1 - (share of i taken for j + share of j taken for i) / 2, leaves ordered
    so that neighbours are near (Bar-Joseph et al. 2001). The order as given where no two classes are confused.
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
