"""Two models on the same images: who is right where the other is wrong, and whether that can be chance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convsmith.report.files import Predictions
from convsmith.studies.statistics import PairedAccuracies, paired_accuracies


@dataclass(frozen=True, eq=False)
class Pairing:
    """Image by image, in the first model's order: `first` and `second` say where each is right, bool [N].

    `partner` int64 [N] is the place of each image in the second model's predictions.
    """

    first: NDArray[np.bool_]
    second: NDArray[np.bool_]
    partner: NDArray[np.int64]

    @property
    def only_first(self) -> NDArray[np.int64]:
        """Positions of the images that the first model alone gets right."""
        return np.flatnonzero(self.first & ~self.second)

    @property
    def only_second(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.second & ~self.first)

    def test(self, level: float = 0.95) -> PairedAccuracies:
        """McNemar's exact test and the interval of the difference that belongs to it."""
        return paired_accuracies(len(self.only_first), len(self.only_second), len(self.first), level)


def pair(first: Predictions, second: Predictions) -> Pairing | str:
    """Both models' predictions image by image; or why they cannot be paired, as the end of a sentence."""
    place = {name: at for at, name in enumerate(second.ids)}
    if set(first.ids) != place.keys():
        common = len(set(first.ids) & place.keys())
        sizes = f"{common:,} of {len(first.ids):,} and {len(second.ids):,} in common"
        return f"their val splits hold different images ({sizes})"
    partner = np.array([place[name] for name in first.ids], dtype=np.int64)
    ours = [first.classes[label] for label in first.labels]
    theirs = [second.classes[label] for label in second.labels[partner]]
    if ours != theirs:
        return "their images have different labels"
    return Pairing(first.right, second.right[partner], partner)
