"""The diagnosis of learning curves, by stated rules on recorded numbers that a reader can check by hand.

Each rule is a sentence in `RULES` and a function that returns the numbers it found, or None where it does not apply.
The thresholds are conventions, chosen so that noise alone rarely meets them; differences of accuracies are measured in
standard errors where few images make them coarse. Experiments are proposed in `advice`, not here.

The training accuracy of metrics.csv is a mean over an epoch, measured with augmentation and dropout, and says little
about what the net has learned. Rules that compare training with validation use the accuracy of the kept model on clean
training images, which the summary records; for runs without such a record see `unfit_settings`. The training loss
includes label smoothing, class weights and penalties, so no rule compares it with the validation loss.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convsmith.config import RunConfig
from convsmith.nets.config import MODELS
from convsmith.records import STOPPED_EARLY
from convsmith.terminal import listed

Rows = Sequence[Mapping[str, Any]]

ENOUGH = 3  # epochs; with fewer there is no trend
RISE = 1.2  # factor by which a loss must rise to count
NOISE = 0.05  # nats: a loss that moves by less has not moved
WORSE = 1.5  # factor of the loss of guessing, which only a confidently wrong net exceeds
GUESSING = 0.95  # factor of the loss of guessing above which a net has learned nothing
OVERFIT_LOSS = 1.1  # factor of the lowest validation loss
OVERFIT_GAP = 0.05  # of accuracy
FALL = 0.02  # of validation accuracy, from one epoch to the next
FALLING = 0.2  # share of the epochs
FITTED = 0.95  # training accuracy
SAME = 0.02  # of accuracy: training and validation are alike
SLOPE = 0.02  # relative change of the validation loss over the last third
ROOM = 0.02  # of validation accuracy: with less left to gain, no shortcoming could be shown

DIVERGED = "the loss diverged"
TOO_SHORT = "too short to say"
NO_FAULT = "no fault found"

RULES = {
    DIVERGED: (
        f"training and validation loss of the last epoch are at least {GUESSING:g} ln(classes), where ln(classes) is "
        f"the loss of guessing, and the net was not simply slow to learn: in some epoch the loss was above {WORSE:g} "
        f"ln(classes), or both losses are at least {RISE:g} times their lowest value. No other rule is applied then"
    ),
    "learning rate too high": (
        f"in one epoch the training loss and the validation loss are both more than {RISE:g} times their lowest value "
        f"so far (and {NOISE:g} nats above it), or the training loss of the first epoch is above {WORSE:g} "
        "ln(classes), where ln(classes) is the loss of guessing"
    ),
    "unstable": (
        f"the validation accuracy falls from one epoch to the next by more than {100 * FALL:g} points and 3 standard "
        f"errors, at least twice and in {100 * FALLING:g}% of the epochs"
    ),
    "overfitting": (
        f"the validation loss has risen to more than {OVERFIT_LOSS:g} times its lowest value (and {NOISE:g} nats above "
        f"it) while the training loss kept falling, or the kept model's accuracy on training images is more than "
        f"{100 * OVERFIT_GAP:g} points and 3 standard errors above its validation accuracy"
    ),
    "still improving": (
        "the best epoch is in the last tenth, training did not stop early, and over the last third of the epochs "
        f"the validation loss fell by more than {100 * SLOPE:g}%"
    ),
    "underfitting": (
        f"the kept model's accuracy on training images is below {100 * FITTED:g}%, its validation accuracy is at most "
        f"{100 * SAME:g} points or 1 standard error below that, and the run is not still improving"
    ),
}
#: rules that look for what limits the validation accuracy: they are not applied where there is no room for more
NEED_ROOM = ("learning rate too high", "still improving", "underfitting")


@dataclass(frozen=True)
class TrainAccuracy:
    """The share of `n` training images that the kept model classifies correctly, and `how` it was measured."""

    accuracy: float
    n: int
    how: str


@dataclass(frozen=True)
class Course:
    """The input of the rules: a finished training.

    `rows` are those of metrics.csv, whose val_accuracy is over `val_images` images. `train` is None where no training
    accuracy is comparable with the validation accuracy; `unfit` then names the settings that make the recorded one
    incomparable. `plain_loss` says that the training loss is a cross-entropy, whose value for guessing is known.
    """

    rows: Rows
    best_epoch: int
    classes: int
    val_images: int
    train: TrainAccuracy | None
    unfit: tuple[str, ...] = ()
    stopped_early: bool = False
    plain_loss: bool = True

    @property
    def best(self) -> Mapping[str, Any]:
        """The row of the epoch that was kept."""
        return next(row for row in self.rows if row["epoch"] == self.best_epoch)

    @property
    def room(self) -> float:
        """How much validation accuracy there is left to gain."""
        return 1 - float(self.best["val_accuracy"])


@dataclass(frozen=True)
class Finding:
    """A name of `RULES` (or `TOO_SHORT`, `NO_FAULT`) and the numbers that led to it, as a sentence."""

    name: str
    evidence: str


def course(
    rows: Rows, summary: Mapping[str, Any], config: RunConfig, classes: int, train_images: int, val_images: int
) -> Course:
    """The course of a finished run, of the rows of its metrics.csv, its summary.json and its config."""
    best_epoch = int(summary["best_epoch"])
    row = next(row for row in rows if row["epoch"] == best_epoch)
    unfit = unfit_settings(config)
    train: TrainAccuracy | None = None
    if clean := summary.get("train"):
        how = f"of {clean['n']:,} training images, without augmentation and dropout"
        train = TrainAccuracy(clean["accuracy"], clean["n"], how)
    elif not unfit:
        how = "of the training images on average over that epoch"
        train = TrainAccuracy(row["train_accuracy"], train_images, how)
    penalties = config.regularize.l1 or config.regularize.l2
    weighted = config.train.loss != "cross-entropy" or config.train.class_weights != "none"
    return Course(
        rows=rows,
        best_epoch=best_epoch,
        classes=classes,
        val_images=val_images,
        train=train,
        unfit=() if train else unfit,
        stopped_early=summary["stopped_because"] == STOPPED_EARLY,
        plain_loss=not (penalties or weighted),
    )


def unfit_settings(config: RunConfig) -> tuple[str, ...]:
    """The settings that make the running training accuracy differ from the net's accuracy on clean training images."""
    augment = config.augment.active
    mixing = [name for name in ("mixup", "cutmix") if augment.pop(name, None)]
    model = config.model
    used = MODELS[model.name].uses if model.name in MODELS else None
    rates = [model.dropout * (used is None or "dropout" in used)]
    rates += [model.hidden_dropout * (used is None or "hidden_dropout" in used)]
    rates += [block.dropout or 0.0 for block in model.blocks or ()]
    found = {
        "augmentation": bool(augment),
        **dict.fromkeys(mixing, True),
        "dropout": any(rates) or used is None,  # a net that is not ours may have dropout
        "averaged weights": bool(config.train.ema),
        "balanced sampling": config.data.sampling == "balanced",
    }
    return tuple(name for name, there in found.items() if there)


