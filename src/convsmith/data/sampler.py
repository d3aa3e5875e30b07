"""Which images make up which batch: the order of an epoch and its division into batches. Touches no pixels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def epoch_order(labels: np.ndarray, seed: int, epoch: int, balanced: bool = False) -> np.ndarray:
    """Positions int64 [N] in the order of one epoch: a pure function, so that a resumed run uses the same order.

    Each image comes once, in random order; with `balanced`, images are drawn with replacement so that each class is
    equally likely.
    """
    rng = np.random.default_rng([seed, epoch])
    if not balanced:
        return rng.permutation(len(labels))
    counts = np.bincount(labels)
    weights = 1.0 / counts[labels]
    return rng.choice(len(labels), size=len(labels), p=weights / weights.sum())


def steps_per_epoch(images: int, batch_size: int) -> int:
    """The number of batches that `batch_positions` yields for an epoch."""
    return max(images // 2, 1) if batch_size == 2 else -(-images // batch_size)


def batch_positions(order: np.ndarray, batch_size: int, start: int = 0) -> Iterator[np.ndarray]:
    """The batches of an epoch, from number `start` on.

    Their sizes differ by at most one and none exceeds `batch_size`, so that no tiny last batch disturbs
    batch norm or the step size, and no image is dropped. There is one exception: an odd number of images in batches of
    two ends with a batch of three, because batch norm cannot be trained on a single image.
    """
    if batch_size == 2:  # divided from the end, so that all batches but the last one are those of the first edition
        yield from [part[::-1] for part in np.array_split(order[::-1], steps_per_epoch(len(order), 2))[::-1]][start:]
    else:
        yield from np.array_split(order, steps_per_epoch(len(order), batch_size))[start:]
