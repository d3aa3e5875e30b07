"""Figures of counts: the confusion matrix and the reliability diagram."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from convsmith.prediction.calibration import reliability

if TYPE_CHECKING:
    from matplotlib.figure import Figure
from convsmith.figures.style import BLUE, GREY, VERMILLION, label_axes, new_figure, short

COUNTED = 20  # classes up to which a confusion matrix shows its counts


NAMED = 100  # classes up to which it shows their names


def confusion_figure(confusion: NDArray[Any], classes: Sequence[str]) -> Figure:
    """Confusion matrix int [K, K], rows = true class: colour is the share of the true class, numbers are counts."""
    from matplotlib.colors import PowerNorm

    counts = np.asarray(confusion)
    size = len(classes)
    assert counts.shape == (size, size), f"{counts.shape} counts of {size} classes"
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    side = float(np.clip(2.5 + 0.45 * size, 4.5, 13))
    figure = new_figure(side + 1, side, layout="compressed")
    axes = figure.add_subplot()
    # Where there is no room for counts, the square root keeps rare confusions in sight.
    norm, scale = (PowerNorm(1, 0, 1), "") if size <= COUNTED else (PowerNorm(0.5, 0, 1), " (square-root scale)")
    image = axes.imshow(shares, cmap="Blues", norm=norm, interpolation="nearest")
    figure.colorbar(image, ax=axes, label=f"Share of the true class{scale}")
    label_axes(axes, f"Confusion matrix ({counts.sum():,} samples)", "Predicted class", "True class", grid=False)
    if size <= NAMED:
        font = 9 if size <= COUNTED else max(4.5, 10 - size / 18)
        # Class names are data: a dollar sign in them is no formula.
        axes.set_xticks(range(size), classes, rotation=45 if size <= COUNTED else 90, fontsize=font, parse_math=False)
        axes.set_yticks(range(size), classes, fontsize=font, parse_math=False)
        if size <= COUNTED:
            for label in axes.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
    else:
        axes.set(xlabel="Predicted class (index)", ylabel="True class (index)")
    if size <= COUNTED:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{count}", ha="center", va="center", color=colour, fontsize=8)
    return figure


def reliability_figure(confidences: ArrayLike, correct: ArrayLike, bins: int = 15) -> Figure:
    """Reliability diagram: accuracy by confidence, and how many predictions have which confidence.

    `confidences` float [N] of the predicted classes, `correct` bool [N].
    """
    found = reliability(confidences, correct, bins)
    figure = new_figure(5.5, 6)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    width = np.diff(found.edges)
    top.bar(
        found.edges[:-1],
        np.nan_to_num(found.accuracy),
        width,
        align="edge",
        color=BLUE,
        edgecolor="white",
        label="accuracy",
    )
    filled = found.count > 0
    top.plot(found.confidence[filled], found.accuracy[filled], "o", color=VERMILLION, markersize=5, label="bin's mean")
    top.plot([0, 1], [0, 1], "--", color=GREY, label="perfect calibration")
    top.set(xlim=(0, 1), ylim=(0, 1))
    top.legend(fontsize=8, loc="upper left")
    label_axes(top, f"Reliability (expected calibration error {100 * found.error:.1f} %)", "", "Accuracy")
    bottom.bar(found.edges[:-1], found.count / found.count.sum(), width, align="edge", color=GREY, edgecolor="white")
    label_axes(bottom, "", "Confidence (probability of the predicted class)", "Share of\npredictions")
    return figure


def samples_figure(
    images: NDArray[np.uint8], labels: Sequence[str], predictions: Sequence[str], confidences: Sequence[float]
) -> Figure:
    """A grid of images uint8 [N, H, W, 1 or 3], each with what was predicted and, where that is wrong, the truth."""
    assert len(images) == len(labels) == len(predictions) == len(confidences) > 0
    columns = min(len(images), 8)
    rows = -(-len(images) // columns)
    figure = new_figure(1.55 * columns, 1.85 * rows + 0.3)
    wrong = sum(label != prediction for label, prediction in zip(labels, predictions, strict=True))
    figure.suptitle(f"Predictions: {len(images) - wrong} right, {wrong} wrong (framed)", fontsize=11)
    for index, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set(xticks=[], yticks=[])
        if index >= len(images):
            axes.set_axis_off()
            continue
        axes.imshow(np.squeeze(images[index]), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        right = labels[index] == predictions[index]
        text = f"{short(predictions[index])} {confidences[index]:.0%}"
        text += "\n" if right else f"\nis {short(labels[index])}"
        axes.set_title(text, fontsize=8, color=GREY if right else VERMILLION, parse_math=False)
        for spine in axes.spines.values():
            spine.set(color=GREY if right else VERMILLION, linewidth=0.8 if right else 3)
    return figure
