import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from convsmith.errors import UserError
from convsmith.studies.statistics import (
    bootstrap_interval,
    holm,
    mean_interval,
    paired_accuracies,
    paired_comparison,
    smallest_detectable,
    verdict,
)
from convsmith.studies.variance import Training, compare_by_image

ARM = [0.712, 0.698, 0.731, 0.705, 0.719, 0.690]
BASE = [0.701, 0.690, 0.709, 0.711, 0.700, 0.688]
SCORES = st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=2, max_size=30)
PS = st.lists(st.floats(0, 1), max_size=20)


def scores(pairs):
    return [a / 1000 for a, _ in pairs], [b / 1000 for _, b in pairs]


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "interval_coverage.py"
    spec = importlib.util.spec_from_file_location("interval_coverage", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    return module


# The paired test


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_without_shared_training_it_is_the_ordinary_paired_t_test(level):
    found = paired_comparison(ARM, BASE, 0.0, level=level)
    expected = stats.ttest_rel(ARM, BASE)
    interval = expected.confidence_interval(level)
    assert (found.t, found.p) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-12)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-12)
    assert (found.n, found.degrees) == (6, 5)


def test_the_correction_widens_the_interval_by_what_nadeau_and_bengio_say():
    ordinary, corrected = paired_comparison(ARM, BASE, 0.0), paired_comparison(ARM, BASE, 1 / 6)
    # Six folds: n_test / n_train = 1/5, so the variance of the mean is (1/6 + 1/5) s^2 instead of s^2 / 6.
    factor = math.sqrt((1 / 6 + 1 / 5) / (1 / 6))
    assert corrected.high - corrected.low == pytest.approx(factor * (ordinary.high - ordinary.low))
    assert corrected.t == pytest.approx(ordinary.t / factor)
    assert corrected.p == pytest.approx(2 * stats.t.sf(ordinary.t / factor, 5))
    assert corrected.mean_difference == ordinary.mean_difference


def test_an_example_worked_out_by_hand():
    # Differences 1, 2, 3 over three folds: mean 2, s 1, variance of the mean 1/3 + (1/3)/(2/3) = 5/6.
    found = paired_comparison([1, 3, 5], [0, 1, 2], 1 / 3)
    assert (found.mean_difference, found.std, found.effect_size) == pytest.approx((2, 1, 2))
    assert found.standard_error == pytest.approx(math.sqrt(5 / 6))
    assert found.t == pytest.approx(2.19089, abs=1e-5)
    assert found.p == pytest.approx(1 - found.t / math.sqrt(2 + found.t**2))  # Student's t of 2 degrees, closed form
    assert found.high == pytest.approx(2 + 4.302653 * math.sqrt(5 / 6), abs=1e-5)


@given(SCORES, st.sampled_from([0.0, 0.1, 0.2, 0.5]))
def test_exchanging_arm_and_base_mirrors_everything(pairs, share):
    arm, base = scores(pairs)
    one, other = paired_comparison(arm, base, share, 0.01), paired_comparison(base, arm, share, 0.01)
    assert (one.p, one.p_equivalent, one.standard_error) == (other.p, other.p_equivalent, other.standard_error)
    assert one.mean_difference == -other.mean_difference
    if one.p is not None:
        assert (one.low, one.high, one.t) == (-other.high, -other.low, -other.t)


@given(SCORES)
def test_the_interval_excludes_zero_exactly_where_p_is_below_its_level(pairs):
    found = paired_comparison(*scores(pairs), 0.2)
    assume(found.p is not None and abs(found.p - 0.05) > 1e-9)
    assert (found.p < 0.05) == (found.low > 0 or found.high < 0)


def test_no_difference_at_all_has_p_one_and_no_width():
    found = paired_comparison(BASE, BASE, 0.2, margin=0.01)
    assert (found.t, found.p, found.low, found.high, found.effect_size) == (0, 1, 0, 0, 0)
    assert found.equivalent
    assert verdict(found, 1.0, None) == "no difference shown"
    assert verdict(found, 1.0, 0.01) == "equivalent"


