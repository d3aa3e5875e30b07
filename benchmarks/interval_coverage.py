"""Do the intervals of paired comparisons cover what they claim to? A simulation of folds that are not independent.

    python benchmarks/interval_coverage.py      under two minutes on one core

It writes docs/results/interval_coverage.json.

Two worlds are simulated many times over, and `paired_comparison` asked each time. Counted are the share of 95%
intervals that hold the true difference, and the share of p < 0.05: false alarms where the two arms are worth the same
("null"), the power where they are not. The ordinary paired t-test, which takes folds for independent, stands beside.

1. The model behind the correction (Nadeau and Bengio 2003). The difference of fold k is ``d_k = delta + a + e_k``,
   normal, with variance 1, where `a` is common to the folds of a replication (they share training images), so that any
   two folds have the correlation rho = 1/K. Here t has exactly Student's distribution: the simulation checks the code.
   Besides the null: `delta` = `smallest_detectable` for a power of 80%; `delta` = the margin of equivalence, which is
   to be called equivalent in 5% of the studies; and what becomes of the null if each fold is counted twice, as when two
   seeds that change nothing pass for pairs of their own instead of being averaged.

2. A small learning problem, for which nothing says that rho is 1/K. Each replication draws 300 fresh images of two
   classes from Gaussians around +-mu (10 informative features) and cross-validates a ridge classifier, with classes as
   evenly spread over the folds as they can be. An arm sees 30 features of noise of its own besides. Base and null arm
   are the same algorithm with different noise: the true difference is 0. The third arm sees no noise and is truly
   better: by the difference of the expected accuracies, worked out from 20,000 independent training sets of the size
   that the folds train on, each scored exactly on the whole population. One case more: 5 folds, twice over.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from convsmith.studies.statistics import paired_comparison, smallest_detectable

RESULT = Path(__file__).resolve().parents[1] / "docs" / "results" / "interval_coverage.json"
IMAGES, INFORMATIVE, NOISE = 300, 10, 30
MU = 0.35 * np.ones(INFORMATIVE)
RIDGE = 1.0

Floats = NDArray[np.float64]


def correlated_differences(replications: int, folds: int, delta: float, rng: np.random.Generator) -> Floats:
    """Differences [replications, folds] of the first world."""
    rho = 1 / folds
    common = rng.normal(size=(replications, 1)) * math.sqrt(rho)
    return delta + common + rng.normal(size=(replications, folds)) * math.sqrt(1 - rho)


def draw_images(replications: int, images: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Informative features [replications, images, INFORMATIVE] and classes +-1 [images], in turns."""
    classes = np.where(np.arange(images) % 2 == 0, 1.0, -1.0)
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


def fold_accuracies(features: Floats, classes: Floats, folds: int) -> Floats:
    """Accuracies [R, folds] by K-fold cross-validation of `features` [R, n, p]; fold k is the k-th block of images."""
    accuracies = np.empty((len(features), folds))
    for fold, held_out in enumerate(np.array_split(np.arange(len(classes)), folds)):
        train = np.setdiff1d(np.arange(len(classes)), held_out)
        weights, bias = ridge(features[:, train], np.broadcast_to(classes[train], (len(features), len(train))))
        scores = np.einsum("rnp,rp->rn", features[:, held_out], weights) + bias[:, None]
        accuracies[:, fold] = (np.sign(scores) == classes[held_out]).mean(axis=1)
    return accuracies


