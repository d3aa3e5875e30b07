"""Group-sequential tests: a comparison is looked at while its study goes on, without more false alarms.

Who tests after every training at 5%, and stops as soon as a test is significant, finds a difference where there is
none far more often than in 5% of the studies. Here the 5% are spent in portions over the looks (Lan and DeMets 1983,
"Discrete sequential boundaries for clinical trials", Biometrika 70, 659-663): until the share t of the planned
information is there, ``alpha t^3`` of them (Kim and DeMets 1987, "Design and analysis of group sequential tests based
on the type I error spending rate function", Biometrika 74, 149-154; close to O'Brien and Fleming's boundaries). The
looks need not be planned: the portions depend on the information alone, which is the inverse of the variance of the
estimated difference. Pure functions of numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

POWER = 3
LEAST_STEP = 0.01  # of the information between two looks; a look that adds less teaches nothing, and is left out
NODES = 64  # of the quadrature over the estimates that have not crossed a boundary yet
BEYOND = 9.0  # standard errors; a boundary farther out is not reached in practice


def spent(alpha: float, fraction: float) -> float:
    """The part of `alpha` that may be spent until the share `fraction` of the planned information is there."""
    return alpha * min(fraction, 1.0) ** POWER


def nominal_levels(alpha: float, fractions: Sequence[float]) -> list[float]:
    """For each look the p-value of its own two-sided test at or below which the difference is called.

    `fractions` are the shares of the planned information at the looks, rising by at least `LEAST_STEP`. With them,
    a study without any difference calls one at some look with probability `spent(alpha, fractions[-1])`, at most
    `alpha`.

    Under the null hypothesis ``B(t) = z sqrt(t)`` is a Brownian motion (Jennison and Turnbull 2000, "Group Sequential
    Methods with Applications to Clinical Trials", ch. 3 and 7). Its density over the estimates that have crossed no
    boundary is carried from look to look by Gauss-Legendre quadrature (Armitage, McPherson and Rowe 1969, "Repeated
    significance tests on accumulating data", JRSS A 132, 235-244), on its positive half, since it is symmetric.
    """
    assert 0 < alpha <= 1, f"alpha {alpha}"
    assert fractions[0] > 0, f"fractions {fractions}"
    assert all(b - a >= 0.99 * LEAST_STEP for a, b in pairwise(fractions)), f"{fractions}"
    unit, weights = _quadrature()
    nodes, mass = np.zeros(1), np.ones(1)  # all of it at B(0) = 0
    levels, before, spent_before = [], 0.0, 0.0
    for fraction in fractions:
        step, portion = math.sqrt(fraction - before), spent(alpha, fraction) - spent_before

        def excess(edge: float, step: float = step, portion: float = portion) -> float:
            crossing = ndtr((nodes - edge) / step) + ndtr((-nodes - edge) / step)  # noqa: B023 - it is called at once
            return float(crossing @ mass) - portion  # noqa: B023

        farthest = BEYOND * math.sqrt(fraction)
        edge = 0.0 if excess(0.0) <= 0 else farthest if excess(farthest) >= 0 else brentq(excess, 0.0, farthest)
        levels.append(float(2 * ndtr(-edge / math.sqrt(fraction))))
        there = edge * (unit + 1) / 2
        apart = [((there[:, None] - side * nodes) / step) ** 2 for side in (1, -1)]
        arrivals = (np.exp(-apart[0] / 2) + np.exp(-apart[1] / 2)) @ mass / (step * math.sqrt(2 * math.pi))
        nodes, mass = there, arrivals * weights * edge / 2
        before, spent_before = fraction, spent(alpha, fraction)
    return levels


@cache
def _quadrature() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    return nodes, weights


def sequential_p(p_values: Sequence[float], fractions: Sequence[float]) -> float:
    """The smallest alpha at which some look has called the difference, from the p-values of the looks' own tests.

    It may be used as an ordinary p-value whenever the study stops, and `holm` may adjust it over the arms, whichever
    looks these have had (Liu and Anderson 2008, "On adaptive extensions of group sequential trials for clinical
    investigations", JASA 103, 1621-1630; Ye, Li, Liu and Yao 2013, "A group sequential Holm procedure with multiple
    primary endpoints", Statistics in Medicine 32, 1112-1124). It never rises from look to look. 1 without a look.
    """
    found = 1.0
    for look, p in enumerate(p_values):
        if p >= found:  # the boundary of a look lies beyond that of its own test alone
            continue
        until = fractions[: look + 1]

        def excess(log_alpha: float, p: float = p, until: Sequence[float] = until) -> float:
            return float(ndtri(nominal_levels(math.exp(log_alpha), until)[-1] / 2) - ndtri(p / 2))

        low, high = math.log(max(p, 1e-12)), math.log(found)
        if excess(high) > 0:
            found = math.exp(brentq(excess, low, high, xtol=1e-4)) if excess(low) < 0 else math.exp(low)
    return found


def chance(
    difference: float, variance: float, planned: float, level: float, margin: float = 0.0, one_sided: float = 0.05
) -> float:
    """The probability that the last planned look will have a verdict, as one look predicts it.

    `difference` is the estimate, `variance` its variance now and `planned` at the plan's end. The estimate there is
    normal around that of now, with variance ``variance - planned`` (the predictive power of Spiegelhalter, Freedman
    and Blackburn 1986, "Monitoring clinical trials: conditional or predictive power?", Controlled Clinical Trials 7,
    8-17, with a flat prior). A verdict is a difference at the nominal two-sided `level`, or two one-sided tests at
    `one_sided` that hold it within a `margin` above 0.
    """
    error, spread = math.sqrt(planned), math.sqrt(max(variance - planned, 0.0))
    reach, within = -float(ndtri(level / 2)) * error, max(0.0, margin + float(ndtri(one_sided)) * error)
    if within >= reach:
        return 1.0
    if spread == 0:
        return float(abs(difference) > reach or abs(difference) < within)

    def below(end: float) -> float:
        return float(ndtr((end - difference) / spread))

    return 1 - below(reach) + below(-reach) + below(within) - below(-within)