def test_the_same_difference_everywhere_cannot_be_tested():
    # In floats these differences vary in the 17th digit, which is no variance to measure a mean against.
    arm, base = [0.91, 0.92, 0.93, 0.94], [0.90, 0.91, 0.92, 0.93]
    assert np.ptp(np.subtract(arm, base)) > 0
    found = paired_comparison(arm, base, 0.25, margin=0.5)
    assert found.mean_difference == pytest.approx(0.01)
    assert found.std == 0
    assert {found.t, found.p, found.low, found.high, found.effect_size, found.equivalent, found.p_equivalent} == {None}
    assert verdict(found, None, 0.5) == "no difference shown"


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_folds_are_refused(count):
    with pytest.raises(UserError, match=f"at least 2 folds that both have finished, not {count}: resume"):
        paired_comparison(ARM[:count], BASE[:count], 0.2)
    with pytest.raises(UserError, match=f"at least 2 finished folds, not {count}: resume"):
        mean_interval(ARM[:count], 0.2)


# Equivalence


@pytest.mark.parametrize("margin", [0.002, 0.01, 0.02, 0.05])
def test_equivalence_is_that_of_two_one_sided_tests(margin):
    found = paired_comparison(ARM, BASE, 0.0, margin)
    above = stats.ttest_rel(ARM, np.subtract(BASE, margin), alternative="greater").pvalue
    below = stats.ttest_rel(ARM, np.add(BASE, margin), alternative="less").pvalue
    assert found.p_equivalent == pytest.approx(max(above, below), rel=1e-9)
    assert found.equivalent == (max(above, below) < 0.05)


@given(SCORES, st.floats(0.001, 0.5))
def test_equivalent_is_where_the_90_percent_interval_lies_within_the_margin(pairs, margin):
    arm, base = scores(pairs)
    found, narrow = paired_comparison(arm, base, 0.2, margin), paired_comparison(arm, base, 0.2, level=0.9)
    assume(found.p_equivalent is not None and abs(found.p_equivalent - 0.05) > 1e-9)
    assert found.equivalent == (-margin < narrow.low and narrow.high < margin)


def test_without_a_margin_nothing_is_equivalent():
    found = paired_comparison(ARM, BASE, 0.2)
    assert found.equivalent is None
    assert found.p_equivalent is None
    assert verdict(found, 0.9, None) == "no difference shown"


# The verdict


UP = [0.030, 0.031, 0.029, 0.030, 0.032]


@pytest.mark.parametrize(
    ("differences", "p_holm", "margin", "higher", "expected"),
    [
        (UP, 0.001, None, True, "helps"),
        (UP, 0.001, None, False, "hurts"),
        (np.negative(UP), 0.001, None, True, "hurts"),
        (np.negative(UP), 0.001, None, False, "helps"),
        (UP, 0.001, 0.005, True, "helps"),
        (UP, 0.05, None, True, "no difference shown"),
        (UP, None, None, True, "no difference shown"),
        # Surely there, and surely smaller than what the user calls a difference: the margin decides.
        (UP, 0.001, 0.05, True, "equivalent"),
        (np.negative(UP), 0.001, 0.05, True, "equivalent"),
        ([0.1, -0.1, 0.05, -0.07], 0.9, 0.01, True, "no difference shown"),
    ],
)
def test_verdicts(differences, p_holm, margin, higher, expected):
    zeros = [0.0] * len(differences)
    assert verdict(paired_comparison(list(differences), zeros, 0.2, margin), p_holm, margin, higher) == expected


def test_what_was_not_tested_is_not_called_equivalent():
    """Looks at a study may leave an arm without a test (p_equivalent None), however near to zero its mean is."""
    found = replace(paired_comparison(UP, np.zeros(5), 0.2, 0.05), p=None, p_equivalent=None, equivalent=None)
    assert verdict(found, None, 0.05) == "no difference shown"


