"""Solved heads in the race: the penalty is chosen within each fold, by images that it trains on. Reads no images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from convsmith.prediction.calibration import log_softmax
from convsmith.studies.auto_candidates import PENALTIES
from convsmith.studies.folds import Fold, divided
from convsmith.transfer.solved_head import solve

Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.int64]
INNER_FOLDS = 5
CROSSED_UP_TO = 1_000  # images of a fold, beyond which one inner validation part says enough


class Probed(NamedTuple):
    """Of one fold: the `penalty` that its inner validation chose, and logits of val and of held-out images.

    `held_out` float64 [H, K] is of the head that was solved on train and val; `losses` [P] are the mean losses on the
    inner validation images by penalty.
    """

    penalty: float
    val: NDArray[np.float64]
    held_out: NDArray[np.float64]
    losses: NDArray[np.float64]


def probe(features: Floats, labels: Labels, fold: Fold, classes: int, groups: Labels | None, seed: int) -> Probed:
    """Race a head on one fold; `features` float [N, F] and `labels` int64 [N] are those of the pool."""
    known = np.concatenate([fold.train, fold.val])
    parts = _parts(labels, fold, known, groups, seed)
    inner = {int(row): np.empty((len(PENALTIES), classes)) for _, rows in parts for row in rows}
    for train, val in parts:
        for number, head in enumerate(solve(features[train], labels[train], classes, PENALTIES)):
            for row, logits in zip(val, head.logits(features[val]), strict=True):
                inner[int(row)][number] = logits
    rows = np.array(list(inner))
    logits = np.stack([inner[int(row)] for row in rows])  # [N, P, K]
    losses = -log_softmax(logits)[np.arange(len(rows)), :, labels[rows]].mean(axis=0)
    chosen = int(losses.argmin())
    head = solve(features[known], labels[known], classes, PENALTIES[: chosen + 1])[-1]
    judged: NDArray[np.float64] = np.stack([inner[int(row)][chosen] for row in fold.val])
    return Probed(PENALTIES[chosen], judged, head.logits(features[fold.held_out]), losses)


def _parts(
    labels: Labels, fold: Fold, known: Labels, groups: Labels | None, seed: int
) -> Sequence[tuple[Labels, Labels]]:
    """Pairs of rows to train on and to validate on, within the images that the fold may see."""
    folds = min(INNER_FOLDS, int(np.bincount(labels[known])[np.unique(labels[known])].min()))
    if len(known) > CROSSED_UP_TO or folds < 2:
        return [(fold.train, fold.val)]
    within = None if groups is None else groups[known]
    return [(known[train], known[val]) for train, val in divided(labels[known], folds, seed, within)]
