"""What the learning curves say, in words: stated rules on the rows of metrics.csv, which a reader can redo by hand.

Each rule is a sentence in `RULES`, and a function that returns the numbers it found, or None where it does not hold.
The thresholds are conventions, chosen so that noise alone seldom meets them; differences of accuracies are measured in
standard errors where few validation images make them coarse.

Training accuracy and loss are means over an epoch, with augmentation and dropout on, and the training loss has label
smoothing and class weights in it: no rule compares the two losses with each other.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Rows = Sequence[Mapping[str, Any]]

ENOUGH = 3  # epochs; fewer show no course
RISE = 1.2  # factor by which a training loss must rise to count
NOISE = 0.05  # nats: a loss that moves by less has not moved
OVERFIT_LOSS = 1.1  # factor of the lowest validation loss
OVERFIT_GAP = 0.05  # of accuracy
FALL = 0.02  # of validation accuracy, from one epoch to the next
FALLING = 0.2  # share of the epochs
FITTED = 0.95  # training accuracy
SAME = 0.02  # of accuracy: training and validation are alike
SLOPE = 0.02  # relative change of the validation loss over the last third

RULES = {
    "learning rate too high": (
        f"the training loss of an epoch is at least {RISE:g} times the lowest before it (and {NOISE:g} nats above), or "
        "that of the first epoch is above 1.5 ln(classes), where guessing has ln(classes)"
    ),
    "unstable": (
        f"the validation accuracy falls from one epoch to the next by more than {100 * FALL:g} points and 3 standard "
        f"errors, at least twice and in {100 * FALLING:g}% of the epochs"
    ),
    "overfitting": (
        f"the validation loss has risen to {OVERFIT_LOSS:g} times its lowest (and {NOISE:g} nats above) while the "
        f"training loss went on falling, or the training accuracy of the best epoch is more than "
        f"{100 * OVERFIT_GAP:g} points and 3 standard errors above the validation accuracy"
    ),
    "still improving": (
        f"the best epoch is among the last tenth, training did not stop early, and over the last third of the epochs "
        f"the validation loss fell by more than {100 * SLOPE:g}%"
    ),
    "underfitting": (
        f"the training accuracy of the best epoch is below {100 * FITTED:g}%, the validation accuracy is at most "
        f"{100 * SAME:g} points or 1 standard error below it, and the run is not still improving"
    ),
}
TOO_SHORT = "too short to say"
NO_FAULT = "no fault found"


@dataclass(frozen=True)
class Finding:
    """A name of `RULES` (or `TOO_SHORT`, `NO_FAULT`) and the numbers that led to it, as a sentence."""

    name: str
    evidence: str


def diagnose(
    rows: Rows, classes: int, val_images: int, monitor: str = "val_accuracy", stopped_early: bool = False
) -> list[Finding]:
    """What is wrong with a training, by `RULES`; at least one finding, the most urgent first.

    `rows` are those of metrics.csv, whose val_accuracy is of `val_images` images; `monitor` chose the best epoch.
    """
    if len(rows) < ENOUGH:
        return [Finding(TOO_SHORT, f"{len(rows)} of the {ENOUGH} epochs that a curve needs")]
    best = best_row(rows, monitor)
    improving = None if stopped_early else _still_improving(rows, best)
    found = {
        "learning rate too high": _rate_too_high(rows, classes),
        "unstable": _unstable(rows, val_images),
        "overfitting": _overfitting(rows, best, val_images),
        "still improving": improving,
        "underfitting": None if improving else _underfitting(best, val_images),
    }
    findings = [Finding(name, evidence) for name, evidence in found.items() if evidence]
    return findings or [Finding(NO_FAULT, f"none of the {len(RULES)} rules applies")]


def best_row(rows: Rows, monitor: str) -> Mapping[str, Any]:
    """The first epoch with the best value of `monitor`."""
    sign = -1 if monitor == "val_loss" else 1
    return max(rows, key=lambda row: sign * row[monitor])


def _rate_too_high(rows: Rows, classes: int) -> str | None:
    guessing = math.log(classes)
    first = rows[0]["train_loss"]
    if first > 1.5 * guessing:
        return (
            f"the training loss of the first epoch is {first:.2f}; guessing among {classes} classes has {guessing:.2f}"
        )
    lowest = rows[0]
    for row in rows[1:]:
        if row["train_loss"] > max(RISE * lowest["train_loss"], lowest["train_loss"] + NOISE):
            return (
                f"the training loss rose from {lowest['train_loss']:.3f} in epoch {lowest['epoch']} to "
                f"{row['train_loss']:.3f} in epoch {row['epoch']}"
            )
        lowest = min(lowest, row, key=lambda one: one["train_loss"])
    return None


def _unstable(rows: Rows, val_images: int) -> str | None:
    falls = [
        (before["val_accuracy"] - after["val_accuracy"], after["epoch"])
        for before, after in itertools.pairwise(rows)
        if before["val_accuracy"] - after["val_accuracy"]
        > max(FALL, 3 * standard_error(before["val_accuracy"], val_images))
    ]
    if len(falls) < max(2, FALLING * (len(rows) - 1)):
        return None
    worst, epoch = max(falls)
    return (
        f"the validation accuracy fell {len(falls)} times in {len(rows)} epochs, by as much as {100 * worst:.1f} "
        f"points (epoch {epoch})"
    )


def _overfitting(rows: Rows, best: Mapping[str, Any], val_images: int) -> str | None:
    lowest, last = min(rows, key=lambda row: row["val_loss"]), rows[-1]
    risen = last["val_loss"] > max(OVERFIT_LOSS * lowest["val_loss"], lowest["val_loss"] + NOISE)
    if risen and last["train_loss"] < lowest["train_loss"]:
        return (
            f"the validation loss rose from {lowest['val_loss']:.3f} in epoch {lowest['epoch']} to "
            f"{last['val_loss']:.3f} at the end, while the training loss fell from {lowest['train_loss']:.3f} to "
            f"{last['train_loss']:.3f}"
        )
    gap = best["train_accuracy"] - best["val_accuracy"]
    if gap > max(OVERFIT_GAP, 3 * standard_error(best["val_accuracy"], val_images)):
        return f"{_both(best)}: {100 * gap:.1f} points apart"
    return None


def _still_improving(rows: Rows, best: Mapping[str, Any]) -> str | None:
    if best["epoch"] <= len(rows) - max(1, len(rows) // 10):
        return None
    last = rows[-max(ENOUGH, len(rows) // 3) :]
    losses = [row["val_loss"] for row in last]
    slope = float(np.polyfit(range(len(losses)), losses, 1)[0])
    change = slope * (len(losses) - 1) / float(np.mean(losses))
    if change >= -SLOPE:
        return None
    return (
        f"epoch {best['epoch']} of {len(rows)} is the best, and the validation loss fell by {-100 * change:.1f}% over "
        f"the last {len(last)} epochs"
    )


def _underfitting(best: Mapping[str, Any], val_images: int) -> str | None:
    gap = best["train_accuracy"] - best["val_accuracy"]
    if best["train_accuracy"] >= FITTED or gap > max(SAME, standard_error(best["val_accuracy"], val_images)):
        return None
    return f"{_both(best)}: the net does not fit what it trains on, and has room for more"


def standard_error(share: float, count: int) -> float:
    """Of a share of `count` images; for a share of 0 or 1 that of half an image, as no share is that sure."""
    share = min(max(share, 0.5 / count), 1 - 0.5 / count)
    return math.sqrt(share * (1 - share) / count)


def _both(row: Mapping[str, Any]) -> str:
    return (
        f"in the best epoch ({row['epoch']}) the accuracy is {100 * row['train_accuracy']:.1f}% in training and "
        f"{100 * row['val_accuracy']:.1f}% in validation"
    )