def learned_differences(replications: int, folds: int, repeats: int, rng: np.random.Generator) -> dict[str, Floats]:
    """Differences [replications, repeats * folds] of the second world, of the null and of the better arm."""
    chunks: dict[str, list[Floats]] = {"null": [], "better": []}
    for start in range(0, replications, 200):
        images, classes = draw_images(min(200, replications - start), IMAGES, rng)
        noises = (rng.normal(size=(*images.shape[:2], NOISE)) for _ in range(2))
        noisy, otherwise = (np.concatenate([images, noise], axis=2) for noise in noises)
        columns: dict[str, list[Floats]] = {"null": [], "better": []}
        for _ in range(repeats):
            # Shuffled within the classes, whose turns then spread them evenly over the blocks.
            halves = [2 * rng.permutation(IMAGES // 2), 2 * rng.permutation(IMAGES // 2) + 1]
            order = np.stack(halves, axis=1).reshape(-1)
            base, null, better = (fold_accuracies(arm[:, order], classes, folds) for arm in (noisy, otherwise, images))
            columns["null"].append(null - base)
            columns["better"].append(better - base)
        for name, found in columns.items():
            chunks[name].append(np.concatenate(found, axis=1))
    return {name: np.concatenate(found) for name, found in chunks.items()}


def expected_accuracy(noise: int, folds: int, trainings: int, rng: np.random.Generator) -> float:
    """Mean over independent training sets of the exact accuracy on the population, with `noise` features of noise."""
    total = 0.0
    for start in range(0, trainings, 500):
        count = min(500, trainings - start)
        images, classes = draw_images(count, IMAGES * (folds - 1) // folds, rng)
        features = np.concatenate([images, rng.normal(size=(*images.shape[:2], noise))], axis=2)
        weights, bias = ridge(features, np.broadcast_to(classes, features.shape[:2]))
        along, length = weights[:, :INFORMATIVE] @ MU, np.linalg.norm(weights, axis=1)
        total += float((ndtr((along + bias) / length) + ndtr((along - bias) / length)).sum() / 2)
    return total / trainings


def count(differences: Floats, truth: float, test_share: float, margin: float | None = None) -> dict[str, float]:
    """Over the replications of `differences` [R, n]: shares of intervals that cover `truth` and of p < 0.05.

    `mc_error` is the standard error of a share of 5% in so many replications; `same_everywhere` the share of studies
    whose differences are one number, where there may be no test: these count as covered and as not different.
    """
    zeros = [0.0] * differences.shape[1]
    covered = different = equivalent = same = ordinary = 0
    for row in differences:
        found = paired_comparison(row.tolist(), zeros, test_share, margin)
        covered += found.low is None or found.high is None or found.low <= truth <= found.high
        different += found.p is not None and found.p < 0.05
        equivalent += bool(found.equivalent)
        same += found.std == 0
        plain = paired_comparison(row.tolist(), zeros, 0.0)
        ordinary += plain.p is not None and plain.p < 0.05
    size = len(differences)
    result = {
        "truth": truth,
        "replications": size,
        "coverage": covered / size,
        "called_different": different / size,
        "ordinary_t_test_called_different": ordinary / size,
        "same_everywhere": same / size,
        "mc_error": math.sqrt(0.05 * 0.95 / size),
        "correlation": correlation(differences),
        "assumed_correlation": test_share,
    }
    return result if margin is None else {**result, "called_equivalent": equivalent / size}


def correlation(differences: Floats) -> float:
    """The mean correlation between two columns of `differences` [R, n]."""
    matrix = np.corrcoef(differences, rowvar=False)
    return float((matrix.sum() - len(matrix)) / (len(matrix) * (len(matrix) - 1)))


def simulate(model: int, learned: int, trainings: int, seed: int = 0) -> dict[str, dict[str, float]]:
    """All cases, by name: `model` and `learned` replications of the two worlds, `trainings` for each expectation."""
    rng = np.random.default_rng(seed)
    cases: dict[str, dict[str, float]] = {}
    for folds in (5, 10):
        share = 1 / folds
        detectable = smallest_detectable(math.sqrt(1 - share), folds, share)
        for name, delta, margin in [("null", 0.0, None), ("detectable", detectable, None), ("at margin", 3.0, 3.0)]:
            differences = correlated_differences(model, folds, delta, rng)
            cases[f"model, {folds} folds, {name}"] = count(differences, delta, share, margin)
            if name == "null":
                twice = np.repeat(differences, 2, axis=1)
                cases[f"model, {folds} folds, null, each counted twice"] = count(twice, delta, share)
    for folds, repeats in [(5, 1), (10, 1), (5, 2)]:
        without, with_noise = (expected_accuracy(noise, folds, trainings, rng) for noise in (0, NOISE))
        truths = {"null": 0.0, "better": without - with_noise}
        for name, differences in learned_differences(learned, folds, repeats, rng).items():
            label = f"learned, {folds} folds" + (f" x {repeats}" if repeats > 1 else "")
            cases[f"{label}, {name}"] = count(differences, truths[name], 1 / folds)
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=int, default=10_000, help="replications of the first world")
    parser.add_argument("--learned", type=int, default=5_000, help="replications of the second world")
    parser.add_argument("--trainings", type=int, default=20_000, help="independent training sets an expectation")
    args = parser.parse_args()
    began = time.process_time()
    cases = simulate(args.model, args.learned, args.trainings)
    print(f"{'case':46} {'truth':>7} {'coverage':>9} {'p < 0.05':>9} {'ordinary':>9} {'correlation':>12}")
    for name, found in cases.items():
        print(
            f"{name:46} {found['truth']:7.4f} {found['coverage']:9.1%} {found['called_different']:9.1%} "
            f"{found['ordinary_t_test_called_different']:9.1%} {found['correlation']:12.3f}"
        )
    command = f"python benchmarks/interval_coverage.py --model {args.model} --learned {args.learned}"
    result = {
        "command": f"{command} --trainings {args.trainings}",
        "cpu_seconds": time.process_time() - began,
        "cases": cases,
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
