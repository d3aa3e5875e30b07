"""The ways to the device give the same bits, and the choice between them depends on memory alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convsmith.config import validate
from convsmith.data.dataset import Subset
from convsmith.data.sampler import batch_positions, epoch_order
from convsmith.data.sources import ARRAYS, from_arrays
from convsmith.errors import UserError
from convsmith.prediction.evaluate import logits_of
from convsmith.runtime import Interrupts
from convsmith.training import feed, loop, setup
from convsmith.training.experiment import Experiment, opening
from convsmith.training.feed import WORDS, Feed, Way, train_batches, way_of
from convsmith.training.own import Parts
from convsmith.transfer.features import FrozenFeatures

CPU, GPU = torch.device("cpu"), torch.device("cuda")
WAYS: tuple[Way, ...] = ("direct", "resident", "ahead")


def subset(count: int = 31) -> Subset:
    pixels = np.random.default_rng(0).integers(0, 256, (2 * count, 6, 5, 3), dtype=np.uint8)
    rows = np.random.default_rng(1).permutation(2 * count)[:count]
    return Subset(pixels, rows, np.arange(count) % 3, [str(row) for row in rows])


def parts_of(images: Subset, size: int, start: int = 0) -> list[Any]:
    return list(batch_positions(epoch_order(images.labels, 0, 0), size, start))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("size", "start"), [(7, 0), (7, 3), (2, 0), (2, 4), (31, 0), (1, 30)])
def test_each_way_gathers_the_images_at_the_positions(
    way: Way, size: int, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "CHUNK", 4 * 6 * 5 * 3)  # eight copies to the device
    images = subset()
    parts = parts_of(images, size, start)
    found = list(Feed(CPU, way).images(images, parts))
    for pixels, part in zip(found, parts, strict=True):
        assert pixels.dtype == torch.uint8
        assert np.array_equal(pixels.numpy(), images.gather(part))


def test_labels_go_to_the_device_once_in_the_order_of_the_batches() -> None:
    images = subset()
    parts = parts_of(images, 8)
    pieces = Feed(CPU, "resident").split(images.labels[np.concatenate(parts)], parts)
    for piece, part in zip(pieces, parts, strict=True):
        assert piece.tolist() == images.labels[part].tolist()


@pytest.mark.parametrize("way", WAYS)
def test_all_images_are_evaluated_in_order(way: Way) -> None:
    images = subset()
    logits = logits_of(torch.nn.Identity(), Feed(CPU, way).evaluated(images), lambda x: x.flatten(1).float(), CPU)
    assert logits is not None
    assert np.array_equal(logits, images.gather(np.arange(31)).reshape(31, -1))


def test_a_set_that_fits_lies_on_the_device() -> None:
    assert way_of(CPU, 1, 1e12) == "direct"
    assert way_of(GPU, 8e9, 10e9) == "resident"
    assert way_of(GPU, 8.1e9, 10e9) == "ahead"
    assert way_of(GPU, 1, None) == "ahead"
    assert way_of(GPU, 1, -1) == "ahead"
    assert WORDS.keys() == set(WAYS)


def test_a_set_that_does_not_fit_after_all_comes_through_pinned_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def run_out(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(feed, "_on_device", run_out)
    images, by = subset(), Feed(CPU, "resident")
    parts = parts_of(images, 7)
    assert np.array_equal(next(by.images(images, parts)).numpy(), images.gather(parts[0]))
    assert by.way == "ahead"
    assert "the images do not fit on the device after all" in caplog.text


def test_features_lie_on_the_device_if_they_fit() -> None:
    features = FrozenFeatures({0: torch.ones(5, 3), 1: torch.ones(5, 3)}, 2, torch.ones(4, 3), torch.ones(2, 3))
    meta = Feed(torch.device("meta"), "ahead")  # a device that is not the host's
    assert meta.placed(features, 100).views[0].device.type == "cpu"
    placed = meta.placed(features, 1e6)
    assert {placed.views[1].device.type, placed.val.device.type, placed.clean.device.type} == {"meta"}
    parts = [np.array([4, 0]), np.array([1])]
    assert [tuple(rows.shape) for rows in meta.rows(features.view(0), parts)] == [(2, 3), (1, 3)]
    rows = torch.arange(15.0).view(5, 3)
    assert torch.equal(torch.cat(list(Feed(CPU, "direct").rows(rows, parts))), rows[[4, 0, 1]])


def training(folder: Path, way: Way, **changes: Any) -> Experiment:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    parts = Parts(from_arrays(images, np.arange(40) % 2))
    augment = {"hflip": True, "shift": 1, "mixup": 0.2}
    train = {"epochs": 2, "batch_size": 8, "threads": 1, "layout": "contiguous", "log_every": 1}
    data = {"source": ARRAYS, "val_fraction": 0.2, "test_fraction": 0}
    config = validate({"data": data, "train": train, "augment": augment, "track": {"wandb": "off"}, **changes})
    experiment = setup.start(setup.prepare(config, parts), folder, parts=parts)
    experiment.feed.way = way
    return experiment


@pytest.mark.parametrize("way", WAYS[1:])
def test_a_training_is_the_same_by_each_way(way: Way, tmp_path: Path) -> None:
    weights = []
    for number, by in enumerate(("direct", way)):
        experiment = training(tmp_path / str(number), by)
        list(loop.epochs(experiment, Interrupts()))
        weights.append(experiment.state.model.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_training_that_starts_within_an_epoch_gets_its_rest(tmp_path: Path) -> None:
    experiment = training(tmp_path, "ahead")
    whole = [batch.labels.tolist() for batch in train_batches(experiment)(1, 0)]
    assert [batch.labels.tolist() for batch in train_batches(experiment)(1, 2)] == whole[2:]
    assert list(train_batches(experiment)(1, len(whole))) == []


def test_images_grow_and_alternate_by_epoch_and_not_by_what_was_trained_before(tmp_path: Path) -> None:
    train = {"epochs": 4, "batch_size": 8, "threads": 1, "layout": "contiguous", "sizes": [[4, 0.5], [6, 0.75]]}
    rest = {"model": {"global_pool": "max"}, "augment": {"hflip": "alternating"}}
    experiment = training(tmp_path, "direct", train=train, **rest)
    batches = train_batches(experiment)
    assert [next(batches(epoch, 0)).images.shape[-1] for epoch in range(4)] == [4, 4, 6, 8]
    whole = list(batches(3, 0))
    assert torch.equal(whole[2].images, next(batches(3, 2)).images)

    def by_image(epoch: int) -> torch.Tensor:
        order = epoch_order(experiment.dataset.train.labels, 0, epoch)
        return torch.cat([batch.images for batch in batches(epoch, 0)])[np.argsort(order)]

    first, second = by_image(0), by_image(1)
    torch.testing.assert_close(first.flip(-1), second)  # to rounding: the images were resized


def test_a_network_of_one_size_is_refused_before_the_first_step(tmp_path: Path) -> None:
    train = {"epochs": 2, "threads": 1, "layout": "contiguous", "sizes": [[4, 0.5]]}
    with pytest.raises(UserError, match=r"^train.sizes: the network fails on images of 4 x 4 pixels .*global_pool"):
        training(tmp_path, "direct", train=train)


def test_small_images_take_their_share_of_the_time() -> None:
    """Of four epochs of 8 x 8 pixels, two have 4 x 4 and one has 6 x 6: (2 * 16 + 36 + 64) / (4 * 64)."""
    train = validate({"train": {"epochs": 4, "sizes": [[4, 0.5], [6, 0.75]]}}).train
    assert train.full_sized(4, 8) == 4 * 0.515625
    assert train.full_sized(4, (16, 8)) == pytest.approx((2 * 4 * 2 + 6 * 3 + 16 * 8) / (16 * 8))
    assert train.full_sized(1, (16, 8)) == 1
    assert train.full_sized(0, 8) == 0
    assert validate({"train": {"epochs": 3}}).train.full_sized(3, (16, 8)) == 3


def test_sizes_beyond_the_images_are_refused(tmp_path: Path) -> None:
    train = {"epochs": 2, "threads": 1, "layout": "contiguous", "sizes": [[4, 0.25], [16, 0.5]]}
    with pytest.raises(UserError, match=r"^train.sizes are of smaller images .*\(8 x 8 pixels\), which 16 is not"):
        training(tmp_path, "direct", train=train, model={"global_pool": "max"})


@pytest.mark.parametrize("sizes", [[[20, 0.5], [24, 0.5]], [[20, 1.0]], [[20, 0.0]], [[3, 0.5]], [[20]], [20], 20])
def test_sizes_rise_in_time(sizes: Any) -> None:
    message = (
        "train.sizes: must be sizes of at least 4 pixels, each with a rising fraction of the epochs below 1, as "
        "'[[20, 0.4], [24, 0.8]]'"
    )
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        validate({"train": {"sizes": sizes}})


def test_the_run_says_where_its_images_lie(tmp_path: Path) -> None:
    assert opening(training(tmp_path / "cpu", "direct")).feed == ""
    assert opening(training(tmp_path / "gpu", "resident")).feed == "images on the device"
