"""The figure of a confusion matrix, from given counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convsmith.figures.style import label_axes, new_figure, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COUNTED = 20  # classes up to which a confusion matrix shows the counts
NAMED = 100  # classes up to which it shows the names


def evaluation_figure(record: Mapping[str, Any]) -> Figure:
    """The confusion matrix in the record of an evaluation."""
    return confusion_figure(np.asarray(record["confusion_matrix"]["counts"]), record["classes"])


def confusion_figure(confusion: NDArray[Any], classes: Sequence[str]) -> Figure:
    """Confusion matrix int [K, K], rows = true class: colours are shares of the true class, numbers are counts."""
    from matplotlib.colors import PowerNorm

    counts = np.asarray(confusion)
    size = len(classes)
    assert counts.shape == (size, size), f"{counts.shape} counts of {size} classes"
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    side = float(np.clip(2.5 + 0.45 * size, 4.5, 13))
    figure = new_figure(side + 1, side, layout="compressed")
    axes = figure.add_subplot()
    # Where there is no room for counts, the square root keeps rare confusions visible.
    norm, scale = (PowerNorm(1, 0, 1), "") if size <= COUNTED else (PowerNorm(0.5, 0, 1), " (square-root scale)")
    image = axes.imshow(shares, cmap="Blues", norm=norm, interpolation="nearest")
    figure.colorbar(image, ax=axes, label=f"Share of the true class{scale}")
    label_axes(axes, f"Confusion matrix ({counts.sum():,} images)", "Predicted class", "True class", grid=False)
    if size <= NAMED:
        font = 9 if size <= COUNTED else max(4.5, 10 - size / 18)
        # Class names are data: a dollar sign in them does not start a formula.
        names = [short(name) for name in classes]
        axes.set_xticks(range(size), names, rotation=45 if size <= COUNTED else 90, fontsize=font, parse_math=False)
        axes.set_yticks(range(size), names, fontsize=font, parse_math=False)
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
