"""Which images make which batch: the order of an epoch, and its division. Touches no pixels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def epoch_order(labels: np.ndarray, seed: int, epoch: int, balanced: bool = False) -> np.ndarray:
    """Positions int64 [N] in the order of one epoch: a pure function, so that a resumed run sees the same.

    Shuffled, each once; `balanced` draws with replacement so that each class is equally likely.
    """
    rng = np.random.default_rng([seed, epoch])
    if not balanced:
        return rng.permutation(len(labels))
    counts = np.bincount(labels)
    chance = 1.0 / counts[labels]
    return rng.choice(len(labels), size=len(labels), p=chance / chance.sum())


def steps_per_epoch(images: int, batch_size: int) -> int:
    return -(-images // batch_size)


def batch_positions(order: np.ndarray, batch_size: int, start: int = 0) -> Iterator[np.ndarray]:
    """The batches of an epoch from number `start` on.

    Their sizes differ by one at most and none exceeds `batch_size`, so that no tiny last batch upsets
    batch norm or the step size, and no image is dropped.
    """
    yield from np.array_split(order, steps_per_epoch(len(order), batch_size))[start:]