def test_folds_that_tie_by_chance_are_not_called_equivalent():
    tied = paired_comparison([0.5, 0.6, 0.7], [0.5, 0.6, 0.7], 1 / 3, 0.01)
    assert verdict(tied, 1.0, 0.01) == "equivalent"
    assert verdict(tied, 1.0, 0.01, images=[0.0, 0.0]) == "equivalent"  # the same prediction of every image
    assert verdict(tied, 1.0, 0.01, images=[-0.009, 0.008]) == "equivalent"
    assert verdict(tied, 1.0, 0.01, images=[-0.04, 0.05]) == "no difference shown"


# Holm


def test_holm_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 is 0.02, 0.03, 0.06, 0.04: the last is raised to 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == pytest.approx([1, 1])
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_holm_counts_a_test_that_could_not_be_made():
    assert holm([0.01, None, 0.04]) == [pytest.approx(0.03), None, pytest.approx(0.08)]


@given(PS)
def test_holm_lies_between_p_and_bonferroni_and_keeps_the_order(ps):
    adjusted = holm(ps)
    assert len(adjusted) == len(ps)
    assert all(p <= q <= min(1, len(ps) * p) for p, q in zip(ps, adjusted, strict=True))
    order = np.argsort(ps, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()


@given(PS, st.randoms(use_true_random=False))
def test_holm_does_not_depend_on_the_order_of_arms(ps, random):
    places = list(range(len(ps)))
    random.shuffle(places)
    whole = holm(ps)
    assert holm([ps[place] for place in places]) == [whole[place] for place in places]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=10), st.floats(0.001, 0.5))
def test_holm_rejects_what_the_step_down_procedure_rejects(ps, alpha):
    rejected = set()
    for step, place in enumerate(np.argsort(ps, kind="stable")):
        if (len(ps) - step) * ps[place] >= alpha:
            break
        rejected.add(int(place))
    assert {place for place, q in enumerate(holm(ps)) if q < alpha} == rejected


# Intervals


def test_the_interval_of_a_mean_is_scipys_where_nothing_is_shared():
    mean, std, low, high = mean_interval(ARM, 0.0)
    expected = stats.ttest_1samp(ARM, 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high))
    assert (mean, std) == pytest.approx((np.mean(ARM), stats.tstd(ARM)))


def test_five_folds_widen_the_interval_of_a_mean_by_one_and_a_half():
    values = ARM[:5]
    _, _, low, high = mean_interval(values, 0.0)
    _, _, wide_low, wide_high = mean_interval(values, 1 / 5)
    # (1/5 + 1/4) / (1/5) = 9/4
    assert wide_high - wide_low == pytest.approx(1.5 * (high - low))


@pytest.mark.parametrize("values", [[1, 0, -1], [1, 0], [0.5, 0, 0, -1, 1]])
def test_the_bootstrap_is_scipys(values):
    rng = np.random.default_rng(0)
    differences = rng.choice(values, size=400)
    found = bootstrap_interval(differences, rng, draws=20_000)
    kept = {"n_resamples": 5000, "method": "percentile", "rng": np.random.default_rng(1), "batch": 500}
    expected = stats.bootstrap((differences,), np.mean, **kept).confidence_interval
    assert found == pytest.approx((expected.low, expected.high), abs=0.1 * differences.std() / math.sqrt(400))


def test_the_bootstrap_repeats_itself_by_its_generator():
    differences = np.random.default_rng(0).integers(-1, 2, 100)
    one, other = (bootstrap_interval(differences, np.random.default_rng(7)) for _ in range(2))
    assert one == other
    assert one[0] <= differences.mean() <= one[1]


def test_the_bootstrap_of_equal_differences_has_no_width():
    assert bootstrap_interval([0, 0, 0], np.random.default_rng(0)) == (0, 0)


# Before a study


@pytest.mark.parametrize(("n", "share"), [(3, 1 / 3), (5, 0.2), (10, 0.1), (20, 0.1), (50, 0.0)])
@pytest.mark.parametrize("power", [0.5, 0.8, 0.95])
def test_the_detectable_difference_has_its_power_by_the_noncentral_t(n, share, power):
    difference = smallest_detectable(0.013, n, share, power=power)
    noncentrality = difference / (0.013 * math.sqrt(1 / n + share / (1 - share)))
    critical = stats.t.ppf(0.975, n - 1)
    found = stats.nct.sf(critical, n - 1, noncentrality) + stats.nct.cdf(-critical, n - 1, noncentrality)
    assert found == pytest.approx(power, abs=1e-4)


