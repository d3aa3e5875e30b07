"""Statistics of paired comparisons: pure functions of numbers, each with its formula and its source.

A study is judged by its images, in `variance`. Here is what that shares with the test over folds: what a comparison
holds, Holm's correction and the verdict; the test over folds itself, by which studies of older versions go on (the
corrected resampled t-test of Nadeau and Bengio 2003); and the exact test of two nets on the same images.
docs/statistics.md derives the tests, and benchmarks/interval_coverage.py measures both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.optimize import brentq

from convsmith.errors import UserError

Verdict = Literal["helps", "hurts", "no difference shown", "equivalent"]
LEVEL = 0.95  # of the intervals of all studies; a difference is shown where p is below 1 - LEVEL
ROUNDING = 1e-12  # relative; differences that vary by less than this vary only by rounding


@dataclass(frozen=True)
class Comparison:
    """An arm against its base, in the unit of the metric; differences are arm minus base.

    `n` is the number of folds (of all repeats) and `std` the standard deviation of their differences;
    `standard_error` is that of the mean, with `degrees` of freedom, and `low` and `high` are the ends of its
    confidence interval. A field is None where it is undefined: see `of_moments`. The last four are of the test by
    image: the number of images (or groups of them) and the components of variance, see `variance.compare_by_image`.
    """

    n: int
    mean_difference: float
    std: float
    standard_error: float
    degrees: float
    t: float | None
    p: float | None
    low: float | None
    high: float | None
    effect_size: float | None
    equivalent: bool | None
    p_equivalent: float | None
    units: int = 0
    images_std: float | None = None
    trainings_std: float | None = None
    rest_std: float | None = None


def of_moments(
    n: int,
    mean: float,
    std: float,
    error: float,
    degrees: float,
    margin: float | None,
    level: float,
    p_tie: float | None = None,
) -> Comparison:
    """The comparison whose mean has the standard error `error` with `degrees` of freedom: Student's t, two-sided.

    `effect_size` is the standardised mean difference d_z = mean / std (Lakens 2013, eq. 6), `std` being that of the
    folds' differences. It depends on the size of a fold: compare it only within a study.

    With a `margin` > 0, two one-sided tests ask whether the difference lies within (-margin, margin), on the same
    standard error and each at 1 - `level` (Schuirmann 1987): `p_equivalent` is the larger of their two p-values, and
    `equivalent` says whether it is below 1 - level, that is, whether the interval at 1 - 2 (1 - level) lies within the
    margin.

    Where nothing varies: if the mean is 0, then t = 0, p = 1, the interval is [0, 0], and `p_equivalent` is `p_tie`
    (by default any margin holds). Otherwise there is nothing to measure the mean against: t, p, interval, effect size
    and equivalence are None, and `verdict` shows no difference.
    """
    t = p = half = effect = None
    if error > 0:
        t, effect = mean / error, mean / std if std else None
        p = 2 * float(stats.t.sf(abs(t), degrees))
        half = _quantile(level, degrees) * error
    elif mean == 0:
        t, p, half, effect = 0.0, 1.0, 0.0, 0.0
    p_equivalent = None if margin is None else _p_equivalent(mean, error, degrees, margin)
    if p_equivalent is not None and error == 0 and p_tie is not None:
        p_equivalent = p_tie
    return Comparison(
        n=n,
        mean_difference=mean,
        std=std,
        standard_error=error,
        degrees=degrees,
        t=t,
        p=p,
        low=None if half is None else mean - half,
        high=None if half is None else mean + half,
        effect_size=effect,
        equivalent=None if p_equivalent is None else p_equivalent < 1 - level,
        p_equivalent=p_equivalent,
    )


def paired_comparison(
    arm: ArrayLike,
    base: ArrayLike,
    test_share: float,
    margin: float | None = None,
    level: float = 0.95,
) -> Comparison:
    """The corrected resampled t-test of an arm's scores against the base's on the same n folds, two-sided.

    With d the differences, s their standard deviation (n - 1), and n_test / n_train = test_share / (1 - test_share)::

        t = mean(d) / sqrt((1/n + n_test/n_train) s^2),    n - 1 degrees of freedom

    (Nadeau and Bengio 2003, "Inference for the Generalization Error", Machine Learning 52; Bouckaert and Frank 2004
    for repeated K-fold.) It is exact for normal differences that all have the correlation `test_share` with each other.

    `test_share` is n_test / (n_test + n_train) of one fold: 1/K for K folds; 0 gives the ordinary paired t-test. A pair
    is a fold (of a repeat). Average several seeds of the same fold first: they share their test images, so that their
    differences are more alike than those of two folds, and counting each as a pair raises the rate of false alarms
    (from 5% to 13% at 5 folds, in the simulation's extreme case of two seeds that change nothing).

    `std` and with it `effect_size` do not include the correction. If all differences are the same (few folds of few
    images), they do not vary: see `of_moments`.

    UserError where there are fewer than 2 pairs.
    """
    scores, reference = np.asarray(arm, dtype=np.float64), np.asarray(base, dtype=np.float64)
    assert scores.shape == reference.shape, f"{scores.shape} against {reference.shape} scores"
    assert np.isfinite([scores, reference]).all(), "a failed fold is left out, with its partner"
    n = len(scores)
    if n < 2:
        raise UserError(
            f"comparing an arm with its base needs at least 2 folds that both have finished, not {n}: "
            f"resume the study to run the missing ones, or raise the number of folds"
        )
    differences = scores - reference
    noise = ROUNDING * max(np.abs(scores).max(), np.abs(reference).max())
    if np.ptp(differences) <= noise:
        differences = np.full(n, 0.0 if np.abs(differences).max() <= noise else differences.mean())
        mean, std, error = float(differences[0]), 0.0, 0.0
    else:
        mean, std, error = _moments(differences, test_share)

    return of_moments(n, mean, std, error, n - 1, margin, level)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted for m tests, in the order given, by Holm's step-down method (Holm 1979).

    Sorted, the i-th smallest (i = 1..m) becomes ``min(1, max over j <= i of (m - j + 1) p_j)``: if every arm below
    alpha is called different, the probability of any false call among the m tests is at most alpha, however they
    depend.

    None stands for a planned test that could not be made; it counts among the m (as p = 1 would) and stays None.
    """
    known = [(p, position) for position, p in enumerate(p_values) if p is not None]
    assert all(0 <= p <= 1 for p, _ in known), f"{p_values}: p-values lie in [0, 1]"
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, position) in enumerate(sorted(known)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p))
        adjusted[position] = highest
    return adjusted


