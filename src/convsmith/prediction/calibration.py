"""Calibration of confidences: reliability bins, the calibration error and temperature scaling. Draws nothing.

Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

BINS = 15
TEMPERATURES = (0.01, 100.0)  # bounds of the search; for a network that is always right, T would approach 0


@dataclass(frozen=True, eq=False)
class Reliability:
    """Samples in B bins of confidence ``(edges[i], edges[i + 1]]`` of equal width.

    `accuracy` and `confidence` are means, float64 [B], NaN for empty bins; `count` is int64 [B].
    """

    edges: NDArray[np.float64]
    count: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def error(self) -> float:
        """The expected calibration error: the mean over all samples of their bin's ``|accuracy - confidence|``."""
        filled = self.count > 0
        gaps = np.abs(self.accuracy[filled] - self.confidence[filled])
        return float(np.average(gaps, weights=self.count[filled]))


def edges_of(bins: int = BINS) -> NDArray[np.float64]:
    """The edges [bins + 1] of bins of equal width."""
    return np.linspace(0, 1, bins + 1)


def bins_of(confidences: ArrayLike, bins: int = BINS) -> NDArray[np.int64]:
    """The bin of each of the `confidences`, float [N] in [0, 1]: int64 [N]."""
    found = np.searchsorted(edges_of(bins), np.asarray(confidences, dtype=np.float64), side="left")
    return np.asarray(found.clip(1, bins) - 1, dtype=np.int64)


def reliability(confidences: ArrayLike, correct: ArrayLike, bins: int = BINS) -> Reliability:
    """Sort predictions into bins by their `confidences`, float [N] in [0, 1]; `correct` is bool [N]."""
    confidence, accuracy = np.asarray(confidences, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    assert confidence.shape == accuracy.shape, f"{confidence.shape} confidences, {accuracy.shape} values of correct"
    assert confidence.size, "no samples"
    bin_of = bins_of(confidence, bins)
    count = np.bincount(bin_of, minlength=bins)

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        totals = np.bincount(bin_of, values, minlength=bins).astype(np.float64)
        return np.where(count > 0, totals / count.clip(min=1), np.nan)

    return Reliability(edges_of(bins), count, mean(confidence), mean(accuracy))


def expected_calibration_error(confidences: ArrayLike, correct: ArrayLike, bins: int = BINS) -> float:
    """Compute the ECE, in [0, 1], from the predictions' `confidences`, float [N], and whether each is `correct`."""
    return reliability(confidences, correct, bins).error


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Compute the logarithm of the softmax over the last axis, in float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def fit_temperature(logits: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """Find the T for which ``softmax(logits / T)`` has the lowest cross-entropy with `labels`.

    `logits` float [N, K] and `labels` int64 [N] must be those of the validation split, never of the test split. T > 1
    lowers the confidences of an overconfident model; predictions do not change. T stays within `TEMPERATURES`.
    """
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return float(-log_softmax(logits / np.exp(log_temperature))[rows, labels].mean())

    # The loss is convex in 1 / T (Guo et al., section 4.2), so it also has a single minimum along log T.
    found = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))
