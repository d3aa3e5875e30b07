"""The order of the images of an epoch, and in which order they are read where they are streamed. Reads none."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from convsmith.data.config import DataConfig
from convsmith.data.dataset import Subset
from convsmith.data.sampler import epoch_order, reading_order, through_buffer


class Epoch(NamedTuple):
    """Positions int64 [N] within the train images: in the order of training and, if they are streamed, of reading."""

    order: np.ndarray
    reading: np.ndarray | None = None


def epoch_of(train: Subset, config: DataConfig, seed: int, epoch: int) -> Epoch:
    """The order of an epoch: a pure function, so that a resumed run uses the same one."""
    if train.shards is None:
        return Epoch(epoch_order(train.labels, seed, epoch, config.sampling == "balanced"))
    reading = reading_order(train.shards, seed, epoch)
    return Epoch(through_buffer(reading, config.shuffle_buffer, seed, epoch), reading)
