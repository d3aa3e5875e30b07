"""What a run is told before its first step: whether it can train at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from convsmith.config import RunConfig, validate
from convsmith.data.sources import ARRAYS, Source, from_arrays
from convsmith.errors import UserError
from convsmith.events import Finished
from convsmith.runtime import Interrupts
from convsmith.training import setup
from convsmith.training.experiment import epochs
from convsmith.training.setup import Parts


def source_of(train_images: int) -> Source:
    images = np.random.default_rng(0).integers(0, 256, (train_images + 2, 6, 6), dtype=np.uint8)
    return from_arrays(images, np.arange(len(images)) % 2)


def config_of(train_images: int, batch_size: int) -> RunConfig:
    return validate(
        {
            "data": {"source": ARRAYS, "val_fraction": 2 / (train_images + 2), "test_fraction": 0},
            "train": {"batch_size": batch_size, "epochs": 1, "threads": 1, "layout": "contiguous"},
            "track": {"wandb": "off"},
        }
    )


class WithBatchNorm(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(36, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def train(train_images: int, batch_size: int, folder: Path) -> int:
    """The number of steps."""
    parts = Parts(source_of(train_images), WithBatchNorm())
    experiment = setup.start(setup.prepare(config_of(train_images, batch_size), parts), folder, parts=parts)
    assert len(experiment.dataset.train) == train_images
    events = list(epochs(experiment, Interrupts()))
    assert isinstance(events[-1], Finished)
    return experiment.state.step


@pytest.mark.parametrize(("images", "batch_size"), [(3, 2), (9, 2), (7, 3), (10, 9)])
def test_batch_norm_never_sees_a_batch_of_one(images: int, batch_size: int, tmp_path: Path) -> None:
    assert train(images, batch_size, tmp_path) == max(images // 2, 1) if batch_size == 2 else -(-images // batch_size)


def test_batches_of_one_image_are_refused_where_batch_norm_cannot_train_on_them(tmp_path: Path) -> None:
    message = "batch norm cannot train on batches of one image: set train.batch_size to 2 or more"
    with pytest.raises(UserError, match=message):
        train(9, 1, tmp_path)
    assert not list(tmp_path.iterdir())


def test_batches_of_one_image_train_a_net_that_can(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    prepared = setup.prepare(config_of(9, 1), Parts(source_of(9)))  # the convolutions of simple-cnn leave many values
    assert prepared.config.train.batch_size == 1
    del before