def corrected_level(tests: int) -> float:
    """The level of each of so many tests or intervals that are to hold together at `LEVEL` (Bonferroni).

    It is also the strictest step of Holm's method.
    """
    return 1 - (1 - LEVEL) / tests


def mean_interval(values: ArrayLike, test_share: float, level: float = 0.95) -> tuple[float, float, float, float]:
    """Mean, standard deviation (n - 1) and confidence interval (low, high) of a metric over the n folds.

    ``mean ± t_{n-1} sqrt((1/n + n_test/n_train) s^2)``, with n_test / n_train = test_share / (1 - test_share) and
    `test_share` = 1/K. Folds share training images, so their scores are correlated, and an interval from s / sqrt(n)
    would be too narrow for the score of the same training on other images (Nadeau and Bengio 2003).

    The interval is symmetric and may leave [0, 1]. Where all folds score the same it has no width; that means that the
    folds are too coarse, not that the score is exact. UserError where there are fewer than 2 values.
    """
    scores = np.asarray(values, dtype=np.float64)
    assert np.isfinite(scores).all(), "a failed fold is left out"
    if len(scores) < 2:
        raise UserError(
            f"a confidence interval needs at least 2 finished folds, not {len(scores)}: "
            f"resume the study to run the missing ones, or raise the number of folds"
        )
    mean, std, error = _moments(scores, test_share)
    half = _quantile(level, len(scores) - 1) * error
    return mean, std, mean - half, mean + half


