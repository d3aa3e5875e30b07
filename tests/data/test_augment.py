"""Augmentation against readable twins, one image at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from convsmith.data.augment import Augment, alternation, crop_and_rotate, cutout, flip_and_shift, jitter_colour, mix
from convsmith.data.config import AugmentConfig, Preprocessing
from convsmith.data.preprocess import ToInput

CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(count: int = 6, size: int = 9, channels: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, size, size, channels), generator=generator(1), dtype=torch.uint8)


def preprocessing(size: int = 9, working: int = 9, channels: int = 3) -> Preprocessing:
    return Preprocessing(
        image_size=size,
        working_size=working,
        channels=channels,
        resize="stretch",
        interpolation="bilinear",
        background="white",
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
    )


def flip_and_shift_reference(images: np.ndarray, config: AugmentConfig, source: torch.Generator) -> np.ndarray:
    """numpy.pad and a slice, image by image, with the same draws."""
    count = len(images)
    mirrored = [False] * count
    if config.hflip:
        mirrored = (torch.rand(count, 1, generator=source) < 0.5).flatten().tolist()
    moves = torch.zeros(2, count, 1, dtype=torch.int64)
    if config.shift:
        moves = torch.randint(-config.shift, config.shift + 1, (2, count, 1), generator=source)
    mode = {"mode": "reflect"} if config.shift_fill == "reflect" else {"mode": "constant"}
    result = []
    for number, image in enumerate(images):
        flipped = image[:, ::-1] if mirrored[number] else image
        edge = config.shift
        padded = np.pad(flipped, ((edge, edge), (edge, edge), (0, 0)), **mode)
        down = edge + int(moves[0, number])
        # A move counts columns of the image before it was mirrored.
        right = edge + int(moves[1, number]) * (-1 if mirrored[number] else 1)
        result.append(padded[down : down + image.shape[0], right : right + image.shape[1]])
    return np.stack(result)


def test_alternating_flips_show_both_sides_in_each_two_epochs() -> None:
    config = AugmentConfig(hflip="alternating")
    sides = [alternation(config, 3, epoch, 1000) for epoch in range(4)]
    assert 420 < sides[0].sum() < 580
    assert np.array_equal(sides[1], ~sides[0])
    assert np.array_equal(sides[2], sides[0])
    assert np.array_equal(sides[3], sides[1])
    assert not np.array_equal(alternation(config, 4, 0, 1000), sides[0])
    assert alternation(AugmentConfig(hflip=True), 3, 0, 1000) is None
    images, mirrored = pixels(4), torch.tensor([True, False, False, True])
    moved = flip_and_shift(images, config, generator(), mirrored)
    assert torch.equal(moved, torch.where(mirrored[:, None, None, None], images.flip(2), images))


@given(st.booleans(), st.integers(0, 4), st.sampled_from(["reflect", "zero"]), st.integers(0, 1000))
@settings(max_examples=60)
def test_flip_and_shift_equals_padding_and_slicing(hflip: bool, shift: int, fill: str, seed: int) -> None:
    config = AugmentConfig(hflip=hflip, shift=shift, shift_fill=fill)
    images = pixels()
    ours = flip_and_shift(images, config, generator(seed)).numpy()
    theirs = flip_and_shift_reference(images.numpy(), config, generator(seed))
    np.testing.assert_array_equal(ours, theirs)


def test_a_shift_below_1_is_a_share_of_the_side() -> None:
    shares = AugmentConfig(shift=0.125)
    assert [shares.shift_pixels(side) for side in (8, 32, 224)] == [1, 4, 28]
    images = pixels()
    ours = flip_and_shift(images, AugmentConfig(shift=2 / images.shape[2]), generator()).numpy()
    np.testing.assert_array_equal(ours, flip_and_shift(images, AugmentConfig(shift=2), generator()).numpy())


def test_a_shift_of_part_of_a_pixel_is_refused() -> None:
    with pytest.raises(ValueError, match="whole pixels"):
        AugmentConfig(shift=1.5)


def test_crop_of_everything_without_rotation_is_the_image() -> None:
    images = pixels().permute(0, 3, 1, 2).float()
    same = crop_and_rotate(images, 9, AugmentConfig(), generator())
    torch.testing.assert_close(same, images, atol=1e-3, rtol=0)


def test_rotation_by_a_right_angle_is_torch_rot90(monkeypatch: pytest.MonkeyPatch) -> None:
    images = pixels().permute(0, 3, 1, 2).float()
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.ones(*size))  # the largest angle
    turned = crop_and_rotate(images, 9, AugmentConfig(rotation=90), generator())
    torch.testing.assert_close(turned, torch.rot90(images, 1, (2, 3)), atol=0.05, rtol=0)


def test_random_resized_crops_have_the_asked_areas_and_aspects_and_lie_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def remember(matrix: torch.Tensor, size: list[int], align_corners: bool) -> torch.Tensor:
        seen["matrix"] = matrix
        return torch.zeros(size[0], size[2], size[3], 2)

    monkeypatch.setattr(torch.nn.functional, "affine_grid", remember)
    crop_and_rotate(torch.zeros(4000, 1, 4, 4), 4, AugmentConfig(random_resized_crop=0.3), generator())
    width, height = seen["matrix"][:, 0, 0], seen["matrix"][:, 1, 1]
    centre = seen["matrix"][:, :, 2]
    assert (centre[:, 0].abs() + width <= 1 + 1e-6).all()
    assert (centre[:, 1].abs() + height <= 1 + 1e-6).all()
    assert width.max() <= 1
    assert height.max() <= 1
    area = width * height
    assert area.min() > 0.3 * 0.74  # clipped where the aspect does not fit
    assert 0.6 < area.mean() < 0.66
    aspect = (width / height)[(width < 1) & (height < 1)]
    assert aspect.min() >= 3 / 4 - 1e-4
    assert aspect.max() <= 4 / 3 + 1e-4


def test_colour_jitter_keeps_range_and_does_nothing_at_zero() -> None:
    images = pixels().permute(0, 3, 1, 2).float()
    torch.testing.assert_close(jitter_colour(images, AugmentConfig(), generator()), images)
    strong = jitter_colour(images, AugmentConfig(brightness=1, contrast=1, saturation=1), generator())
    assert strong.min() >= 0
    assert strong.max() <= 255
    assert not torch.equal(strong, images)


def test_brightness_scales_each_image_by_one_factor_within_the_range() -> None:
    images = torch.full((500, 3, 2, 2), 100.0)
    factors = jitter_colour(images, AugmentConfig(brightness=0.4), generator()) / 100
    assert (factors == factors[:, :1, :1, :1]).all()
    assert factors.min() >= 0.6
    assert factors.max() <= 1.4
    assert stats.kstest(factors[:, 0, 0, 0].numpy(), stats.uniform(0.6, 0.8).cdf).pvalue > 0.01


def test_saturation_leaves_gray_gray() -> None:
    gray = torch.arange(16.0).view(1, 1, 4, 4).expand(2, 3, 4, 4).contiguous()
    torch.testing.assert_close(jitter_colour(gray, AugmentConfig(saturation=1), generator()), gray, atol=1e-3, rtol=0)


@given(st.integers(1, 12), st.integers(0, 100))
@settings(max_examples=30)
def test_cutout_zeroes_one_rectangle_of_at_most_its_side(side: int, seed: int) -> None:
    images = torch.ones(8, 3, 9, 9)
    for image in cutout(images, side, generator(seed)):
        holes = image[0] == 0
        assert (image == image[:1]).all(), "all channels together"
        rows, columns = holes.any(1).sum().item(), holes.any(0).sum().item()
        assert holes.sum() == rows * columns
        assert 1 <= rows <= side
        assert 1 <= columns <= side


def test_mixup_is_the_weighted_sum_and_the_heavier_label_comes_first() -> None:
    images, labels = torch.randn(16, 3, 4, 4), torch.arange(16)
    for seed in range(20):
        batch = mix(images, labels, AugmentConfig(mixup=0.8), generator(seed), np.random.default_rng(seed))
        assert batch.others is not None
        assert batch.weight is not None
        assert 0.5 <= batch.weight <= 1
        expected = batch.weight * images[batch.labels] + (1 - batch.weight) * images[batch.others]
        torch.testing.assert_close(batch.images, expected)


def test_cutmix_weighs_labels_by_the_pixels_that_each_image_has() -> None:
    labels = torch.arange(16)
    images = labels.float().view(16, 1, 1, 1).expand(16, 1, 10, 10).contiguous()
    for seed in range(20):
        batch = mix(images, labels, AugmentConfig(cutmix=1.0), generator(seed), np.random.default_rng(seed))
        share = (batch.images == batch.labels.view(16, 1, 1, 1)).float().mean((1, 2, 3))
        other = (batch.images == batch.others.view(16, 1, 1, 1)).float().mean((1, 2, 3))
        distinct = batch.labels != batch.others
        torch.testing.assert_close(share[distinct], torch.full((16,), batch.weight)[distinct])
        torch.testing.assert_close(other[distinct], torch.full((16,), 1 - batch.weight)[distinct])


@pytest.mark.parametrize("alpha", [0.2, 1.0, 2.5])
def test_shares_of_mixup_have_the_distribution_of_scipy(alpha: float) -> None:
    images, labels = torch.zeros(2, 1, 1, 1), torch.arange(2)
    weights = []
    for seed in range(800):
        batch = mix(images, labels, AugmentConfig(mixup=alpha), generator(), np.random.default_rng([0, 0, seed]))
        weights.append(batch.weight)
    folded = stats.beta(alpha, alpha)  # the heavier share: 2 F(x) - 1 above one half
    assert stats.kstest(weights, lambda x: 2 * folded.cdf(x) - 1).pvalue > 0.01


def test_mixup_and_cutmix_together_are_each_used_for_half_of_the_batches() -> None:
    images, labels = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 8, 8).contiguous(), torch.arange(2)
    config = AugmentConfig(mixup=1.0, cutmix=1.0)
    key = np.random.default_rng
    mixed = [mix(images, labels, config, generator(seed), key([0, 0, seed])).images for seed in range(400)]
    blended = sum(bool(((image > 0) & (image < 1)).any()) for image in mixed)
    swapped = 0.5  # of the batches of two; the others are their own partner, and look the same either way
    assert stats.binomtest(blended, 400, 0.5 * swapped).pvalue > 0.01


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("working", [9, 11])
def test_everything_on_gives_finite_inputs_of_the_image_size(channels: int, working: int) -> None:
    config = AugmentConfig(
        hflip=True,
        shift=2,
        cutout=3,
        rotation=20,
        brightness=0.2,
        contrast=0.2,
        saturation=0.2,
        random_resized_crop=0.4,
        mixup=0.3,
        cutmix=1,
    )
    to_input = ToInput(preprocessing(9, working, channels), CPU, torch.channels_last)
    batch = Augment(config, to_input)(pixels(6, working, channels), torch.arange(6), generator(), [0, 0, 0])
    assert batch.images.shape == (6, channels, 9, 9)
    assert batch.images.dtype == torch.float32
    assert torch.isfinite(batch.images).all()


def test_without_augmentation_training_sees_what_validation_sees() -> None:
    for working in (9, 12):
        to_input = ToInput(preprocessing(9, working), CPU)
        images = pixels(6, working)
        batch = Augment(AugmentConfig(), to_input)(images, torch.arange(6), generator(), [0, 0, 0])
        assert torch.equal(batch.images, to_input(images))


def test_no_augmentation_draws_from_the_global_generator() -> None:
    before = torch.get_rng_state()
    test_everything_on_gives_finite_inputs_of_the_image_size(3, 11)
    assert torch.equal(torch.get_rng_state(), before)
