"""The solved head against scikit-learn's logistic regression, and its place in a run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from convsmith.nets.convnet import ScaledLinear
from convsmith.transfer.solved_head import solve


def features(images: int, width: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(images) % classes)
    centres = rng.normal(size=(classes, width))
    values = 3 + 0.5 * centres[labels] + rng.normal(size=(images, width)) * rng.uniform(0.1, 2, size=width)
    return values.astype(np.float32), labels.astype(np.int64)


@pytest.mark.parametrize(("images", "width"), [(120, 8), (40, 100)])  # more images than features, and fewer
@pytest.mark.parametrize("balanced", [False, True])
def test_it_is_the_logistic_regression_of_scikit_learn_on_standardised_features(
    images: int, width: int, balanced: bool
) -> None:
    values, labels = features(images, width, 3)
    if balanced:
        values, labels = np.concatenate([values, values[labels == 0]]), np.concatenate([labels, labels[labels == 0]])
    penalty, count = 0.1, len(labels)
    weights = count / (3 * np.bincount(labels)) if balanced else None
    head = solve(values, labels, 3, [penalty], weights)[0]
    standard = (values - values.mean(axis=0)) / values.std(axis=0)
    oracle = LogisticRegression(
        C=1 / (penalty * count), tol=1e-8, max_iter=10_000, class_weight="balanced" if balanced else None
    ).fit(standard, labels)
    np.testing.assert_allclose(
        log_softmax(head.logits(values), axis=1), oracle.predict_log_proba(standard), rtol=1e-3, atol=1e-3
    )


def test_a_path_of_penalties_gives_what_each_gives_alone() -> None:
    values, labels = features(60, 20, 2)
    penalties = [1.0, 0.1, 0.01]
    for penalty, head in zip(penalties, solve(values, labels, 2, penalties), strict=True):
        alone = solve(values, labels, 2, [penalty])[0]
        np.testing.assert_allclose(head.logits(values), alone.logits(values), atol=2e-3)


def test_a_feature_that_never_changes_has_no_weight() -> None:
    values, labels = features(60, 5, 2)
    values[:, 2] = 7
    head = solve(values, labels, 2, [0.1])[0]
    np.testing.assert_allclose(head.weight[:, 2], 0, atol=1e-9)


def test_a_head_that_scales_its_logits_computes_those_of_the_solution() -> None:
    values, labels = features(60, 5, 3)
    head = solve(values, labels, 3, [0.1])[0]
    for scale in (1.0, 0.125):
        module = ScaledLinear(5, 3, scale)
        head.copy_to(module)
        logits = module(torch.from_numpy(values)).detach().numpy()
        np.testing.assert_allclose(logits, head.logits(values), rtol=1e-4, atol=1e-5)