def smallest_detectable(std: float, n: int, test_share: float, level: float = 0.95, power: float = 0.8) -> float:
    """The true difference that `paired_comparison` on n pairs calls different (p < 1 - level) with probability `power`.

    If the mean difference is D, then t has the noncentral t distribution of n - 1 degrees with noncentrality
    ``D / (std sqrt(1/n + n_test/n_train))`` (Cohen 1988, ch. 2, with the variance of Nadeau and Bengio 2003); solved
    for D. `std` is the standard deviation of the differences of one study's folds, as in `Comparison`; the result has
    its unit. To allow for Holm's correction over m arms give ``level = 1 - 0.05 / m``, its strictest step.
    """
    assert n >= 2, f"{n} pairs"
    assert 1 - level < power < 1, f"level {level}, power {power}"
    critical = _quantile(level, n - 1)
    # Given the standard deviation that a study happens to measure, t is normal; the noncentral t is the mean of these
    # normals over the chi distribution, here taken at its quantiles. (scipy.stats.nct gives NaN for few degrees.)
    quantiles = (np.arange(2000) + 0.5) / 2000
    measured = critical * np.sqrt(stats.chi2.ppf(quantiles, n - 1) / (n - 1))

    def shortfall(noncentrality: float) -> float:
        called = stats.norm.cdf(noncentrality - measured) + stats.norm.cdf(-noncentrality - measured)
        return float(called.mean()) - power

    high = critical
    while shortfall(high) < 0:
        high *= 2
    return float(brentq(shortfall, 0.0, high)) * std * _inflation(n, test_share)


@dataclass(frozen=True)
class PairedAccuracies:
    """Two models on the same images: `difference` is the accuracy of the second minus that of the first.

    `p` is the p-value of McNemar's exact test, and `low` to `high` the confidence interval that belongs to it: the
    interval excludes zero if and only if p is below 1 - level.
    """

    difference: float
    p: float
    low: float
    high: float


def paired_accuracies(only_first: int, only_second: int, n: int, level: float = 0.95) -> PairedAccuracies:
    """Compare two models by the images that exactly one of them classifies correctly, of `n` images in all.

    Each of these ``m = only_first + only_second`` images goes either way with probability 1/2 if the models are equally
    good: the two-sided p is that of the exact binomial test (McNemar 1947). The interval of the difference of the
    accuracies ``psi (2 theta - 1)``, with psi the share of images on which exactly one is right and theta the second
    model's share of those, melds the exact (Clopper-Pearson) confidence distributions of psi and theta, as Fay and
    Lumbard 2021 describe ("Confidence intervals for difference in proportions for matched pairs compatible with exact
    McNemar's or sign tests", Statistics in Medicine 40, 1147-1159). psi decides how far from zero the interval ends,
    and theta alone on which side, so that interval and test cannot contradict each other at any size.
    """
    assert min(only_first, only_second) >= 0, f"{only_first} and {only_second} images"
    assert 0 < n >= only_first + only_second, f"{only_first} and {only_second} of {n} images"
    discordant = only_first + only_second
    p = float(stats.binomtest(only_second, discordant).pvalue) if discordant else 1.0
    tail = (1 - level) / 2
    low = _melded_low(only_second, discordant, n, tail)
    high = -_melded_low(only_first, discordant, n, tail)
    return PairedAccuracies((only_second - only_first) / n, p, low, high)


