"""What temperature scaling is worth on the val split, measured on images that the temperature was not fitted to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convsmith.prediction.calibration import Reliability, fit_temperature, log_softmax, reliability
from convsmith.report.files import Predictions

FEWEST = 20  # images; a temperature fitted to less says nothing


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

    The images are halved at random, each half is scaled by the temperature fitted to the other, and both together are
    measured: on its own images even a useless temperature would look good.
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


def _reliability(log_chances: NDArray[np.float64], labels: NDArray[np.int64]) -> Reliability:
    confidences = np.exp(log_chances.max(axis=1)).clip(max=1.0)
    return reliability(confidences, log_chances.argmax(axis=1) == labels)


def _loss(log_chances: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    return float(-log_chances[np.arange(len(labels)), labels].mean())
