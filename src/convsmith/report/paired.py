"""Two models on the same images: who is right where the other is wrong, and whether that can be chance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convsmith.report.files import Predictions
from convsmith.studies.statistics import bootstrap_interval


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

    @property
    def p(self) -> float:
        return mcnemar(len(self.only_first), len(self.only_second))

    @property
    def difference(self) -> float:
        """Accuracy of the second minus that of the first."""
        return float(self.second.mean() - self.first.mean())

    def interval(self, rng: np.random.Generator) -> tuple[float, float]:
        """The 95% percentile bootstrap interval of the difference, over images."""
        return bootstrap_interval(self.second.astype(float) - self.first.astype(float), rng)


def mcnemar(only_first: int, only_second: int) -> float:
    """The two-sided p of McNemar's exact test (McNemar 1947): are both models equally often right where they differ?

    Of the ``n = only_first + only_second`` images on which exactly one is right, each goes either way with probability
    1/2 if the models are equally good: ``p = min(1, 2 P[B <= min(only_first, only_second)])``, B binomial (n, 1/2).
    """
    from scipy.stats import binom

    few, many = sorted((only_first, only_second))
    return min(1.0, 2 * float(binom.cdf(few, few + many, 0.5)))


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
