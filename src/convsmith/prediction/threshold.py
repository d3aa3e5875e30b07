"""When a model answers "unsure": a bound for the calibrated confidence. Decodes and writes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convsmith.errors import UserError
from convsmith.prediction.calibration import fit_temperature, log_softmax
from convsmith.prediction.evaluation import read_predictions
from convsmith.prediction.output import CALIBRATED, Row
from convsmith.rundir import RunDir

UNSURE = "unsure"


@dataclass(frozen=True)
class Threshold:
    """Below the confidence `least`, at this temperature, the answer is UNSURE; a `note` says what is not calibrated."""

    least: float
    temperature: float = 1.0
    note: str | None = None

    def confidences(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """The calibrated confidences, float32 [N], of `logits` [N, K]."""
        highest: NDArray[np.float32] = np.exp(log_softmax(logits / self.temperature).max(axis=1)).astype(np.float32)
        return highest

    def judged(self, rows: Iterable[Row], logits: NDArray[np.float32]) -> Iterator[Row]:
        """Rows of predictions, of `logits` [N, K], with their calibrated confidence, UNSURE where it is too low."""
        for row, value in zip(rows, self.confidences(logits), strict=True):
            confidence = float(str(value))  # as the other probabilities of a row
            answer = row["predicted"] if confidence >= self.least else UNSURE
            yield row | {"predicted": answer, CALIBRATED: confidence}


def threshold_of(least: float, classes: Sequence[str], folder: Path | None) -> Threshold:
    """The threshold `least` for a model whose files are in `folder`; None stands for a model in no folder.

    The temperature is fitted to the validation split: predictions-val.csv, which `train` writes beside model/. Where it
    is missing, as beside a copy of model/ or an exported file, confidences count as the model gives them, which the
    note says. Raises UserError for a bound outside 0 to 1, and for a model with a class of the name UNSURE.
    """
    if not 0 < least < 1:
        raise UserError(f"--threshold must lie between 0 and 1, but got {least:g}")
    if UNSURE in classes:
        raise UserError(f"--threshold cannot answer '{UNSURE}', since the model has a class of that name")
    validated = None if folder is None else RunDir(folder.parent).predictions("val")
    if validated is None or not validated.exists():
        missing = "it came without a folder" if validated is None else f"there is no '{validated}'"
        return Threshold(
            least,
            note=f"confidences are not calibrated, since {missing}: --threshold {least:g} takes them as the model "
            "gives them, which is often too high; name the run itself",
        )
    found = read_predictions(validated, classes)
    return Threshold(least, fit_temperature(found.log_probabilities, found.labels))
