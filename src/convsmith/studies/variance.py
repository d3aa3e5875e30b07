"""The test by image: what varies between the images of a study, and between its trainings. Pure functions of numbers.

Every training (a fold, with a seed) gives a value for each image that it held out: with two arms, the difference of
their values. The mean of a study varies because other images might have been drawn, and because training again would
give other nets. The first is seen between the images, and there are many of them; the second is what the means of the
folds vary beyond what their images explain. docs/statistics.md derives the formulas and shows the simulations.

The target is the expected difference of nets that are trained anew, with new seeds, on training sets of this size.
Of the variance between training sets only that part is seen in which the folds of one study differ. What all folds
have in common, since each two share most of their images, leaves no trace in them: no unbiased estimator of the whole
variance of a cross-validation exists (Bengio and Grandvalet 2004).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import brentq

from convsmith.errors import UserError
from convsmith.studies.statistics import ROUNDING, Comparison, of_moments

Floats = NDArray[np.float64]
KNOWN_FROM = 4  # degrees of freedom of B; fewer show so little that all of B counts as uncertain
ASSUMED_TRAININGS_STD = 0.01  # of the difference of two accuracies; before a study has measured it


@dataclass(frozen=True, eq=False)
class Training:
    """What a training found on the images that it held out.

    `images` int64 [n] are their positions in the pool, and `values` float64 [n] have the metric as their mean, or the
    difference of two arms. `groups` int64 [n] says which images belong together, where the data say so.
    """

    repeat: int
    fold: int
    seed: int
    images: NDArray[np.int64]
    values: Floats
    groups: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Moments:
    """What the test by image needs to know of a study: see `moments`. Variances are those of the mean, but for `std`.

    `images` is the variance of the mean due to the images, with `images_degrees` of freedom. `between` is the variance
    that the spread of the `cells` shows (a cell is a fold of a repeat, its seeds averaged), and `expected` what that
    would be if only images varied. `rest` is the variance of one image in one training around its mean over all
    trainings; None where each image was held out once.
    """

    mean: float
    std: float
    units: int
    cells: int
    trainings: int
    images: float
    images_degrees: float
    between: float
    expected: float
    rest: float | None


@dataclass(frozen=True)
class Shared:
    """What the arms of a study have in common: the `ratio` of B to A of the middle arm, and its degrees of freedom."""

    ratio: float
    degrees: float


def shared_excess(arms: Sequence[Moments]) -> Shared | None:
    """The excess noise of the middle one of several arms; None where fewer than two arms differ from their base.

    The ratio is the median of the arms' B / A, divided by that of its distribution if there is no excess (but the mean
    of two arms). The degrees are those of the mean of m such ratios whose cells have the correlation 1/2, since all
    arms have the same base: ``m (cells - 1) / (1 + (m - 1) / 4)``.
    """
    ratios = [one.between / one.expected for one in arms if one.expected > 0]
    if len(ratios) < 2:
        return None
    degrees = min(one.cells for one in arms if one.expected > 0) - 1
    usual = stats.chi2.median(degrees) / degrees if len(ratios) > 2 else 1.0
    count = len(ratios)
    return Shared(float(np.median(ratios) / usual), degrees * count / (1 + (count - 1) / 4))


def compare_by_image(
    trainings: Sequence[Training], margin: float | None = None, level: float = 0.95, shared: Shared | None = None
) -> Comparison:
    """The test of a difference by image; the values of `trainings` are arm minus base. The mean is that of the folds.

    With V the variance of the mean due to images, B that which the spread of the folds shows, and A what B would be if
    only images varied, the excess noise of trainings is ``E = max(0, B - A)`` and::

        t = mean / sqrt(V + E),    1/degrees = (V / (V + E))^2 / images_degrees + (W / (V + E))^2 / (cells - 1)

    with ``W = B^3 / (B^2 + A^2)``, or W = B with fewer than 4 degrees. That is Satterthwaite's formula (1946) for
    V + E, where the uncertainty of B counts the more, the more of it is excess: docs/statistics.md says what else was
    tried. With two folds this is still loose: they know next to nothing of the excess.

    With several arms, `shared` is their `shared_excess`: where it is larger than the arm's own, B is taken from it,
    with its degrees instead of cells - 1. An arm whose few folds agree by chance is judged as the others are, and an
    arm that is noisier than the others as itself.

    Of the result, `images_std` is the standard deviation between images (or groups) of their mean difference,
    `trainings_std` that of the excess noise of one training, and `rest_std` that of an image's difference between
    trainings; it is None where each image was held out once. The variance of the mean is
    ``images_std^2 / images + trainings_std^2 / trainings``. If no image differs, `p_equivalent` is the probability of
    that where a share `margin` of the images differs: ``(1 - margin)^images``.

    UserError where there are fewer than 2 folds.
    """
    found = moments(trainings)
    own = found.cells - 1.0
    if shared is not None and shared.ratio * found.expected > found.between:
        found, own = replace(found, between=shared.ratio * found.expected), shared.degrees
    error, degrees = map(float, combined(found.images, found.images_degrees, found.between, found.expected, own))
    p_tie = None if margin is None else max(0.0, 1 - margin) ** found.units
    compared = of_moments(found.cells, found.mean, found.std, error, degrees, margin, level, p_tie)
    return replace(
        compared,
        units=found.units,
        images_std=math.sqrt(found.images * found.units),
        trainings_std=math.sqrt(max(0.0, found.between - found.expected) * found.trainings),
        rest_std=None if found.rest is None else math.sqrt(found.rest),
    )


def cells(trainings: Sequence[Training]) -> int:
    """The number of different folds, of all repeats."""
    return len({(one.repeat, one.fold) for one in trainings})


def moments(trainings: Sequence[Training]) -> Moments:
    """The mean of the folds' means, and its components of variance.

    With w = 1 / cells, y the value of an image in a cell (over its seeds), D the means of cells of n images each, e the
    sum of ``w (y - mean) / n`` over all that belongs to one image (or group, since groups are what was drawn), u the
    sum of ``(y - mean) / n`` in one cell, and ``c = units / (units - 1)``::

        images   = c sum of e^2
        between  = sum of (D - mean)^2 / (cells (cells - 1))
        expected = w / (1 - w) (w sum over cells of (c sum of u^2) - images)

    so that the expectation of ``between - expected`` is the variance of the mean due to what each training has of its
    own, whichever images are held out together, and however often. `images_degrees` is
    ``2 images^2 / variance of images`` from the fourth moments, at most units - 1: few images that differ are few.
    """
    by_cell: dict[tuple[int, int], list[Training]] = defaultdict(list)
    for training in trainings:
        by_cell[training.repeat, training.fold].append(training)
    if len(by_cell) < 2:
        raise UserError(
            f"comparing an arm with its base needs at least 2 folds that both have finished, not {len(by_cell)}: "
            f"resume the study to run the missing ones, or raise the number of folds"
        )
    first = [of[0] for of in by_cell.values()]
    sizes = np.array([len(one.images) for one in first])
    of_cells = [np.mean([one.values for one in of], axis=0) for of in by_cell.values()]
    means = np.array([values.mean() for values in of_cells])
    mean = float(means.mean())
    drawn = [one.images if one.groups is None else one.groups for one in first]
    names, unit = np.unique(np.concatenate(drawn), return_inverse=True)
    units, count = len(names), len(by_cell)
    # A number's rounding must not pass for its variation.
    noise = ROUNDING * max(float(np.abs(values).max()) for values in of_cells)
    deviations = [np.where(np.abs(values - mean) <= noise, 0.0, values - mean) / len(values) for values in of_cells]
    if units < 2 or not any(one.any() for one in deviations):
        return Moments(mean, 0.0, units, count, len(trainings), 0.0, 1.0, 0.0, 0.0, None)
    correction = units / (units - 1)
    cell = np.repeat(np.arange(count), sizes)
    flat = np.concatenate(deviations)
    squares = correction * (np.bincount(unit, flat, units) / count) ** 2
    images = float(squares.sum())
    pairs, pair = np.unique(unit * count + cell, return_inverse=True)
    of_pairs = correction * np.bincount(pair, flat, len(pairs)) ** 2
    share = 1 / count
    between = float(means.var(ddof=1)) / count
    expected = share / (1 - share) * (share * float(of_pairs.sum()) - images)
    spread = float(((squares - squares.mean()) ** 2).sum())
    degrees = min(units - 1.0, 2 * images**2 / spread) if spread > 0 else units - 1.0
    return Moments(
        mean=mean,
        std=float(means.std(ddof=1)),
        units=units,
        cells=count,
        trainings=len(trainings),
        images=images,
        images_degrees=max(1.0, degrees),
        between=between,
        expected=max(0.0, expected),
        rest=_rest(trainings),
    )


def _rest(trainings: Sequence[Training]) -> float | None:
    """The variance of an image's value between trainings, pooled over the images; None where each was held out once."""
    images = np.concatenate([one.images for one in trainings])
    values = np.concatenate([one.values for one in trainings])
    _, image, times = np.unique(images, return_inverse=True, return_counts=True)
    if len(times) == len(images):
        return None
    means = np.bincount(image, values) / times
    return float(((values - means[image]) ** 2).sum() / (len(images) - len(times)))


