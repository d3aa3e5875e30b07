"""Metrics as means over images: exact in their mean, and in their variance like a bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convsmith.prediction.influence import BY_IMAGE
from convsmith.prediction.metrics import COMPUTE, Averages, Outcomes
from convsmith.records import METRICS


def outcomes(count: int, classes: int, seed: int, skill: float = 1.5) -> Outcomes:
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, count, p=np.arange(1, classes + 1) / (classes * (classes + 1) / 2))
    logits = rng.normal(size=(count, classes)) * 1.5
    logits[np.arange(count), labels] += skill
    return Outcomes(labels, logits.astype(np.float32))


def value(metric: str, of: Outcomes) -> float:
    found = COMPUTE[metric](of)
    return found.macro if isinstance(found, Averages) else found


def test_each_metric_has_values_by_image() -> None:
    assert BY_IMAGE.keys() == METRICS.keys()


@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=20)
@given(count=st.integers(1, 60), classes=st.integers(1, 8), seed=st.integers(0, 10**6), skill=st.floats(-2, 9))
def test_the_mean_over_images_is_the_metric(metric: str, count: int, classes: int, seed: int, skill: float) -> None:
    of = outcomes(count, classes, seed, skill)
    assert BY_IMAGE[metric](of).mean() == pytest.approx(value(metric, of), abs=1e-9)


@pytest.mark.parametrize("metric", METRICS)
def test_the_linearised_standard_error_is_that_of_a_bootstrap(metric: str) -> None:
    of = outcomes(1500, 7, 1)
    rng = np.random.default_rng(2)
    drawn = []
    for _ in range(200):
        rows = rng.integers(0, 1500, 1500)
        drawn.append(value(metric, Outcomes(of.labels[rows], of.logits[rows])))
    # The standard deviation of 200 draws is uncertain by 5%.
    assert BY_IMAGE[metric](of).std() / np.sqrt(1500) == pytest.approx(np.std(drawn), rel=0.15)
