import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as oracle

from convsmith.prediction.metrics import confusion_counts, confusion_matrix, scores


@st.composite
def outcomes(draw):
    """Labels and predictions, with classes absent or never predicted as a matter of course."""
    classes = draw(st.integers(2, 7))
    index = st.integers(0, classes - 1)
    pairs = draw(st.lists(st.tuples(index, index), min_size=1, max_size=30))
    labels, predictions = np.array(pairs).T
    return labels, predictions, classes


DEGENERATE = {
    "single sample, right": ([1], [1], 3),
    "single sample, wrong": ([1], [0], 3),
    "all wrong": ([0, 1, 2, 2], [1, 2, 0, 1], 3),
    "a class never predicted": ([0, 1, 2], [0, 1, 1], 3),
    "a class absent": ([0, 0, 1], [0, 2, 1], 3),
    "a class absent and never predicted": ([0, 1], [1, 1], 4),
    "one class predicted": ([0, 1, 2, 3], [2, 2, 2, 2], 4),
}


def agree_with_scikit_learn(labels, predictions, classes):
    labels, predictions, names = np.asarray(labels), np.asarray(predictions), np.arange(classes)
    confusion = confusion_matrix(labels, predictions, classes)
    np.testing.assert_array_equal(confusion, oracle.confusion_matrix(labels, predictions, labels=names))
    found = scores(confusion)
    assert found.accuracy == pytest.approx(oracle.accuracy_score(labels, predictions), abs=1e-12)
    for average in ("macro", "micro", "weighted", None):
        expected = oracle.precision_recall_fscore_support(
            labels, predictions, labels=names, average=average, zero_division=0
        )
        for score, value in zip((found.precision, found.recall, found.f1), expected, strict=False):
            np.testing.assert_allclose(getattr(score, average or "per_class"), value, atol=1e-12)
    np.testing.assert_array_equal(found.support, np.bincount(labels, minlength=classes))


@given(outcomes())
def test_scores_are_those_of_scikit_learn(case):
    agree_with_scikit_learn(*case)


@pytest.mark.parametrize("case", DEGENERATE.values(), ids=DEGENERATE)
def test_scores_are_those_of_scikit_learn_on_degenerate_inputs(case):
    agree_with_scikit_learn(*case)


def test_scores_are_those_of_torchmetrics():
    from torchmetrics.functional import classification as other

    generator = torch.Generator().manual_seed(0)
    labels, predictions = torch.randint(0, 5, (2, 200), generator=generator)
    found = scores(confusion_counts(labels, predictions, 5))
    for average in ("macro", "weighted"):
        for name, score in (("precision", found.precision), ("recall", found.recall), ("f1_score", found.f1)):
            expected = getattr(other, f"multiclass_{name}")(predictions, labels, num_classes=5, average=average)
            assert getattr(score, average) == pytest.approx(expected.item(), abs=1e-6)


@given(outcomes())
def test_counts_on_the_device_are_the_confusion_matrix(case):
    labels, predictions, classes = case
    counts = confusion_counts(torch.from_numpy(labels), torch.from_numpy(predictions), classes)
    assert counts.dtype == torch.int64
    np.testing.assert_array_equal(counts.numpy(), confusion_matrix(labels, predictions, classes))
    assert scores(counts).flat() == scores(counts.numpy()).flat()


def test_flat_scores_are_macro_averages():
    found = scores(np.array([[3, 1], [0, 4]]))
    assert found.flat() == {
        "accuracy": pytest.approx(7 / 8),
        "precision": pytest.approx((1 + 4 / 5) / 2),
        "recall": pytest.approx((3 / 4 + 1) / 2),
        "f1": pytest.approx((6 / 7 + 8 / 9) / 2),
    }


@pytest.mark.parametrize("bad", [-1, 3])
def test_an_index_out_of_range_is_no_other_cell(bad):
    with pytest.raises(AssertionError, match="out of range"):
        confusion_matrix([0, 1], [0, bad], 3)
