"""The test by image: its components of variance, its calibration, and what it says where there is little to see."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from convsmith.errors import UserError
from convsmith.studies.statistics import paired_accuracies, paired_comparison, verdict
from convsmith.studies.variance import Training, combined, compare_by_image, detectable, moments, shared_excess


def study(
    rng: np.random.Generator,
    images: int = 120,
    folds: int = 4,
    repeats: int = 1,
    seeds: int = 1,
    image: float = 0.4,
    training: float = 0.0,
    rest: float = 0.3,
    mean: float = 0.0,
) -> list[Training]:
    """Trainings of the crossed model: values are mean + image + training + rest, with these standard deviations."""
    own = mean + image * rng.normal(size=images)
    return [
        Training(repeat, fold, seed, held, own[held] + training * rng.normal() + rest * rng.normal(size=len(held)))
        for repeat in range(repeats)
        for fold, held in enumerate(np.array_split(rng.permutation(images), folds))
        for seed in range(seeds)
    ]


def test_one_repeat_without_excess_is_the_ordinary_test_over_images() -> None:
    trainings = study(np.random.default_rng(0))
    values = np.concatenate([one.values for one in trainings])
    found = moments(trainings)
    assert found.images == pytest.approx(values.var(ddof=1) / len(values))
    assert found.expected == pytest.approx(found.images)
    ordinary = paired_comparison([one.values.mean() for one in trainings], np.zeros(4), 0.0)
    assert found.between == pytest.approx(ordinary.standard_error**2)
    result = compare_by_image(trainings)
    if found.between <= found.expected:
        assert result.standard_error == pytest.approx(math.sqrt(found.images))
    assert (result.n, result.units, result.mean_difference) == (4, 120, pytest.approx(values.mean()))


@pytest.mark.parametrize(
    "design",
    [
        {"repeats": 1, "training": 0.06},
        {"repeats": 3, "training": 0.05},
        {"repeats": 1, "seeds": 3, "training": 0.08},
        {"repeats": 2, "seeds": 2, "folds": 7},
    ],
)
def test_the_components_add_up_to_the_variance_of_the_mean(design: dict[str, float]) -> None:
    rng = np.random.default_rng(1)
    found = [moments(study(rng, **design)) for _ in range(400)]
    one = found[0]
    layers = int(design["repeats"] * design.get("seeds", 1))
    truth = 0.4**2 / 120 + 0.3**2 / (120 * layers) + design.get("training", 0.0) ** 2 / one.trainings
    # The mean of 400 variances of few degrees of freedom is known to about 3%, that of the means themselves to 7%.
    assert np.mean([of.images + of.between - of.expected for of in found]) == pytest.approx(truth, rel=0.1)
    assert np.var([of.mean for of in found]) == pytest.approx(truth, rel=0.25)
    if layers > 1:
        assert np.mean([of.rest for of in found if of.rest]) == pytest.approx(0.3**2, rel=0.1)
    else:
        assert one.rest is None


def test_groups_that_are_as_many_as_folds_leave_the_test_over_folds() -> None:
    """Groups are what was drawn: with one in each fold, the folds are all that there is to compare."""
    plain = study(np.random.default_rng(2), training=0.1)
    grouped = [
        Training(one.repeat, one.fold, one.seed, one.images, one.values, np.full(len(one.images), at))
        for at, one in enumerate(plain)
    ]
    found, result = moments(grouped), compare_by_image(grouped)
    ordinary = paired_comparison([one.values.mean() for one in plain], np.zeros(4), 0.0)
    assert (found.units, found.images_degrees) == (4, pytest.approx(3, abs=1e-6)) or found.images_degrees < 3
    assert result.standard_error == pytest.approx(ordinary.standard_error)
    assert result.degrees <= 3


def test_alike_images_of_a_group_count_once() -> None:
    rng = np.random.default_rng(3)
    once = study(rng, images=60, rest=0.0)
    thrice = [
        Training(1, one.fold, 0, np.repeat(3 * one.images, 3), np.repeat(one.values, 3), np.repeat(one.images, 3))
        for one in once
    ]
    ours, theirs = compare_by_image(once), compare_by_image(thrice)
    assert (ours.p, ours.low, ours.high) == pytest.approx((theirs.p, theirs.low, theirs.high))
    assert theirs.units == 60


@given(st.integers(0, 10**6), st.floats(0.1, 10))
@settings(max_examples=20)
def test_exchange_and_unit_change_sign_and_scale_alone(seed: int, scale: float) -> None:
    trainings = study(np.random.default_rng(seed), images=30, training=0.1)
    other = [Training(one.repeat, one.fold, one.seed, one.images, -scale * one.values) for one in trainings]
    ours, theirs = compare_by_image(trainings, 0.1), compare_by_image(other, scale * 0.1)
    assert theirs.mean_difference == pytest.approx(-scale * ours.mean_difference)
    assert (theirs.p, theirs.p_equivalent) == pytest.approx((ours.p, ours.p_equivalent))
    assert (theirs.low, theirs.high) == pytest.approx((-scale * ours.high, -scale * ours.low))
    assert (ours.p < 0.05) == (ours.low > 0 or ours.high < 0)


def one_sided(count: int, images: int = 400) -> list[Training]:
    """Two nets of which one is right on `count` more images, and they agree on all others."""
    values = np.zeros(images)
    values[:count] = 1
    rows = np.random.default_rng(4).permutation(images)
    return [Training(1, fold, 0, held, values[held]) for fold, held in enumerate(np.array_split(rows, 5))]


@pytest.mark.parametrize("count", [3, 4, 5, 6, 8])
def test_few_images_that_differ_are_few(count: int) -> None:
    """The degrees of freedom count the images that differ, so that p is about McNemar's exact one, or larger."""
    found, exact = compare_by_image(one_sided(count)), paired_accuracies(0, count, 400)
    assert found.p is not None
    assert found.p > 0.45 * exact.p


