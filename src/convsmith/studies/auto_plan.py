"""The decisions of `auto` that need no images: the division, the budget, who is stopped, who wins. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convsmith.prediction.calibration import fit_temperature, log_softmax
from convsmith.prediction.metrics import wilson_interval

FEW = 2_000  # images up to which the estimate is out of fold: of fewer, a part set aside would say too little
FOLDS = 5
START, EACH_IMAGE = 30.0, 0.02  # seconds, and seconds an image, from which on there is time for folds
OUT_OF_FOLD, ON_VAL = "out of fold", "on validation images"  # how the estimate was made
SLOWER = 1.2  # the factor by which a machine may be slower in the end than it was when it was measured
JUDGED_FROM = 1 / 3  # of its epochs, before which no training is stopped
TO_GAIN = 0.75  # of its errors that a training may still lose between its first and its last epoch

Logits = NDArray[np.floating[Any]]
Labels = NDArray[np.int64]


def folds_for(images: int, smallest_class: int, seconds: float) -> int:
    """The number of folds for an estimate out of fold, or 0: then a part of the images is set aside for it."""
    folds = min(FOLDS, smallest_class)
    return folds if folds >= 3 and images <= FEW and seconds >= START + EACH_IMAGE * images else 0


@dataclass(frozen=True)
class Score:
    """How a candidate did on the inner validation images of a fold, with the temperature that fits them best."""

    loss: float  # at that temperature
    accuracy: float
    n: int
    temperature: float

    @classmethod
    def of(cls, logits: Logits, labels: Labels) -> Score:
        """`logits` float [N, K], `labels` int64 [N]."""
        temperature = fit_temperature(logits, labels)
        rows = np.arange(len(labels))
        loss = -float(log_softmax(logits / temperature)[rows, labels].mean())
        return cls(loss, float((logits.argmax(axis=1) == labels).mean()), len(labels), temperature)


def best(scores: Mapping[str, Sequence[Score]]) -> str:
    """The candidate with the lowest mean loss over the folds, which says more than accuracy on few images.

    Each was calibrated first: the winner will be. Of equal ones the first, that is the cheapest, is taken.
    """
    return min(scores, key=lambda name: float(np.mean([score.loss for score in scores[name]])))


def is_lost(accuracy: float, n: int, share: float, leader: float) -> bool:
    """Whether a training is stopped, with this `accuracy` on `n` inner validation images after a `share` of its epochs.

    It is if it would stay behind the `leader` (an accuracy on the same images) although its true error were at the
    lower end of its 95% interval, and fell by as much as can be hoped for.
    """
    if share < JUDGED_FROM:
        return False
    _, high = wilson_interval(round(accuracy * n), n)
    return (1 - high) * (1 - TO_GAIN * (1 - share)) > 1 - leader


def least_seconds(spent: float, training: float, closing: float) -> float:
    """The least that a race takes after `spent` seconds with the data: two short trainings, and what closes it."""
    return spent + 2 * training + SLOWER * closing


def closing_seconds(usual: float, fixed: float, expected: float) -> float:
    """What the report and the last files take: `usual` seconds, or more on a machine that was measured to be slower.

    A training took `fixed` seconds besides its epochs, where `expected` ones are usual.
    """
    return usual * max(1.0, fixed / expected)


def fitting_epochs(least: int, most: int, per_epoch: float, fixed: float, trainings: float, seconds: float) -> int:
    """The epochs from `least` to `most` with which `trainings` end within `seconds`; 0 where even `least` do not.

    An epoch takes `per_epoch` seconds, and a training `fixed` ones besides.
    """
    epochs = int((seconds / trainings / SLOWER - fixed) / per_epoch)
    return 0 if epochs < least else min(epochs, most)


def no_epochs(least: int, per_epoch: float, fixed: float, trainings: float, seconds: float) -> str:
    """Why not even the `least` epochs fit where `fitting_epochs` finds none: what a training takes and what is left."""
    return (
        f"no time for {least} epochs of {per_epoch:.1f} s and {fixed:.1f} s besides in a training: "
        f"{max(seconds / trainings / SLOWER, 0):.1f} s are left for each"
    )


def sentence(accuracy: float, n: int, how: str) -> str:
    """``accuracy 96.2% (95% interval 93.9% to 97.7%, out of fold, 398 images, none of which chose anything)``."""
    low, high = wilson_interval(round(accuracy * n), n)
    on = f"on {n:,} validation images" if how == ON_VAL else f"{how}, {n:,} images"
    return f"accuracy {accuracy:.1%} (95% interval {low:.1%} to {high:.1%}, {on}, none of which chose anything)"


def standings(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each candidate in auto.json, in the order of the race: means over the folds, seconds, and its end."""
    return [
        {
            "candidate": entry["name"],
            **means(entry["folds"]),
            "seconds": entry["seconds"],
            "end": "winner"
            if entry["name"] == record["winner"]
            else ": ".join(filter(None, (entry["state"], entry["reason"]))),
        }
        for entry in record["candidates"]
    ]


def means(folds: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """A candidate's mean accuracy and loss over its folds; None where it has run on none."""
    return {key: _mean([fold[key] for fold in folds]) for key in ("accuracy", "loss")}


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