def combined(
    images: Floats | float,
    images_degrees: Floats | float,
    between: Floats | float,
    expected: Floats | float,
    degrees: Floats | float,
) -> tuple[Floats, Floats]:
    """The standard errors and degrees of freedom of `compare_by_image`, of many studies at once: V, B and A."""
    images, between, expected = (np.asarray(value, dtype=np.float64) for value in (images, between, expected))
    variance = images + np.maximum(0.0, between - expected)
    whole = np.where(variance > 0, variance, 1.0)
    squares = between**2 + expected**2
    share = np.where(np.asarray(degrees) < KNOWN_FROM, 1.0, between**2 / np.where(squares > 0, squares, 1.0))
    inverse = (images / whole) ** 2 / images_degrees + (share * between / whole) ** 2 / degrees
    return np.sqrt(variance), np.where(variance > 0, 1 / np.where(inverse > 0, inverse, 1.0), 1.0)


def detectable(
    images_std: float,
    trainings_std: float,
    images: int,
    trainings: int,
    level: float = 0.95,
    power: float = 0.8,
    cells: int | None = None,
) -> float:
    """The true difference that `compare_by_image` calls different (p < 1 - level) with probability `power`.

    The mean is normal with the variance ``images_std^2 / images + trainings_std^2 / trainings``; how much of it a study
    will see between its `cells` (folds of all repeats; by default each training is one) is a matter of chance, over
    which the power is averaged. The components are those of `Comparison`, after a study, or assumed, before it
    (`assumed_images_std`); the result has their unit. To allow for Holm's correction over m arms give
    ``level = 1 - 0.05 / m``, its strictest step. `images` are groups where the data have groups.
    """
    assert 1 - level < power < 1, f"level {level}, power {power}"
    cells = trainings if cells is None else cells
    assert cells >= 2, f"{cells} cells"
    of_images, of_trainings = images_std**2 / images, trainings_std**2 / trainings
    total = math.sqrt(of_images + of_trainings)
    if total == 0:
        return 0.0
    chances = (np.arange(2000) + 0.5) / 2000
    between = (of_images + of_trainings) * stats.chi2.ppf(chances, cells - 1) / (cells - 1)
    shown = np.full_like(between, of_images)
    error, degrees = combined(shown, images - 1, between, shown, cells - 1)
    critical = stats.t.ppf((1 + level) / 2, degrees) * error / total

    def shortfall(effect: float) -> float:
        return float(np.mean(stats.norm.cdf(effect - critical) + stats.norm.cdf(-effect - critical))) - power

    high = float(critical.max()) + 10
    return float(brentq(shortfall, 0.0, high)) * total


def assumed_images_std(discordance: float = 0.2) -> float:
    """An assumed standard deviation between images of the difference of two accuracies, before a study has started.

    It is ``sqrt(discordance)`` if a share `discordance` of the images is right under one net and wrong under the other,
    equally often either way (McNemar 1947).
    """
    assert 0 < discordance <= 1, f"a share of {discordance}"
    return math.sqrt(discordance)