def test_no_image_that_differs_is_no_proof_of_equivalence_among_few() -> None:
    few, many = one_sided(0, 40), one_sided(0, 400)
    for trainings, expected in [(few, "no difference shown"), (many, "equivalent")]:
        found = compare_by_image(trainings, margin=0.01)
        assert (found.p, found.low, found.high) == (1.0, 0.0, 0.0)
        assert verdict(found, found.p, 0.01) == expected
    assert compare_by_image(few, margin=0.01).p_equivalent == pytest.approx(0.99**40)


def test_the_same_difference_of_all_images_cannot_be_tested() -> None:
    same = [Training(1, fold, 0, np.arange(5) + 5 * fold, np.full(5, 0.3)) for fold in range(3)]
    found = compare_by_image(same, margin=0.5)
    assert (found.p, found.low, found.equivalent, found.mean_difference) == (None, None, None, pytest.approx(0.3))
    assert verdict(found, None, 0.5) == "no difference shown"


@pytest.mark.parametrize("count", [0, 1])
def test_one_fold_is_too_few(count: int) -> None:
    with pytest.raises(UserError, match=f"needs at least 2 folds that both have finished, not {count}: resume"):
        compare_by_image(study(np.random.default_rng(0))[:count])


def rate(excess: float, cells: int, alpha: float) -> float:
    """How often the test calls a null difference different, with many images and `excess` times their variance."""
    quantiles = (np.arange(4000) + 0.5) / 4000
    between = (1 + excess) * stats.chi2.ppf(quantiles, cells - 1) / (cells - 1)
    ones = np.ones_like(between)
    error, degrees = combined(ones, 1e9 * ones, between, ones, cells - 1)
    return float(np.mean(2 * stats.norm.sf(stats.t.ppf(1 - alpha / 2, degrees) * error / math.sqrt(1 + excess))))


@pytest.mark.parametrize("cells", [3, 4, 5, 10, 25])
@pytest.mark.parametrize("excess", [0.0, 0.3, 1.0, 3.0, 20.0])
def test_false_alarms_are_between_two_and_seven_in_a_hundred(cells: int, excess: float) -> None:
    assert (0.02 if cells >= 5 else 0.01) < rate(excess, cells, 0.05) < 0.07


def test_the_degrees_are_those_of_images_or_of_trainings_where_one_is_all_there_is() -> None:
    one = np.float64(1)
    assert combined(one, np.float64(50), np.float64(1e-9), one, 4)[1] == pytest.approx(50)
    assert combined(np.float64(1e-9), np.float64(50), one, np.float64(1e-9), 4)[1] == pytest.approx(4)


@pytest.mark.parametrize(("folds", "training"), [(5, 0.0), (10, 0.05)])
def test_the_detectable_difference_is_found_with_the_power_asked_for(folds: int, training: float) -> None:
    rng = np.random.default_rng(5)
    size = detectable(0.5, training, 120, folds)
    found = [compare_by_image(study(rng, folds=folds, training=training, mean=size)) for _ in range(400)]
    share = np.mean([one.p is not None and one.p < 0.05 for one in found])
    assert stats.binomtest(int(share * 400), 400, 0.8).pvalue > 1e-4


def test_what_is_detectable_grows_with_noise_and_certainty_and_shrinks_with_images() -> None:
    assert detectable(0.5, 0.0, 1000, 5) < detectable(0.5, 0.02, 1000, 5) < detectable(0.5, 0.02, 500, 5)
    assert detectable(0.5, 0.02, 1000, 10) < detectable(0.5, 0.02, 1000, 5) < detectable(0.5, 0.02, 1000, 5, 0.99)
    assert detectable(1.0, 0.04, 1000, 5) == pytest.approx(2 * detectable(0.5, 0.02, 1000, 5))
    assert detectable(0.0, 0.0, 1000, 5) == 0


def test_arms_share_what_they_know_of_the_excess_and_a_noisy_one_is_judged_as_itself() -> None:
    rng = np.random.default_rng(6)
    quiet, noisy = [study(rng, training=0.02) for _ in range(4)], study(rng, training=0.5)
    found = [moments(one) for one in (*quiet, noisy)]
    shared = shared_excess(found)
    assert shared is not None
    assert shared.degrees == pytest.approx(5 * 3 / 2)
    assert compare_by_image(noisy, shared=shared) == compare_by_image(noisy)
    for one, of in zip(quiet, found, strict=False):
        alone, among = compare_by_image(one), compare_by_image(one, shared=shared)
        assert among.standard_error >= alone.standard_error
        assert (among == alone) == (of.between >= shared.ratio * of.expected)
    assert shared_excess(found[:1]) is None
    nothing = moments(one_sided(0))
    assert shared_excess([nothing, found[0]]) is None
    pair = shared_excess(found[:2])
    assert pair is not None
    assert pair.ratio == pytest.approx(np.mean([one.between / one.expected for one in found[:2]]))
