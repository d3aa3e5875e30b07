"""How often does the test of a study err? Simulated studies, judged by image and over folds, side by side.

    python benchmarks/interval_coverage.py      about five minutes on one core

It writes docs/results/interval_coverage.json and the tables of docs/statistics.md.

Many studies are simulated, and four tests asked of each: that by image (`studies.variance`), the corrected t-test
over folds (`studies.statistics`, Nadeau and Bengio 2003), the ordinary one, and that of the images alone (Bayle et al.
2020).
Counted are the shares of 95% intervals that hold the true difference, and of p < 0.05: false alarms where the arms are
worth the same, the power where they are not.

0. By integration: the degrees of freedom that the test by image might have (docs/statistics.md, "The uncertainty of
   the excess").
1. The model behind the correction. The difference of fold k is ``d_k = delta + a + e_k``, normal, with variance 1,
   where `a` is common to all folds of a study, so that any two have the correlation rho = 1/K. There the corrected t
   has exactly Student's distribution: this checks the code of the test over folds, by which old studies go on.
2. A small learning problem. A study draws fresh images of two classes from Gaussians around +-mu (10 informative
   features) and cross-validates a ridge classifier. An arm sees 30 features of noise besides: base and null arm are the
   same algorithm with different noise. The third arm sees no noise and is truly better, by the mean over all simulated
   studies. With noise of trainings, each training adds random numbers to its weights, as seeds do to nets.
3. Nets with seeds. An image is right under a net if its own difficulty, what a training has in common, and a rest of
   the net's own exceed a threshold: 70% are right, and two nets disagree on a fifth. The excess noise of trainings is
   some multiple of the images' share. The true differences are exact. The null arms are 6 of one study, and share what
   they know of the excess. Also counted: studies of 6 null arms with any false verdict after Holm's correction, and
   arms at the margin that are called equivalent.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine
from numpy.typing import NDArray
from scipy import stats
from scipy.special import ndtr, ndtri

from convsmith.studies.statistics import holm, smallest_detectable
from convsmith.studies.variance import combined

ROOT = Path(__file__).resolve().parents[1]
RESULT, PAGE = ROOT / "docs" / "results" / "interval_coverage.json", ROOT / "docs" / "statistics.md"
INFORMATIVE, NOISE = 10, 30
MU = 0.35 * np.ones(INFORMATIVE)
RIDGE = 1.0
ARMS, RIGHT, ALIKE = 6, 0.7, 0.72  # of the third world: arms, share of right images, latent correlation of two nets
ALPHA = 0.05

Floats = NDArray[np.float64]
Test = tuple[Floats, Floats, Floats]  # mean, standard error and degrees of freedom of each study


# The tests, of many studies at once


@dataclass(frozen=True)
class Seen:
    """What `variance.moments` sees of many studies of one design; float64 [R] but for the numbers of the design."""

    mean: Floats
    images: Floats
    images_degrees: Floats
    between: Floats
    expected: Floats
    folds: int
    cells: int

    def tests(self, shared: Floats | float = 0.0, shared_degrees: float = 1.0) -> dict[str, Test]:
        """All four tests; that by image with the ratio `shared` of the arms of a study."""
        few = np.full(len(self.mean), self.cells - 1.0)
        use = shared * self.expected > self.between
        between = np.where(use, shared * self.expected, self.between)
        error, degrees = combined(
            self.images, self.images_degrees, between, self.expected, np.where(use, shared_degrees, few)
        )
        ratio = 1 / (self.folds - 1)
        return {
            "by image": (self.mean, error, degrees),
            "images alone": (self.mean, np.sqrt(self.images), self.images_degrees),
            "over folds": (self.mean, np.sqrt(self.between * (1 + self.cells * ratio)), few),
            "ordinary t-test": (self.mean, np.sqrt(self.between), few),
        }


def joined(parts: list[Seen]) -> Seen:
    names = ("mean", "images", "images_degrees", "between", "expected")
    columns: dict[str, Any] = {name: np.concatenate([getattr(one, name) for one in parts]) for name in names}
    return replace(parts[0], **columns)


def together(arms: list[Seen]) -> list[dict[str, Test]]:
    """The tests of the arms of studies, each judged with what `variance.shared_excess` says of all."""
    ratios = np.stack([one.between / one.expected for one in arms])
    degrees, count = arms[0].cells - 1, len(arms)
    shared = np.median(ratios, axis=0) / (stats.chi2.median(degrees) / degrees if count > 2 else 1.0)
    return [one.tests(shared, degrees * count / (1 + (count - 1) / 4)) for one in arms]


def seen(values: Floats, cells: NDArray[np.int64]) -> Seen:
    """Of `values` [R, L, N] of L repeats, where image i of repeat l is in fold ``cells[l, i]``.

    A test compares it with `variance.moments`.
    """
    replications, repeats, images = values.shape
    folds = int(cells.max()) + 1
    count = repeats * folds
    belongs = np.stack([np.eye(folds)[row] for row in cells])  # [L, N, K]
    sizes = belongs.sum(axis=1)
    means = (np.einsum("rln,lnk->rlk", values, belongs) / sizes).reshape(replications, count)
    mean = means.mean(axis=1)
    own = np.einsum("lnk,lk->ln", belongs, 1 / sizes)
    deviations = (values - mean[:, None, None]) * own
    correction = images / (images - 1)
    squares = correction * (deviations.sum(axis=1) / count) ** 2
    variance = squares.sum(axis=1)
    of_cells = correction * (deviations**2).sum(axis=(1, 2))
    between = means.var(axis=1, ddof=1) / count
    expected = np.maximum(0.0, (of_cells / count - variance) / (count - 1))
    spread = ((squares - squares.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    degrees = np.minimum(images - 1, 2 * variance**2 / np.where(spread > 0, spread, 1.0)).clip(min=1)
    return Seen(mean, variance, degrees, between, expected, folds, count)


def p_values(test: Test, truth: float = 0.0) -> Floats:
    """Two-sided p-values of `truth`; where nothing varies there is no test, and p is 1."""
    mean, error, degrees = test
    t = np.abs(mean - truth) / np.where(error > 0, error, np.inf)
    p: Floats = 2 * stats.t.sf(t, degrees)
    return p


def p_equivalent(test: Test, margin: float) -> Floats:
    """The larger p-value of the two one-sided tests of a difference within the margin."""
    mean, error, degrees = test
    p: Floats = stats.t.sf((margin - np.abs(mean)) / np.where(error > 0, error, np.inf), degrees)
    return p


def counted(tests: Mapping[str, Test], truth: float) -> dict[str, Any]:
    """Of each test the shares of intervals that cover `truth`, and of p < 0.05."""
    return {
        name: {
            "coverage": float((p_values(test, truth) >= ALPHA).mean()),
            "different": float((p_values(test) < ALPHA).mean()),
        }
        for name, test in tests.items()
    }


# 0. The degrees of freedom


def _rules() -> dict[str, Callable[[Floats, int], tuple[Floats, Floats]]]:
    """Standard errors and degrees of freedom, of B in units of A = V, by rule."""

    def satterthwaite(weight: Callable[[Floats], Floats]) -> Callable[[Floats, int], tuple[Floats, Floats]]:
        def rule(between: Floats, degrees: int) -> tuple[Floats, Floats]:
            variance = np.maximum(1.0, between)
            return np.sqrt(variance), degrees * (variance / np.maximum(weight(between), 1e-9)) ** 2

        return rule

    ones = np.ones_like
    return {
        "images alone": lambda b, _: (ones(b), 1e9 * ones(b)),
        "ordinary t-test over folds": lambda b, nu: (np.sqrt(b), nu * ones(b)),
        "corrected t-test over folds": lambda b, nu: (np.sqrt(b * (1 + (nu + 1) / nu)), nu * ones(b)),
        "W = B": satterthwaite(lambda b: b),
        "W = B - A": satterthwaite(lambda b: b - 1),
        "W = B^2 / (B + A/2)": satterthwaite(lambda b: b**2 / (b + 0.5)),
        "W = B^2 / (B + A)": satterthwaite(lambda b: b**2 / (b + 1)),
        "W = B^3 / (B^2 + A^2), ours": lambda b, nu: combined(ones(b), 1e9 * ones(b), b, ones(b), nu),
    }


EXCESS = (0.0, 0.3, 1.0, 3.0, 20.0)


def rules(folds: tuple[int, ...] = (5, 10)) -> dict[str, dict[str, Any]]:
    """By rule and number of folds: the rate of false alarms by excess, at 5% and at Holm's first step of 6 arms.

    And the power without excess at a true difference of twice the standard error.
    """
    quantiles = (np.arange(4000) + 0.5) / 4000
    result: dict[str, dict[str, Any]] = {}
    for count in folds:
        unit = stats.chi2.ppf(quantiles, count - 1) / (count - 1)
        for name, rule in _rules().items():

            def called(excess: float, alpha: float, effect: float = 0.0) -> float:
                error, degrees = rule((1 + excess) * unit, count - 1)  # noqa: B023
                critical = stats.t.isf(alpha / 2, degrees) * error / math.sqrt(1 + excess)
                return float(np.mean(ndtr(effect - critical) + ndtr(-effect - critical)))

            result[f"{count} folds, {name}"] = {
                "false_alarms": {str(excess): called(excess, ALPHA) for excess in EXCESS},
                "false_alarms_of_holm": {str(excess): called(excess, ALPHA / ARMS) for excess in EXCESS},
                "found": called(0.0, ALPHA, 2.0),
            }
    return result


# 1. The model behind the correction


def correlated_differences(replications: int, folds: int, delta: float, rng: np.random.Generator) -> Floats:
    """Differences [replications, folds] of the first world."""
    rho = 1 / folds
    common = rng.normal(size=(replications, 1)) * math.sqrt(rho)
    return delta + common + rng.normal(size=(replications, folds)) * math.sqrt(1 - rho)


def over_folds(differences: Floats, test_share: float) -> dict[str, Test]:
    """The corrected and the ordinary t-test of `differences` [R, n]."""
    count = differences.shape[1]
    mean, variance = differences.mean(axis=1), differences.var(axis=1, ddof=1)
    degrees = np.full(len(mean), count - 1.0)
    corrected = np.sqrt(variance * (1 / count + test_share / (1 - test_share)))
    return {
        "over folds": (mean, corrected, degrees),
        "ordinary t-test": (mean, np.sqrt(variance / count), degrees),
    }


# 2. A small learning problem


def draw_images(replications: int, images: int, rng: np.random.Generator, rare: float = 0.5) -> tuple[Floats, Floats]:
    """Informative features [replications, images, INFORMATIVE] and classes +-1 [images], a share `rare` of them 1."""
    turns = np.floor(np.arange(1, images + 1) * rare + 1e-9) - np.floor(np.arange(images) * rare + 1e-9)
    classes = np.where(turns > 0, 1.0, -1.0) if rare != 0.5 else np.where(np.arange(images) % 2 == 0, 1.0, -1.0)
    return rng.normal(size=(replications, images, INFORMATIVE)) + classes[:, None] * MU, classes


def ridge(features: Floats, classes: Floats) -> tuple[Floats, Floats]:
    """Weights [..., p] and biases [...] of ridge classifiers of `features` [..., n, p] and `classes` [..., n].

    The solution of ``min |y - X w - b|^2 + RIDGE |w|^2`` with a free b: that of scikit-learn's RidgeClassifier.
    """
    middle, balance = features.mean(axis=-2), classes.mean(axis=-1)
    centred = features - middle[..., None, :]
    gram = centred.swapaxes(-1, -2) @ centred + RIDGE * np.eye(features.shape[-1])
    target = np.einsum("...np,...n->...p", centred, classes - balance[..., None])
    weights = np.linalg.solve(gram, target[..., None])[..., 0]
    return weights, balance - (weights * middle).sum(axis=-1)


def predicted(
    features: Floats,
    classes: Floats,
    cells: NDArray[np.int64],
    seeds: int = 1,
    noise: float = 0.0,
    rng: np.random.Generator | None = None,
) -> Floats:
    """Predictions +-1, [R, seeds, n], for images `features` [R, n, p] held out by the folds `cells` [n].

    Each training adds normal numbers to its weights, `noise` times as large as the weights are on the average.
    """
    result = np.empty((len(features), seeds, len(classes)))
    for fold in range(int(cells.max()) + 1):
        train, held_out = np.flatnonzero(cells != fold), np.flatnonzero(cells == fold)
        weights, bias = ridge(features[:, train], np.broadcast_to(classes[train], (len(features), len(train))))
        for seed in range(seeds):
            moved = weights
            if noise:
                assert rng is not None
                size = noise * np.sqrt((weights**2).mean(axis=1, keepdims=True))
                moved = weights + size * rng.normal(size=weights.shape)
            scores = np.einsum("rnp,rp->rn", features[:, held_out], moved) + bias[:, None]
            result[:, seed, held_out] = np.sign(scores)
    return result


def accuracy_of(guesses: Floats, classes: Floats, cells: NDArray[np.int64]) -> Floats:
    """Values [..., n] of images whose mean in a fold is the accuracy."""
    return (guesses == classes).astype(np.float64)


def f1_of(guesses: Floats, classes: Floats, cells: NDArray[np.int64]) -> Floats:
    """Values [..., n] of images whose mean in a fold is macro F1: `influence.f1`, of many studies at once."""
    values = np.zeros(guesses.shape)
    for fold in range(int(cells.max()) + 1):
        rows = np.flatnonzero(cells == fold)
        true, guess = classes[rows], guesses[..., rows]
        for side in (-1.0, 1.0):
            hit, whole = 2.0 * ((true == side) & (guess == side)), (true == side) * 1.0 + (guess == side)
            of_whole = whole.mean(axis=-1, keepdims=True)
            ratio = hit.mean(axis=-1, keepdims=True) / of_whole
            values[..., rows] += (ratio + (hit - ratio * whole) / of_whole) / 2
    return values


METRICS = {"accuracy": accuracy_of, "F1": f1_of}


def stratified(classes: Floats, folds: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Folds [n], with the classes as evenly spread as they can be."""
    cells = np.empty(len(classes), dtype=np.int64)
    start = 0
    for side in (-1.0, 1.0):
        rows = rng.permutation(np.flatnonzero(classes == side))
        cells[rows] = (np.arange(len(rows)) + start) % folds
        start += len(rows)
    return cells