def diagnose(course: Course) -> list[Finding]:
    """What is wrong with a training, by `RULES`; at least one finding, the most urgent first."""
    rows = course.rows
    if evidence := _diverged(course):
        return [Finding(DIVERGED, evidence)]
    if len(rows) < ENOUGH:
        return [Finding(TOO_SHORT, f"the run has {len(rows)} of the {ENOUGH} epochs that a diagnosis needs")]
    improving = None if course.stopped_early else _still_improving(course)
    found = {
        "learning rate too high": _rate_too_high(course),
        "unstable": _unstable(course),
        "overfitting": _overfitting(course),
        "still improving": improving,
        "underfitting": None if improving else _underfitting(course),
    }
    findings = [
        Finding(name, evidence)
        for name, evidence in found.items()
        if evidence and (course.room >= ROOM or name not in NEED_ROOM)
    ]
    return findings or [Finding(NO_FAULT, f"none of the {len(RULES)} rules applies")]


def not_judged(course: Course) -> str:
    """The question that the rules leave open, and why; "" if there is none."""
    if course.train or len(course.rows) < ENOUGH or _diverged(course):
        return ""
    return (
        f"Training and validation accuracy are not compared, because this run measured the training accuracy only with "
        f"{listed(course.unfit)}; measured in this way, it says little about how well the net fits its training images"
    )


def _diverged(course: Course) -> str | None:
    guessing, last = math.log(course.classes), course.rows[-1]
    losses = {key: [row[key] for row in course.rows] for key in ("train_loss", "val_loss")}
    if min(last["train_loss"], last["val_loss"]) < GUESSING * guessing:
        return None
    key = "train_loss" if course.plain_loss else "val_loss"
    risen = all(values[-1] >= RISE * min(values) for values in losses.values())
    if not risen and max(losses[key]) <= WORSE * guessing:
        return None
    return (
        f"the last epoch ends with a training loss of {last['train_loss']:.4g} and a validation loss of "
        f"{last['val_loss']:.4g}; the loss of guessing among {course.classes} classes is {guessing:.2f}"
    )


