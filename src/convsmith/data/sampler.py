"""Which images make up which batch: the order of an epoch and its division into batches. Touches no pixels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

SHARDS = 16  # at most, of which a sample of streamed images is taken


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


def reading_order(shards: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Positions int64 [N] in the order in which an epoch reads them: `shards` [N] in random order, each from its start.

    A pure function, as `epoch_order` is.
    """
    _, number = np.unique(shards, return_inverse=True)
    place = np.random.default_rng([seed, epoch]).permutation(int(number.max(initial=-1)) + 1)
    return np.argsort(place[number], kind="stable")


def through_buffer(reading: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
    """The positions of `reading` [N] in the order in which a shuffle buffer of this size gives them out.

    The first `size` fill the buffer. Then each one that is read takes the place of one drawn at random, which is given
    out; in the end the rest is, in random order. Computed without a loop: what is drawn from a place is what was put
    there last.
    """
    count = len(reading)
    size = min(size, count)
    rng = np.random.default_rng([seed, epoch, size])
    place = np.concatenate([np.arange(size), rng.integers(0, max(size, 1), count - size)])  # that each one is put into
    by_place = np.argsort(place, kind="stable")
    before = np.empty(count, dtype=np.int64)  # the one that each one replaces
    before[by_place[1:]] = by_place[:-1]
    last = by_place[np.diff(place[by_place], append=size) > 0]  # of each place
    order: np.ndarray = reading[np.concatenate([before[size:], rng.permutation(last)])]
    return order


def first_of_shards(shards: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` positions int64, sorted: the first of each of up to SHARDS of the `shards` [N], spread evenly."""
    distinct = np.unique(shards)
    chosen = np.unique(np.linspace(0, len(distinct) - 1, min(SHARDS, count, len(distinct))).round().astype(int))
    each = -(-count // max(len(chosen), 1))
    return np.sort(np.concatenate([np.flatnonzero(shards == distinct[one])[:each] for one in chosen]))[:count]
