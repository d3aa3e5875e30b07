"""A report in a few sentences: what a reader should know before looking at any figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from convsmith.prediction.metrics import confusion_matrix
from convsmith.report.diagnosis import NO_FAULT, TOO_SHORT, standard_error
from convsmith.report.files import Predictions
from convsmith.report.page import percent

SURE = 2  # standard errors of the accuracy that the mean confidence must differ by to count


def glance(predictions: Predictions, values: Mapping[str, Any], findings: Sequence[str]) -> list[tuple[str, str, str]]:
    """(the section's id, a word for it, a sentence) each, from the sections in `values` and the names of `findings`."""
    labels, classes = predictions.labels, predictions.classes
    most = np.bincount(labels, minlength=len(classes))
    guess = f"always naming '{classes[most.argmax()]}' would be right on {percent(most.max() / len(labels))}"
    found = [("result", "Result", f"right on {percent(float(predictions.right.mean()))} of the images; {guess}")]
    if findings:
        found.append(("diagnosis", "Training", _training(findings)))
    there = [one for one in values["classes"] if one["support"]]
    low, high = there[0], there[-1]
    if low["f1"] < high["f1"]:
        words = (
            f"hardest is '{low['name']}' (F1 {percent(low['f1'])}), easiest '{high['name']}' ({percent(high['f1'])})"
        )
        found.append(("classes", "Classes", words))
    found.append(("confusion", "Mistakes", _mistakes(predictions)))
    if values["calibration"]:
        found.append(("calibration", "Confidence", _confidence(predictions)))
    if not values["doubtful"]["reason"]:
        found.append(("labels", "Labels", _labels(values["doubtful"])))
    return found


def _training(findings: Sequence[str]) -> str:
    if findings[0] == NO_FAULT:
        return "no fault found in the curves"
    return "too short for a diagnosis" if findings[0] == TOO_SHORT else ", ".join(findings)


def _mistakes(predictions: Predictions) -> str:
    """The cell off the diagonal with the most images."""
    classes = predictions.classes
    counts = confusion_matrix(predictions.labels, predictions.predicted, len(classes))
    of = counts.sum(axis=1)
    np.fill_diagonal(counts, 0)
    if not counts.any():
        return "none: every image is classified rightly"
    true, guessed = np.unravel_index(counts.argmax(), counts.shape)
    most = counts[true, guessed]
    if most == 1:
        return f"{counts.sum():,}, no two of the same kind"
    return (
        f"{counts.sum():,}; most often '{classes[true]}' is taken for '{classes[guessed]}' ({most:,} of {of[true]:,})"
    )


def _labels(doubtful: Mapping[str, Any]) -> str:
    count, of = doubtful["count"], doubtful["of"]
    if not count:
        return "none is doubted"
    if doubtful["many"]:
        return f"{count:,} of {of:,} are doubted, which says more about the model than about them"
    return f"{count:,} of {of:,} may be wrong"


def _confidence(predictions: Predictions) -> str:
    sure, right = float(predictions.probabilities.max(axis=1).mean()), float(predictions.right.mean())
    if abs(sure - right) < SURE * standard_error(right, len(predictions.labels)):
        verdict = "about right on the whole"
    else:
        verdict = "too sure" if sure > right else "not sure enough"
    return f"{verdict}: {percent(sure)} sure on average, and {percent(right)} right"