#: images, folds, repeats, seeds, noise of trainings, share of the rarer class, metric
LEARNED = {
    "5 folds": (300, 5, 1, 1, 0.0, 0.5, "accuracy"),
    "10 folds": (300, 10, 1, 1, 0.0, 0.5, "accuracy"),
    "5 folds x 2": (300, 5, 2, 1, 0.0, 0.5, "accuracy"),
    "5 folds, noise of trainings": (300, 5, 1, 1, 0.3, 0.5, "accuracy"),
    "5 folds, 3 seeds, noise of trainings": (300, 5, 1, 3, 0.3, 0.5, "accuracy"),
    "5 folds x 2, noise of trainings": (300, 5, 2, 1, 0.3, 0.5, "accuracy"),
    "5 folds, 80 images": (80, 5, 1, 1, 0.0, 0.5, "accuracy"),
    "5 folds, one class of 20%": (300, 5, 1, 1, 0.0, 0.2, "accuracy"),
    "5 folds, one class of 20%, F1": (300, 5, 1, 1, 0.0, 0.2, "F1"),
    "5 folds x 2, one class of 20%, F1": (300, 5, 2, 1, 0.0, 0.2, "F1"),
}


def learned(replications: int, design: tuple[Any, ...], rng: np.random.Generator) -> dict[str, dict[str, Test]]:
    """The tests of the null and of the better arm in the second world."""
    images, folds, repeats, seeds, noise, rare, metric = design
    chunks: dict[str, list[Seen]] = {"null": [], "better": []}
    for start in range(0, replications, 100):
        features, classes = draw_images(min(100, replications - start), images, rng, rare)
        noises = (rng.normal(size=(*features.shape[:2], NOISE)) for _ in range(2))
        noisy, otherwise = (np.concatenate([features, one], axis=2) for one in noises)
        cells = np.stack([stratified(classes, folds, rng) for _ in range(repeats)])
        values = [
            np.stack(
                [
                    METRICS[metric](predicted(arm, classes, row, seeds, noise, rng), classes, row).mean(axis=1)
                    for row in cells
                ],
                axis=1,
            )
            for arm in (noisy, otherwise, features)
        ]
        for name, arm in zip(("null", "better"), values[1:], strict=True):
            chunks[name].append(seen(arm - values[0], cells))
    return {name: joined(found).tests() for name, found in chunks.items()}