def test_two_folds_detect_what_the_closed_form_says():
    # One degree: |mean| > critical |s|, with a mean far beyond its own spread, is |Z| < noncentrality / critical.
    critical = stats.t.ppf(0.975, 1)
    expected = critical * stats.norm.ppf(0.9) * math.sqrt(1 / 2 + 1)
    assert smallest_detectable(1, 2, 0.5) == pytest.approx(expected, rel=0.2)
    # Narrower and narrower levels push the mean ever further from 0, and the approximation becomes exact.
    critical = stats.t.ppf(0.99995, 1)
    expected = critical * stats.norm.ppf(0.9) * math.sqrt(1 / 2 + 1)
    assert smallest_detectable(1, 2, 0.5, level=0.9999) == pytest.approx(expected, rel=1e-3)


def test_more_folds_and_less_noise_detect_less():
    assert smallest_detectable(0.01, 10, 0.1) < smallest_detectable(0.01, 5, 0.1) < smallest_detectable(0.02, 5, 0.1)
    assert smallest_detectable(0.02, 5, 0.1) == pytest.approx(2 * smallest_detectable(0.01, 5, 0.1))
    assert smallest_detectable(0.01, 5, 0.1) < smallest_detectable(0.01, 5, 0.1, level=0.99)


# The simulation of benchmarks/interval_coverage.py, small. Shares are judged by binomial probabilities of 1 in 10,000.


def too_few(share, of, promised):
    return stats.binom.cdf(round(share * of), of, promised) < 1e-4


def too_many(share, of, promised):
    return stats.binom.sf(round(share * of) - 1, of, promised) < 1e-4


@pytest.fixture(scope="module")
def cases(benchmark):
    return benchmark.model_cases(800, np.random.default_rng(0))


@pytest.mark.parametrize("folds", [5, 10])
def test_the_model_of_the_correction_is_met_exactly(cases, folds):
    null, detectable, at_margin = (
        cases[f"model, {folds} folds, {name}"] for name in ("null", "detectable", "at margin")
    )
    for found, promised in [
        (null["different"], 0.05),
        (null["coverage"], 0.95),
        (detectable["different"], 0.8),
        (at_margin["equivalent"], 0.05),
    ]:
        assert not too_few(found, 800, promised)
        assert not too_many(found, 800, promised)
    assert null["correlation"] == pytest.approx(1 / folds, abs=0.05)
    assert too_many(null["ordinary_different"], 800, 0.05), "without the correction there are more false alarms"


@pytest.mark.parametrize(("repeats", "seeds", "metric"), [(1, 1, "accuracy"), (2, 2, "accuracy"), (1, 1, "F1")])
def test_the_tests_of_the_simulation_are_those_of_the_package(benchmark, repeats, seeds, metric):
    rng = np.random.default_rng(1)
    features, classes = benchmark.draw_images(3, 103, rng, 0.3)
    cells = np.stack([benchmark.stratified(classes, 4, rng) for _ in range(repeats)])
    values = []  # [studies, seeds, images] of each repeat
    for row in cells:
        guesses = [benchmark.predicted(features, classes, row, seeds, 0.5, rng) for _ in range(2)]
        ours, theirs = (benchmark.METRICS[metric](one, classes, row) for one in guesses)
        values.append(ours - theirs)
    tests = benchmark.seen(np.stack([one.mean(axis=1) for one in values], axis=1), cells).tests()
    for at in range(3):
        trainings = [
            Training(repeat, fold, seed, held, values[repeat][at, seed, held])
            for repeat, row in enumerate(cells)
            for fold in range(4)
            for held in [np.flatnonzero(row == fold)]
            for seed in range(seeds)
        ]
        by_image = compare_by_image(trainings)
        means = [
            np.mean([one.values.mean() for one in trainings if (one.repeat, one.fold) == key])
            for key in dict.fromkeys((one.repeat, one.fold) for one in trainings)
        ]
        over_folds = paired_comparison(means, np.zeros(len(means)), 1 / 4)
        for name, expected in [("by image", by_image), ("over folds", over_folds)]:
            mean, error, degrees = (column[at] for column in tests[name])
            assert (mean, error, degrees) == pytest.approx(
                (expected.mean_difference, expected.standard_error, expected.degrees)
            )


