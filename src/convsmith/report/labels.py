"""Which labels are likely wrong, by confident learning on probabilities of a model that did not train on the images."""

from __future__ import annotations

import importlib.util
import warnings

import numpy as np
from numpy.typing import NDArray

from convsmith.errors import missing_extra
from convsmith.report.files import Predictions


def likely_label_errors(predictions: Predictions) -> NDArray[np.int64]:
    """Positions [M] of the images whose label is likely wrong, the likeliest first.

    Confident learning (Northcutt, Jiang and Chuang 2021, arXiv:1911.00068) as cleanlab does it: an image is doubted
    where another class's probability is above the mean that this class has on its own images. The probabilities must
    be held-out ones. UserError where cleanlab is not installed.
    """
    if importlib.util.find_spec("cleanlab") is None:
        raise missing_extra("cleanlab", "report")
    from cleanlab.filter import find_label_issues

    # The rows are float32 numbers and miss the sum of 1 by rounding, which cleanlab checks.
    chances = predictions.probabilities / predictions.probabilities.sum(axis=1, keepdims=True)
    with warnings.catch_warnings():
        # Of a class with a single image it cannot tell: nobody would expect otherwise.
        warnings.filterwarnings("ignore", message="May not flag all label issues")
        found = find_label_issues(predictions.labels, chances, return_indices_ranked_by="self_confidence", n_jobs=1)
    return np.asarray(found, dtype=np.int64)