def expected_accuracy(noise: int, folds: int, trainings: int, rng: np.random.Generator, images: int = 300) -> float:
    """Mean over independent training sets of the exact accuracy on the population, with `noise` features of noise."""
    total = 0.0
    for start in range(0, trainings, 500):
        count = min(500, trainings - start)
        drawn, classes = draw_images(count, images * (folds - 1) // folds, rng)
        features = np.concatenate([drawn, rng.normal(size=(*drawn.shape[:2], noise))], axis=2)
        weights, bias = ridge(features, np.broadcast_to(classes, features.shape[:2]))
        along, length = weights[:, :INFORMATIVE] @ MU, np.linalg.norm(weights, axis=1)
        total += float((ndtr((along + bias) / length) + ndtr((along - bias) / length)).sum() / 2)
    return total / trainings


# 3. Nets with seeds


def _times(repeats: int) -> str:
    return f" x {repeats}" if repeats > 1 else ""


#: images, folds, repeats, seeds, the excess noise of a training as a multiple of the images' share
NETS = {
    f"{images} images, {folds} folds{_times(repeats)}{f', {seeds} seeds' if seeds > 1 else ''}, excess {excess:g}": (
        images,
        folds,
        repeats,
        seeds,
        excess,
    )
    for images, folds, repeats, seeds, excess in (
        (100, 5, 1, 1, 0.0),
        (600, 5, 1, 1, 0.0),
        (600, 5, 1, 1, 0.3),
        (600, 5, 1, 1, 1.0),
        (600, 5, 1, 1, 3.0),
        (600, 5, 1, 3, 0.3),
        (600, 10, 1, 1, 0.3),
        (600, 5, 2, 1, 0.0),
        (600, 5, 2, 1, 0.3),
        (600, 5, 2, 1, 1.0),
    )
}
MARGIN = 0.04


def nets(
    replications: int, design: tuple[int, int, int, int, float], truths: Floats, rng: np.random.Generator
) -> list[Seen]:
    """What is seen of arms whose accuracies truly differ from the base's by `truths`, in the third world."""
    images, folds, repeats, seeds, excess = design
    threshold = ndtri(RIGHT)
    # A training's shift x of the latent number moves the accuracy by x times the density there.
    density = stats.norm.pdf(threshold)
    shift = math.sqrt(excess * _disagreement() * folds / images / 2) / density
    whole = math.sqrt(1 + shift**2)
    moves = whole * ndtri(RIGHT + truths) - whole * threshold
    cells = np.stack([np.arange(images) * folds // images for _ in range(repeats)])
    for repeat in range(1, repeats):
        cells[repeat] = rng.permutation(cells[repeat])
    chunks: list[list[Seen]] = [[] for _ in truths]
    for start in range(0, replications, 100):
        count = min(100, replications - start)
        own = math.sqrt(ALIKE) * rng.normal(size=(count, 1, images))

        def right(move: float) -> Floats:
            values = np.zeros((count, repeats, images))  # noqa: B023
            for _ in range(seeds):
                common = shift * rng.normal(size=(count, repeats, folds))  # noqa: B023
                of_images = np.stack([common[:, at, row] for at, row in enumerate(cells)], axis=1)
                rest = math.sqrt(1 - ALIKE) * rng.normal(size=values.shape)
                values += own + of_images + rest + whole * threshold + move > 0  # noqa: B023
            return values / seeds

        base = right(0.0)
        for arm, move in zip(chunks, moves, strict=True):
            arm.append(seen(right(float(move)) - base, cells))
    return [joined(arm) for arm in chunks]


def _disagreement() -> float:
    """The share of images on which two nets disagree, without excess."""
    both = stats.multivariate_normal.cdf([ndtri(RIGHT)] * 2, cov=[[1, ALIKE], [ALIKE, 1]])
    return float(2 * (RIGHT - both))


def judged_nets(
    replications: int, design: tuple[int, int, int, int, float], rng: np.random.Generator
) -> dict[str, Any]:
    """The counts of 6 null arms, judged together, and of a better arm and one at the margin, each judged alone."""
    images, _, repeats, seeds, excess = design
    drawn = nets(replications, design, np.zeros(ARMS), rng)
    null = together(drawn)
    alone = np.stack([p_values(one.tests()["by image"]) for one in drawn], axis=1)
    # About twice the standard error: a small effect.
    effect = 2 * math.sqrt(_disagreement() / images * (1 + excess / (repeats * seeds)))
    truth = min(effect, 0.25)
    better, at_margin = (one.tests() for one in nets(replications, design, np.array([truth, MARGIN]), rng))
    result: dict[str, Any] = {"truth": truth, "null": counted(null[0], 0.0), "better": counted(better, truth)}
    for name in null[0]:
        each = np.stack([p_values(arm[name]) for arm in null], axis=1)
        result["null"][name]["different"] = float((each < ALPHA).mean())
        result["null"][name]["any_after_holm"] = _any_after_holm(each)
        result["null"]["by image"]["any_after_holm_alone"] = _any_after_holm(alone)
        equivalent = p_equivalent(at_margin[name], MARGIN) < ALPHA
        result["better"][name]["called_equivalent_at_margin"] = float(equivalent.mean())
    return result


def _any_after_holm(each: Floats) -> float:
    """The share of studies [R] any of whose p-values [R, m] is below 5% after Holm's correction."""
    adjusted = np.array([holm(row.tolist()) for row in each], dtype=np.float64)
    return float((adjusted < ALPHA).any(axis=1).mean())


def model_cases(replications: int, rng: np.random.Generator) -> dict[str, Any]:
    """The test over folds in the first world, by case."""
    cases: dict[str, Any] = {}
    for folds in (5, 10):
        share = 1 / folds
        detectable = smallest_detectable(math.sqrt(1 - share), folds, share)
        for name, delta in [("null", 0.0), ("detectable", detectable), ("at margin", 3.0)]:
            differences = correlated_differences(replications, folds, delta, rng)
            tests = over_folds(differences, share)
            found = counted(tests, delta)
            cases[f"model, {folds} folds, {name}"] = found["over folds"] | {
                "ordinary_different": found["ordinary t-test"]["different"],
                "correlation": correlation(differences),
                "equivalent": float((p_equivalent(tests["over folds"], 3.0) < ALPHA).mean()),
                "replications": replications,
            }
    return cases


def simulate(model: int, studies: int, net_studies: int, seed: int = 0) -> dict[str, Any]:
    """All cases, by name: `model`, `studies` and `net_studies` replications of the three worlds."""
    rng = np.random.default_rng(seed)
    cases = model_cases(model, rng)
    for label, design in LEARNED.items():
        for name, tests in learned(studies, design, rng).items():
            truth = 0.0 if name == "null" else float(tests["by image"][0].mean())
            cases[f"learned, {label}, {name}"] = {"truth": truth, "replications": studies, **counted(tests, truth)}
    for label, seeded in NETS.items():
        found = judged_nets(net_studies, seeded, rng)
        for name in ("null", "better"):
            truth = 0.0 if name == "null" else found["truth"]
            cases[f"nets, {label}, {name}"] = {"truth": truth, "replications": net_studies, **found[name]}
    return cases


def correlation(differences: Floats) -> float:
    """The mean correlation between two columns of `differences` [R, n]."""
    matrix = np.corrcoef(differences, rowvar=False)
    return float((matrix.sum() - len(matrix)) / (len(matrix) * (len(matrix) - 1)))


# The page


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def rules_table(result: Mapping[str, Any]) -> str:
    heads = ["false alarms at excess " + ", ".join(f"{excess:g}" for excess in EXCESS), "found"]
    lines = [f"| folds, rule | {heads[0]} | {heads[1]} |", "|---|---|---|"]
    for name, found in result["rules"].items():
        alarms = ", ".join(_percent(share) for share in found["false_alarms"].values())
        lines.append(f"| {name} | {alarms} | {_percent(found['found'])} |")
    return "\n".join(lines) + "\n"


def cases_table(result: Mapping[str, Any]) -> str:
    """A row per design: by image and over folds, side by side."""
    columns = ["false alarms", "coverage (null, better)", "found"]
    head = "| study | " + " | ".join(f"{column}: by image / images alone / over folds" for column in columns)
    lines = [
        head + " | any of 6 after Holm: by image, alone | wrongly equivalent: by image |",
        "|---|---|---|---|---|---|",
    ]
    cases = result["cases"]
    shown = ("by image", "images alone", "over folds")
    for name, null in cases.items():
        if name.startswith("model") or not name.endswith(", null"):
            continue
        better = cases[name.removesuffix("null") + "better"]
        cells = [
            " / ".join(_percent(null[test]["different"]) for test in shown),
            " / ".join(f"{_percent(null[t]['coverage'])}, {_percent(better[t]['coverage'])}" for t in shown),
            " / ".join(_percent(better[test]["different"]) for test in shown),
        ]
        ours = null["by image"]
        if "any_after_holm" in ours:
            cells.append(f"{_percent(ours['any_after_holm'])}, {_percent(ours['any_after_holm_alone'])}")
            cells.append(_percent(better["by image"]["called_equivalent_at_margin"]))
        else:
            cells += ["", ""]
        lines.append(f"| {name.removesuffix(', null')} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


#: what stands between these lines of the page and the next end of tables
TABLES = {
    "<!-- tables: benchmarks/interval_coverage.py rules -->\n": rules_table,
    "<!-- tables: benchmarks/interval_coverage.py -->\n": cases_table,
}
END = "<!-- end of tables -->"


def page_of(text: str, result: Mapping[str, Any]) -> str:
    """The text of the page with the tables of `result`."""
    for mark, table in TABLES.items():
        before, after = text.split(mark)
        text = before + mark + "\n" + table(result) + "\n" + END + after.split(END, 1)[1]
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=int, default=10_000, help="studies of the first world")
    parser.add_argument("--learned", type=int, default=2_000, help="studies of the second world")
    parser.add_argument("--nets", type=int, default=2_000, help="studies of the third world")
    args = parser.parse_args()
    began = time.process_time()
    cases = simulate(args.model, args.learned, args.nets)
    command = f"python benchmarks/interval_coverage.py --model {args.model} --learned {args.learned}"
    result = {
        "command": f"{command} --nets {args.nets}",
        "machine": machine(),
        "cpu_seconds": time.process_time() - began,
        "rules": rules(),
        "cases": cases,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page_of(PAGE.read_text(encoding="utf-8"), result), encoding="utf-8")
    print(cases_table(result))


if __name__ == "__main__":
    main()
