"""What a model did on one split: the record of evaluation-<split>.json and the rows of predictions-<split>.csv.

Both are derived from the same labels and logits, and agree exactly: each number of the record but the loss can
be recomputed from the rows (read the probabilities as float32).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convsmith.errors import RunFailed
from convsmith.prediction.calibration import expected_calibration_error, log_softmax
from convsmith.prediction.metrics import confusion_matrix, scores


def probabilities(logits: NDArray[Any]) -> NDArray[np.float32]:
    """Softmax of `logits` [N, K], computed in float64, as float32 [N, K]; each row's argmax is that of its logits.

    Raises `RunFailed` where a logit is not a finite number.
    """
    if not np.isfinite(logits).all():
        raise RunFailed(
            "the model's outputs are not finite numbers (its training diverged, or its weights are damaged)"
        )
    result = np.exp(log_softmax(logits)).astype(np.float32)
    # Rounding to float32 can make the largest two equal, and the lower index win: lift the true winner by one ulp.
    winner = np.argmax(logits, axis=1)
    tied = np.flatnonzero(result.argmax(axis=1) != winner)
    result[tied, winner[tied]] = np.nextafter(result[tied].max(axis=1), np.float32(1))
    return result


def evaluation(labels: NDArray[np.int64], logits: NDArray[Any], classes: Sequence[str]) -> dict[str, Any]:
    """The record of a split as JSON: `labels` int64 [N], `logits` float [N, K], `classes` K names.

    The loss is the mean cross-entropy in nats, in float64, without smoothing, class weights or penalties.
    """
    assert len(labels) == len(logits) > 0, f"{len(labels)} labels, {len(logits)} logits"
    assert logits.shape[1] == len(classes), f"{logits.shape[1]} logits, {len(classes)} classes"
    chances = probabilities(logits)
    predicted = chances.argmax(axis=1)
    confusion = confusion_matrix(labels, predicted, len(classes))
    result = scores(confusion)
    return {
        "n": len(labels),
        "accuracy": result.accuracy,
        "loss": float(-log_softmax(logits)[np.arange(len(labels)), labels].mean()),
        "precision": result.precision.to_dict(),
        "recall": result.recall.to_dict(),
        "f1": result.f1.to_dict(),
        "per_class": {
            name: {
                "precision": float(result.precision.per_class[index]),
                "recall": float(result.recall.per_class[index]),
                "f1": float(result.f1.per_class[index]),
                "support": int(result.support[index]),
            }
            for index, name in enumerate(classes)
        },
        "confusion_matrix": {
            "rows": "true class",
            "columns": "predicted class",
            "labels": list(classes),
            "counts": confusion.tolist(),
        },
        "ece": expected_calibration_error(chances.max(axis=1), predicted == labels),
        "classes": list(classes),
    }


def prediction_rows(
    ids: Sequence[str], logits: NDArray[Any], classes: Sequence[str], labels: NDArray[np.int64] | None = None
) -> Iterator[dict[str, Any]]:
    """A row a sample: id, label (where `labels` are known), predicted, confidence, p_<class>...; classes by name.

    A probability is the shortest decimal that reads back as its float32: it keeps the order, hence the argmax.
    Where two logits are equal the class of the lower index is predicted.
    """
    assert len(ids) == len(logits), f"{len(ids)} ids, {len(logits)} logits"
    for index, (name, row) in enumerate(zip(ids, probabilities(logits), strict=True)):
        chances = [float(str(chance)) for chance in row]
        winner = int(row.argmax())
        yield {
            "id": name,
            **({} if labels is None else {"label": classes[labels[index]]}),
            "predicted": classes[winner],
            "confidence": chances[winner],
            **{f"p_{label}": chance for label, chance in zip(classes, chances, strict=True)},
        }