def _rate_too_high(course: Course) -> str | None:
    guessing, rows = math.log(course.classes), course.rows
    first = rows[0]["train_loss"]
    if course.plain_loss and first > WORSE * guessing:
        return (
            f"the training loss of the first epoch is {first:.2f}; the loss of guessing among {course.classes} classes "
            f"is {guessing:.2f}"
        )
    for at in range(1, len(rows)):
        before = {key: min(row[key] for row in rows[:at]) for key in ("train_loss", "val_loss")}
        if all(rows[at][key] > max(RISE * low, low + NOISE) for key, low in before.items()):
            return (
                f"in epoch {rows[at]['epoch']} the training loss rose to {rows[at]['train_loss']:.3f} from "
                f"{before['train_loss']:.3f}, and the validation loss to {rows[at]['val_loss']:.3f} from "
                f"{before['val_loss']:.3f}"
            )
    return None


def _unstable(course: Course) -> str | None:
    falls = [
        (before["val_accuracy"] - after["val_accuracy"], after["epoch"])
        for before, after in itertools.pairwise(course.rows)
        if before["val_accuracy"] - after["val_accuracy"]
        > max(FALL, 3 * standard_error(before["val_accuracy"], course.val_images))
    ]
    if len(falls) < max(2, FALLING * (len(course.rows) - 1)):
        return None
    worst, epoch = max(falls)
    return (
        f"the validation accuracy fell {len(falls)} times in {len(course.rows)} epochs, by as much as "
        f"{100 * worst:.1f} points (epoch {epoch})"
    )


def _overfitting(course: Course) -> str | None:
    lowest, last = min(course.rows, key=lambda row: row["val_loss"]), course.rows[-1]
    risen = last["val_loss"] > max(OVERFIT_LOSS * lowest["val_loss"], lowest["val_loss"] + NOISE)
    if risen and last["train_loss"] < lowest["train_loss"]:
        return (
            f"the validation loss rose from {lowest['val_loss']:.3f} in epoch {lowest['epoch']} to "
            f"{last['val_loss']:.3f} at the end, while the training loss fell from {lowest['train_loss']:.3f} to "
            f"{last['train_loss']:.3f}"
        )
    if course.train is None:
        return None
    val = course.best["val_accuracy"]
    gap = course.train.accuracy - val
    error = math.hypot(standard_error(val, course.val_images), standard_error(course.train.accuracy, course.train.n))
    if gap > max(OVERFIT_GAP, 3 * error):
        return f"{_both(course, course.train)}: a difference of {100 * gap:.1f} points"
    return None


def _still_improving(course: Course) -> str | None:
    rows = course.rows
    if course.best_epoch <= len(rows) - max(1, len(rows) // 10):
        return None
    last = rows[-max(ENOUGH, len(rows) // 3) :]
    losses = [row["val_loss"] for row in last]
    slope = float(np.polyfit(range(len(losses)), losses, 1)[0])
    change = slope * (len(losses) - 1) / float(np.mean(losses))
    if change >= -SLOPE:
        return None
    return (
        f"epoch {course.best_epoch} of {len(rows)} is the best, and the validation loss fell by {-100 * change:.1f}% "
        f"over the last {len(last)} epochs"
    )


def _underfitting(course: Course) -> str | None:
    if course.train is None:
        return None
    val = course.best["val_accuracy"]
    gap = course.train.accuracy - val
    if course.train.accuracy >= FITTED or gap > max(SAME, standard_error(val, course.val_images)):
        return None
    return f"{_both(course, course.train)}: the net does not fit even the images that it trains on"


def standard_error(share: float, count: int) -> float:
    """The standard error of a share of `count` images; shares of 0 and 1, which are never certain, are moved by half an
    image."""
    share = min(max(share, 0.5 / count), 1 - 0.5 / count)
    return math.sqrt(share * (1 - share) / count)


def _both(course: Course, train: TrainAccuracy) -> str:
    return (
        f"the model of the best epoch ({course.best_epoch}) classifies {100 * train.accuracy:.1f}% {train.how}, and "
        f"{100 * course.best['val_accuracy']:.1f}% of the validation images correctly"
    )