def test_the_tables_of_the_page_are_those_of_the_result(benchmark):
    text = benchmark.PAGE.read_text(encoding="utf-8")
    assert text == benchmark.page_of(text, json.loads(benchmark.RESULT.read_text(encoding="utf-8")))


def test_the_learner_of_the_simulation_is_scikit_learns(benchmark):
    from sklearn.linear_model import RidgeClassifier
    from sklearn.model_selection import PredefinedSplit, cross_val_predict

    rng = np.random.default_rng(0)
    images, classes = benchmark.draw_images(2, 103, rng)
    cells = benchmark.stratified(classes, 5, rng)
    found = benchmark.predicted(images, classes, cells)[:, 0]
    for features, guesses in zip(images, found, strict=True):
        learner = RidgeClassifier(alpha=benchmark.RIDGE)
        np.testing.assert_array_equal(guesses, cross_val_predict(learner, features, classes, cv=PredefinedSplit(cells)))


def test_the_expected_accuracy_of_the_simulation_is_that_of_many_images(benchmark):
    rng = np.random.default_rng(0)
    expected = benchmark.expected_accuracy(0, 5, 500, rng)
    train, classes = benchmark.draw_images(500, 240, rng)
    weights, bias = benchmark.ridge(train, np.broadcast_to(classes, train.shape[:2]))
    test, truth = benchmark.draw_images(500, 400, rng)
    right = np.sign(np.einsum("rnp,rp->rn", test, weights) + bias[:, None]) == truth
    assert expected == pytest.approx(right.mean(), abs=4 * right.std() / math.sqrt(right.size))


COUNTS = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 2000))


@given(COUNTS, st.sampled_from([0.95, 0.9, 0.95 + 0.05 / 2]))
def test_the_interval_of_paired_accuracies_excludes_zero_where_the_test_rejects_and_only_there(counts, level):
    only_first, only_second, both = counts
    n = max(1, only_first + only_second + both)
    found = paired_accuracies(only_first, only_second, n, level)
    assert (found.low > 0 or found.high < 0) == (found.p < 1 - level)
    assert -1 <= found.low <= found.difference <= found.high <= 1
    discordant = only_first + only_second
    assert found.p == (stats.binomtest(only_first, discordant).pvalue if discordant else 1.0)


@pytest.mark.parametrize(("only_first", "only_second", "n"), [(0, 3, 18), (0, 0, 18), (2, 9, 18), (30, 60, 2000)])
def test_the_melded_interval_is_that_of_a_million_draws(only_first, only_second, n):
    rng, m = np.random.default_rng(0), only_first + only_second

    def low(wins):
        theta = rng.beta(wins, m - wins + 1, 10**6) if wins else np.zeros(10**6)
        small = rng.beta(m, n - m + 1, 10**6) if m else np.zeros(10**6)
        large = rng.beta(m + 1, n - m, 10**6)
        return np.quantile(np.where(theta > 0.5, small, large) * (2 * theta - 1), 0.025)

    found = paired_accuracies(only_first, only_second, n)
    assert found.low == pytest.approx(low(only_second), abs=0.002)
    assert found.high == pytest.approx(-low(only_first), abs=0.002)


@pytest.mark.parametrize(("shares", "n"), [((0.05, 0.25), 18), ((0.02, 0.02), 50), ((0.1, 0.2), 200)])
def test_the_interval_of_paired_accuracies_covers_the_true_difference(shares, n):
    """As exact intervals do: at least as often as they say."""
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(n, [*shares, 1 - sum(shares)], size=300)
    truth = shares[1] - shares[0]
    covered = [found.low <= truth <= found.high for b, c, _ in drawn.tolist() for found in [paired_accuracies(b, c, n)]]
    assert np.mean(covered) >= 0.93  # 300 draws of 0.95 vary by 0.0126
