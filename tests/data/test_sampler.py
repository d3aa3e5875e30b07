from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convsmith.data.config import Preprocessing
from convsmith.data.preprocess import ToInput
from convsmith.data.sampler import batch_positions, epoch_order, steps_per_epoch
from convsmith.prediction.model_file import FORMATS


@given(st.integers(1, 500), st.integers(1, 130), st.integers(0, 5))
def test_batches_cover_an_epoch_once_in_nearly_equal_sizes(images: int, size: int, epoch: int) -> None:
    order = epoch_order(np.zeros(images, dtype=np.int64), 3, epoch)
    batches = list(batch_positions(order, size))
    assert len(batches) == steps_per_epoch(images, size)
    assert sorted(np.concatenate(batches).tolist()) == list(range(images))
    sizes = {len(batch) for batch in batches}
    assert max(sizes) - min(sizes) <= 1
    lone_image = size == 2 and images % 2 == 1 and images > 1  # then the only division without it has a batch of three
    assert max(sizes) <= size + lone_image
    assert min(sizes) > 1 or images == 1 or size == 1


@given(st.integers(1, 500), st.integers(1, 130))
def test_divisions_without_a_batch_of_one_are_those_of_the_first_edition(images: int, size: int) -> None:
    order = epoch_order(np.zeros(images, dtype=np.int64), 0, 0)
    first_edition = np.array_split(order, -(-images // size))
    batches = list(batch_positions(order, size))
    if min(map(len, first_edition)) == 1 and size > 1 and images > 1:
        batches = [*batches[:-1], batches[-1][:-1], batches[-1][-1:]]
    assert [batch.tolist() for batch in batches] == [batch.tolist() for batch in first_edition]


@given(st.integers(1, 100), st.integers(1, 20), st.integers(0, 50))
def test_an_epoch_goes_on_in_its_middle(images: int, size: int, start: int) -> None:
    order = epoch_order(np.zeros(images, dtype=np.int64), 0, 0)
    whole = list(batch_positions(order, size))
    rest = list(batch_positions(order, size, start))
    assert len(rest) == max(len(whole) - start, 0)
    for left, right in zip(whole[start:], rest, strict=True):
        np.testing.assert_array_equal(left, right)


def test_orders_differ_by_epoch_and_seed_and_repeat() -> None:
    labels = np.zeros(100, dtype=np.int64)
    orders = {tuple(epoch_order(labels, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    np.testing.assert_array_equal(epoch_order(labels, 1, 2), epoch_order(labels, 1, 2))


def test_balanced_sampling_draws_each_class_equally_often() -> None:
    labels = np.repeat([0, 1, 2], [900, 90, 10])
    drawn = np.concatenate([labels[epoch_order(labels, 0, epoch, balanced=True)] for epoch in range(10)])
    assert len(drawn) == 10_000
    np.testing.assert_allclose(np.bincount(drawn) / len(drawn), [1 / 3] * 3, atol=0.02)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_inputs_are_normalised_pixels_in_the_asked_memory_format(layout: torch.memory_format) -> None:
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    preprocessing = Preprocessing(
        image_size=6,
        working_size=6,
        channels=3,
        resize="stretch",
        interpolation="bilinear",
        background="white",
        mean=mean,
        std=std,
    )
    pixels = torch.randint(0, 256, (5, 6, 6, 3), dtype=torch.uint8)
    inputs = ToInput(preprocessing, torch.device("cpu"), layout)(pixels)
    expected = (pixels.double() / 255 - torch.tensor(mean, dtype=torch.float64)) / torch.tensor(std).double()
    torch.testing.assert_close(inputs, expected.permute(0, 3, 1, 2).float(), atol=1e-5, rtol=1e-5)
    assert inputs.is_contiguous(memory_format=layout)


@pytest.mark.parametrize(("channels", "width"), [(3, 32), (1, 28), (4, 7)])
def test_inputs_have_the_same_bits_in_either_memory_format(channels: int, width: int) -> None:
    preprocessing = Preprocessing(
        image_size=(5, width),
        working_size=(5, width),
        channels=channels,
        resize="stretch",
        interpolation="bilinear",
        background="white",
        mean=(0.1, 0.5, 0.9, 0.3)[:channels],
        std=(0.2, 0.3, 0.4, 0.25)[:channels],
    )
    pixels = torch.randint(0, 256, (5, 5, width, channels), dtype=torch.uint8)
    plain, fast = (ToInput(preprocessing, torch.device("cpu"), layout)(pixels) for layout in FORMATS.values())
    assert torch.equal(plain, fast)
