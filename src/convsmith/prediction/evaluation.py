"""What a model did on one split: the record of evaluation-<split>.json and the rows of predictions-<split>.csv.

Both are derived from the same labels and logits, and agree exactly: each number of the record but the loss can
be recomputed from the rows (read the probabilities as float32).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convsmith.prediction.metrics import COMPUTE, Averages, Outcomes, probabilities
from convsmith.records import METRICS


def evaluation(labels: NDArray[np.int64], logits: NDArray[Any], classes: Sequence[str]) -> dict[str, Any]:
    """The record of a split as JSON: `labels` int64 [N], `logits` float [N, K], `classes` K names.

    It has each of `METRICS` by its name, those with `averages` as an object and in `per_class` too.
    """
    assert logits.shape[1] == len(classes), f"{logits.shape[1]} logits, {len(classes)} classes"
    outcomes = Outcomes(labels, logits)
    values = {name: COMPUTE[name](outcomes) for name in METRICS}
    averages = {name: value for name, value in values.items() if isinstance(value, Averages)}
    return {
        "n": len(labels),
        **{name: value.to_dict() if isinstance(value, Averages) else value for name, value in values.items()},
        "per_class": {
            name: {
                **{metric: float(value.per_class[index]) for metric, value in averages.items()},
                "support": int(outcomes.support[index]),
            }
            for index, name in enumerate(classes)
        },
        "confusion_matrix": {
            "rows": "true class",
            "columns": "predicted class",
            "labels": list(classes),
            "counts": outcomes.confusion.tolist(),
        },
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