def _melded_low(wins: int, discordant: int, n: int, tail: float) -> float:
    """The `tail` quantile of ``psi (2 theta - 1)``, with theta ~ Beta(wins, discordant - wins + 1).

    psi is conservative: small, ~ Beta(discordant, n - discordant + 1), where 2 theta - 1 is positive, and large,
    ~ Beta(discordant + 1, n - discordant), where that is negative. A Beta with a parameter of 0 stands for an end of
    [0, 1]. The mean over theta is taken at the midpoints of equally probable parts.
    """
    parts = (np.arange(400) + 0.5) / 400
    negative = float(stats.binom.sf(wins - 1, discordant, 0.5))  # P[theta < 1/2], the one-sided p of the test
    if negative >= tail:
        if discordant == n and wins == 0:
            return -1.0
        sides = 2 * stats.beta.ppf(negative * parts, wins, discordant - wins + 1) - 1 if wins else -np.ones(1)

        def excess(end: float) -> float:
            above = stats.beta.sf(end / sides, discordant + 1, n - discordant) if discordant < n else end > sides
            return negative * float(np.mean(above)) - tail

        return float(brentq(excess, -1.0, 0.0))
    sides = 2 * stats.beta.ppf(negative + (1 - negative) * parts, wins, discordant - wins + 1) - 1

    def shortfall(end: float) -> float:
        below = stats.beta.cdf(end / sides, discordant, n - discordant + 1)
        return negative + (1 - negative) * float(np.mean(below)) - tail

    return float(brentq(shortfall, 0.0, 1.0))


def bootstrap_interval(
    differences: ArrayLike, rng: np.random.Generator, draws: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of the mean of paired `differences`, one per image.

    `differences` float [N]: correct under the arm minus correct under the base, so +1, 0 or -1, or its mean over
    repeats. N images are drawn with replacement `draws` times, and the interval covers the middle `level` of their
    means (Efron and Tibshirani 1993, ch. 13). It measures the variation between independent images, not that between
    trainings: it is a check beside the test over folds, not a substitute, and too narrow where images come in groups.
    """
    # There are few distinct values, and only an image's value matters: drawing how often each occurs is equivalent.
    values, counts = np.unique(np.asarray(differences, dtype=np.float64), return_counts=True)
    total = int(counts.sum())
    assert total > 0, "no images"
    means = rng.multinomial(total, counts / total, size=draws) @ values / total
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def verdict(
    comparison: Comparison,
    p_holm: float | None,
    margin: float | None,
    higher_is_better: bool = True,
    alpha: float = 0.05,
    images: Sequence[float] | None = None,
) -> Verdict:
    """The verdict on a comparison, from `p_holm` (adjusted over the study's arms) and the margin that it was made with.

    - "equivalent": a margin is given and both one-sided tests (Schuirmann 1987) pass at `alpha`, that is, the whole
      interval at 1 - 2 alpha lies within the margin. This is tested first: a difference may be significant and yet
      significantly smaller than the margin, and then "helps" would claim too much. Each arm is tested on its own,
      without adjustment over arms. Where no fold differs there is no variance, and a few coarse folds may tie by
      chance: then the ends of the bootstrap interval over `images`, where given, must lie within the margin too.
    - "helps", "hurts": p_holm < alpha, by the sign of the difference, which is reversed where lower is better.
    - "no difference shown": everything else, which does not mean that there is none.
    """
    if margin is not None:
        p = comparison.p_equivalent
        by_chance = comparison.standard_error == 0 and images is not None and max(map(abs, images)) >= margin
        if p is not None and p < alpha and not by_chance:
            return "equivalent"
    if p_holm is None or p_holm >= alpha:
        return "no difference shown"
    return "helps" if (comparison.mean_difference > 0) == higher_is_better else "hurts"


def _p_equivalent(mean: float, error: float, degrees: float, margin: float) -> float | None:
    assert margin > 0, f"margin {margin}"
    if error == 0:
        return 0.0 if mean == 0 else None
    # The larger of the two one-sided p belongs to the bound that the mean is nearer to.
    return float(stats.t.sf((margin - abs(mean)) / error, degrees))


def _moments(values: NDArray[np.float64], test_share: float) -> tuple[float, float, float]:
    std = float(values.std(ddof=1))
    return float(values.mean()), std, std * _inflation(len(values), test_share)


def _inflation(n: int, test_share: float) -> float:
    assert 0 <= test_share < 1, f"test share {test_share}"
    return math.sqrt(1 / n + test_share / (1 - test_share))


def _quantile(level: float, degrees: float) -> float:
    assert 0 < level < 1, f"level {level}"
    return float(stats.t.ppf((1 + level) / 2, degrees))
