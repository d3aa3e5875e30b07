import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn import metrics as oracle

from convsmith.errors import RunFailed
from convsmith.prediction.metrics import COMPUTE, Averages, Outcomes, confusion_matrix, wilson_interval
from convsmith.records import METRICS


@st.composite
def outcomes(draw):
    """Labels and logits without ties; classes absent or never predicted as a matter of course."""
    classes, count = draw(st.integers(2, 9)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = rng.integers(0, draw(st.integers(1, classes)), count)
    logits = rng.normal(size=(count, classes)) * draw(st.sampled_from([0.1, 1.0, 5.0]))
    logits[np.arange(count), labels] += draw(st.sampled_from([-3.0, 0.0, 3.0]))
    return Outcomes(labels, logits.astype(np.float32))


def predicting(labels, predictions, classes):
    """Outcomes whose logits lead to these predictions."""
    return Outcomes(np.asarray(labels), 9 * np.eye(classes, dtype=np.float32)[np.asarray(predictions)])


DEGENERATE = {
    "single sample, right": ([1], [1], 3),
    "single sample, wrong": ([1], [0], 3),
    "all wrong": ([0, 1, 2, 2], [1, 2, 0, 1], 3),
    "a class never predicted": ([0, 1, 2], [0, 1, 1], 3),
    "a class absent": ([0, 0, 1], [0, 2, 1], 3),
    "a class absent and never predicted": ([0, 1], [1, 1], 4),
    "one class predicted": ([0, 1, 2, 3], [2, 2, 2, 2], 4),
    "one class alone": ([2, 2, 2], [2, 2, 2], 4),
    "more classes than images": ([0, 5, 7, 6], [0, 0, 7, 1], 8),
}


def averaged(score):
    """scikit-learn's `score` in the averages of an evaluation, and by class."""

    def averages(found):
        names = np.arange(found.classes)
        return [
            score(found.labels, found.predicted, labels=names, average=average, zero_division=0)
            for average in ("macro", "micro", "weighted", None)
        ]

    return averages


def quiet(score, *arguments):
    """scikit-learn warns of classes that are predicted and have no images, of which each metric here states its way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return score(*arguments)


def mean_of_defined(areas):
    areas = list(areas)
    return np.mean(areas) if areas else 0.5


#: What scikit-learn says of the same labels and probabilities, for each metric that it has.
ORACLES = {
    "accuracy": lambda found: oracle.accuracy_score(found.labels, found.predicted),
    "precision": averaged(oracle.precision_score),
    "recall": averaged(oracle.recall_score),
    "f1": averaged(oracle.f1_score),
    "loss": lambda found: oracle.log_loss(
        found.labels, softmax(found.logits.astype(np.float64), axis=1), labels=np.arange(found.classes)
    ),
    # Backwards, since of equal scores scikit-learn puts the class of the higher index first.
    "top5_accuracy": lambda found: (
        oracle.top_k_accuracy_score(
            found.classes - 1 - found.labels, found.probabilities[:, ::-1], k=5, labels=np.arange(found.classes)
        )
        if found.classes > 5
        else 1.0
    ),
    "balanced_accuracy": lambda found: quiet(oracle.balanced_accuracy_score, found.labels, found.predicted),
    "auroc": lambda found: mean_of_defined(
        oracle.roc_auc_score(found.labels == index, found.probabilities[:, index])
        for index in range(found.classes)
        if 0 < np.count_nonzero(found.labels == index) < len(found.labels)
    ),
    "mcc": lambda found: quiet(oracle.matthews_corrcoef, found.labels, found.predicted),
}


def agree(found, name):
    value = COMPUTE[name](found)
    expected = ORACLES[name](found)
    if isinstance(value, Averages):
        *averages, per_class = expected
        np.testing.assert_allclose([value.macro, value.micro, value.weighted], averages, atol=1e-12)
        np.testing.assert_allclose(value.per_class, per_class, atol=1e-12)
    else:
        assert value == pytest.approx(expected, abs=1e-9)


def test_each_metric_is_computed_by_the_function_of_its_name_and_has_an_oracle():
    assert set(COMPUTE) == set(METRICS) == {*ORACLES, "ece"}  # the ECE's oracle is in test_calibration


@pytest.mark.parametrize("name", ORACLES)
@given(found=outcomes())
def test_metrics_are_those_of_scikit_learn(found, name):
    agree(found, name)


@pytest.mark.parametrize("case", DEGENERATE.values(), ids=DEGENERATE)
@pytest.mark.parametrize("name", ORACLES)
def test_metrics_are_those_of_scikit_learn_on_degenerate_inputs(case, name):
    agree(predicting(*case), name)


@given(outcomes())
def test_values_lie_within_their_bounds_and_averages_are_where_the_table_says(found):
    for name, metric in METRICS.items():
        value = COMPUTE[name](found)
        assert isinstance(value, Averages) == metric.averages
        number = value.macro if isinstance(value, Averages) else value
        assert number == metric.within(number)


@given(outcomes())
def test_confusion_matrix_is_that_of_scikit_learn(found):
    expected = oracle.confusion_matrix(found.labels, found.predicted, labels=np.arange(found.classes))
    np.testing.assert_array_equal(found.confusion, expected)
    np.testing.assert_array_equal(found.support, np.bincount(found.labels, minlength=found.classes))


@given(outcomes())
def test_macro_auroc_is_that_of_scikit_learn_where_all_classes_have_images(found):
    if found.support.all() and found.classes > 2:
        with np.errstate(all="ignore"):
            wide = softmax(found.logits.astype(np.float64), axis=1)  # its rows must sum to 1 more exactly than float32
        expected = oracle.roc_auc_score(found.labels, wide, multi_class="ovr", average="macro")
        assert COMPUTE["auroc"](found) == pytest.approx(expected, abs=1e-6)


def test_averages_are_those_of_torchmetrics():
    from torchmetrics.functional import classification as other

    generator = torch.Generator().manual_seed(0)
    labels, predictions = torch.randint(0, 5, (2, 200), generator=generator)
    found = predicting(labels.numpy(), predictions.numpy(), 5)
    for average in ("macro", "weighted"):
        for name in ("precision", "recall", "f1"):
            function = getattr(other, f"multiclass_{name.replace('f1', 'f1_score')}")
            expected = function(predictions, labels, num_classes=5, average=average)
            assert getattr(COMPUTE[name](found), average) == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("bad", [-1, 3])
def test_an_index_out_of_range_is_no_other_cell(bad):
    with pytest.raises(AssertionError, match="out of range"):
        confusion_matrix([0, 1], [0, bad], 3)


def test_logits_that_are_not_finite_are_refused():
    with pytest.raises(RunFailed, match="not finite"):
        COMPUTE["loss"](Outcomes(np.array([0]), np.array([[0, np.nan]])))


@given(st.integers(1, 500).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_the_interval_holds_what_a_score_test_does_not_reject(case):
    """Wilson's interval is the score test turned round (Wilson 1927): at its ends |p - q| = z sqrt(q (1 - q) / n)."""
    correct, count = case
    low, high = wilson_interval(correct, count)
    for end, extreme in ((low, correct == 0), (high, correct == count)):
        distance = abs(correct / count - end)
        if extreme:
            assert distance == pytest.approx(0, abs=1e-12)
        else:
            assert distance == pytest.approx(1.959963984540054 * (end * (1 - end) / count) ** 0.5, abs=1e-9)
