import csv
import io
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import accuracy_score, log_loss

from convsmith.errors import RunFailed
from convsmith.prediction.calibration import expected_calibration_error
from convsmith.prediction.evaluation import evaluation, prediction_rows
from convsmith.prediction.metrics import probabilities
from convsmith.records import METRICS

CLASSES = ["ant", "bee, wild", "Wüste"]


@pytest.fixture
def split():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    logits = rng.normal(size=(200, 3)).astype(np.float32) * 4
    logits[np.arange(200), labels] += 2
    return [f"img/{i}.png" for i in range(200)], labels, logits


def through_csv(rows):
    """The rows as they are after being written and read: all text."""
    rows = list(rows)
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    file.seek(0)
    return list(csv.DictReader(file))


def test_record_and_rows_agree_exactly(split):
    ids, labels, logits = split
    record = json.loads(json.dumps(evaluation(labels, logits, CLASSES)))
    rows = through_csv(prediction_rows(ids, logits, CLASSES, labels))
    assert [row["id"] for row in rows] == ids
    truth, predicted = [row["label"] for row in rows], [row["predicted"] for row in rows]
    assert record["n"] == len(rows)
    assert record["accuracy"] == accuracy_score(truth, predicted)
    counts = np.zeros((3, 3), dtype=int)
    for true, guess in zip(truth, predicted, strict=True):
        counts[CLASSES.index(true), CLASSES.index(guess)] += 1
    assert record["confusion_matrix"]["counts"] == counts.tolist()
    confidences = np.array([row["confidence"] for row in rows], dtype=np.float32)
    assert record["ece"] == expected_calibration_error(confidences, np.array(truth) == np.array(predicted))


def test_probabilities_in_rows_lead_to_what_is_predicted(split):
    ids, labels, logits = split
    for row in through_csv(prediction_rows(ids, logits, CLASSES, labels)):
        chances = {name: float(row[f"p_{name}"]) for name in CLASSES}
        assert row["predicted"] == max(chances, key=chances.get)
        assert float(row["confidence"]) == max(chances.values())
        assert sum(chances.values()) == pytest.approx(1, abs=1e-6)


def test_record_has_the_documented_shape(split):
    _, labels, logits = split
    record = evaluation(labels, logits, CLASSES)
    assert set(record) == {"n", *METRICS, "per_class", "confusion_matrix", "classes"}
    assert set(METRICS) >= {"accuracy", "loss", "precision", "recall", "f1", "ece"}
    for score in ("precision", "recall", "f1"):
        assert list(record[score]) == ["macro", "micro", "weighted"]
    assert list(record["per_class"]) == record["classes"] == record["confusion_matrix"]["labels"] == CLASSES
    assert list(record["per_class"]["ant"]) == ["precision", "recall", "f1", "support"]
    assert record["confusion_matrix"]["rows"] == "true class"
    assert record["confusion_matrix"]["columns"] == "predicted class"


def test_loss_is_the_cross_entropy(split):
    _, labels, logits = split
    loss = evaluation(labels, logits, CLASSES)["loss"]
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels))
    assert loss == pytest.approx(expected.item(), rel=1e-14)
    assert loss == pytest.approx(log_loss(labels, probabilities(logits), labels=range(3)), rel=1e-5)


def test_loss_of_a_sure_and_right_answer_is_zero_and_not_minus_zero():
    assert str(evaluation(np.array([1]), np.array([[0, 1000]], np.float32), ["a", "b"])["loss"]) == "0.0"


def test_loss_of_a_hopeless_sample_is_finite():
    logits = np.array([[300.0, -300.0]], dtype=np.float32)
    assert evaluation(np.array([1]), logits, ["a", "b"])["loss"] == 600


@given(arrays(np.float32, (4, 3), elements=st.floats(-1e4, 1e4, width=32)))
def test_probabilities_keep_the_argmax_of_the_logits(logits):
    chances = probabilities(logits)
    assert chances.dtype == np.float32
    np.testing.assert_array_equal(chances.argmax(axis=1), logits.argmax(axis=1))
    np.testing.assert_allclose(chances, torch.from_numpy(logits).double().softmax(1).numpy(), atol=2e-7)


def test_logits_that_differ_by_less_than_float32_probabilities_can_show():
    logits = np.array([[0, 1e-12, 0]], dtype=np.float32)
    (row,) = prediction_rows(["x"], logits, CLASSES)
    assert row["predicted"] == "bee, wild"
    assert row["p_bee, wild"] > row["p_ant"]
    assert "label" not in row


def test_equal_logits_go_to_the_lowest_index():
    (row,) = prediction_rows(["x"], np.array([[1, 2, 2]], dtype=np.float32), CLASSES)
    assert row["predicted"] == "bee, wild"
    assert row["p_bee, wild"] == row["p_Wüste"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite_are_refused(bad):
    with pytest.raises(RunFailed, match="not finite"):
        evaluation(np.array([0]), np.array([[0, bad, 1]], dtype=np.float32), CLASSES)
