"""Augmentation as tensor operations on whole batches, on the device, with an explicit generator. Reads no files.

Geometric and colour operations work on uint8 or on floats in [0, 255]; cutout, mixup and cutmix are applied after
normalisation, where 0 is the mean colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from convsmith.contracts import Batch, Size, hw
from convsmith.data.ahead import sent
from convsmith.data.config import AugmentConfig
from convsmith.data.preprocess import ToInput

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


ALTERNATION = 2**31  # the key of its generator beside the seed; larger than any epoch, so that no other has it


def alternation(config: AugmentConfig, seed: int, epoch: int, images: int) -> NDArray[np.bool_] | None:
    """Which of the train images an epoch (from 0) mirrors, bool [N]; None unless `hflip` is alternating.

    In the first epoch each image is mirrored with probability 1/2, and from then on in every other epoch, so that two
    epochs in succession show both images of a pair. Source: Keller Jordan, "94% on CIFAR-10 in 3.29 Seconds" (2024).
    """
    if config.hflip != "alternating":
        return None
    first = np.random.default_rng([seed, ALTERNATION]).random(images) < 0.5
    return first ^ bool(epoch % 2)


def flip_and_shift(
    pixels: Tensor, config: AugmentConfig, generator: Generator, mirrored: Tensor | None = None
) -> Tensor:
    """Mirror and shift by up to `shift` pixels, in one gather. uint8 [B, H, W, C].

    The images to mirror are those of `mirrored`, bool [B], or are drawn with probability 1/2.
    """
    count, height, width, channels = pixels.shape
    device = pixels.device
    columns = torch.arange(width, device=device).expand(count, width)
    rows = torch.arange(height, device=device).expand(count, height)
    if config.hflip:
        if mirrored is None:
            mirrored = torch.rand(count, generator=generator, device=device) < 0.5
        columns = torch.where(mirrored[:, None], width - 1 - columns, columns)
    if config.shift:
        down, across = (_drawn(count, config.shift_pixels(side), generator, device) for side in (height, width))
        rows, columns = rows + down, columns + across
        if config.shift_fill == "reflect":
            rows, columns = _reflect(rows, height), _reflect(columns, width)
        else:
            above, beside = (config.shift_pixels(side) for side in (height, width))
            pixels = torch.nn.functional.pad(pixels, (0, 0, beside, beside, above, above))
            rows, columns = rows + above, columns + beside
    first = torch.arange(count, device=device)[:, None] * pixels.shape[1]
    # One number a pixel: three index tensors, or a mask of what lies outside, would take three times as long.
    at = ((first + rows) * pixels.shape[2])[:, :, None] + columns[:, None, :]
    return pixels.flatten(0, 2).index_select(0, at.flatten()).view(count, height, width, channels)


def _drawn(count: int, most: int, generator: Generator, device: torch.device) -> Tensor:
    """Whole numbers from -most to most: int64 [count, 1]."""
    return torch.randint(-most, most + 1, (count, 1), generator=generator, device=device)


def _reflect(index: Tensor, size: int) -> Tensor:
    """Mirror positions at the edges without repeating the edge, like NumPy's `reflect`."""
    period = max(2 * (size - 1), 1)
    index = index.remainder(period)
    return torch.minimum(index, period - index)


def crop_and_rotate(images: Tensor, size: Size, config: AugmentConfig, generator: Generator) -> Tensor:
    """Random resized crop and rotation in one bilinear resampling, with reflection at the borders.

    float [B, C, H, W] in [0, 255] -> [B, C, h, w] of the given size. The crop's area is uniform in
    [random_resized_crop, 1], and the log of its aspect ratio, as a share of the image's, in [log 3/4, log 4/3]
    (Szegedy et al. 2015).
    """
    count, device = len(images), images.device
    slant = images.shape[-2] / images.shape[-1]  # positions run from -1 to 1 in both directions
    scale_x = scale_y = torch.ones(count, device=device)
    centre = torch.zeros(2, count, device=device)
    angle = torch.zeros(count, device=device)
    if config.random_resized_crop:
        draws = torch.rand(4, count, generator=generator, device=device)
        area = config.random_resized_crop + (1 - config.random_resized_crop) * draws[0]
        aspect = torch.exp((2 * draws[1] - 1) * torch.log(torch.tensor(4 / 3)))
        scale_x = (area * aspect).sqrt().clamp(max=1.0)
        scale_y = (area / aspect).sqrt().clamp(max=1.0)
        centre = (2 * draws[2:] - 1) * (1 - torch.stack([scale_x, scale_y]))
    if config.rotation:
        draw = torch.rand(count, generator=generator, device=device)
        angle = torch.deg2rad((2 * draw - 1) * config.rotation)
    cos, sin = angle.cos(), angle.sin()
    matrix = torch.stack(
        [
            torch.stack([cos * scale_x, -sin * scale_y * slant, centre[0]], dim=1),
            torch.stack([sin * scale_x / slant, cos * scale_y, centre[1]], dim=1),
        ],
        dim=1,
    )
    grid = torch.nn.functional.affine_grid(matrix, [count, images.shape[1], *hw(size)], align_corners=False)
    return torch.nn.functional.grid_sample(
        images, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )


def _luma(images: Tensor) -> Tensor:
    """The weights of the channels in the brightness of [B, C, H, W]: luma for RGB, else equal ones."""
    channels = images.shape[1]
    weights = LUMA if channels == 3 else (1 / channels,) * channels
    return sent(np.array(weights, np.float32), images.device).view(1, channels, 1, 1)


def jitter_colour(images: Tensor, config: AugmentConfig, generator: Generator) -> Tensor:
    """Brightness, then contrast (about the image's mean luma), then saturation; floats in [0, 255]."""
    channels, luma = images.shape[1], _luma(images)

    def factor(strength: float) -> Tensor:
        draw = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device)
        return 1 + strength * (2 * draw - 1)

    if config.brightness:
        images = images * factor(config.brightness)
    if config.contrast:
        mean = (images * luma).sum(1, keepdim=True).mean((2, 3), keepdim=True)
        images = torch.lerp(mean.expand_as(images), images, factor(config.contrast))
    if config.saturation and channels == 3:
        gray = (images * luma).sum(1, keepdim=True)
        images = torch.lerp(gray.expand_as(images), images, factor(config.saturation))
    return images.clamp(0, 255)


def _moved(images: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """uint8 [n, C, H, W] where the output pixel (x', y') shows the input pixel (a x' + b y' + x, c x' + d y' + y).

    Positions are in pixels from the image's centre. The nearest pixel is taken; outside the image, pixels are black.
    """
    height, width = images.shape[-2:]
    first = torch.stack([a, b * (height / width), x / (width / 2)], dim=1)
    second = torch.stack([c * (width / height), d, y / (height / 2)], dim=1)
    matrix = torch.stack([first, second], dim=1)
    grid = torch.nn.functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return torch.nn.functional.grid_sample(images.float(), grid, mode="nearest", align_corners=False).to(torch.uint8)


def _shear_x(images: Tensor, slope: Tensor) -> Tensor:
    one, zero = torch.ones_like(slope), torch.zeros_like(slope)
    return _moved(images, one, slope, zero, one, slope * images.shape[-2] / 2, zero)


def _shear_y(images: Tensor, slope: Tensor) -> Tensor:
    return _shear_x(images.mT, slope).mT


def _translate_x(images: Tensor, distance: Tensor) -> Tensor:
    one, zero = torch.ones_like(distance), torch.zeros_like(distance)
    return _moved(images, one, zero, zero, one, -distance.trunc(), zero)


def _translate_y(images: Tensor, distance: Tensor) -> Tensor:
    return _translate_x(images.mT, distance).mT


def _rotate(images: Tensor, degrees: Tensor) -> Tensor:
    cos, sin, zero = torch.deg2rad(degrees).cos(), torch.deg2rad(degrees).sin(), torch.zeros_like(degrees)
    return _moved(images, cos, -sin, sin, cos, zero, zero)


def _blend(images: Tensor, plain: Tensor, change: Tensor) -> Tensor:
    """Interpolate or extrapolate: plain + (1 + change) (images - plain), clipped; change 0 gives the images."""
    factor = 1 + change[:, None, None, None]
    return (factor * images.float() + (1 - factor) * plain).clamp(0, 255).to(torch.uint8)


def _gray(images: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images.float()
    return (images * _luma(images)).sum(1, keepdim=True).floor()


def _brightness(images: Tensor, change: Tensor) -> Tensor:
    return _blend(images, torch.zeros((), device=images.device), change)


def _colour(images: Tensor, change: Tensor) -> Tensor:
    return images if images.shape[1] != 3 else _blend(images, _gray(images), change)


def _contrast(images: Tensor, change: Tensor) -> Tensor:
    return _blend(images, _gray(images).mean((1, 2, 3), keepdim=True), change)


def _sharpness(images: Tensor, change: Tensor) -> Tensor:
    """Blend with the image smoothed by [[1, 1, 1], [1, 5, 1], [1, 1, 1]] / 13; pixels at the border do not change."""
    channels = images.shape[1]
    kernel = torch.ones(channels, 1, 3, 3, device=images.device)
    kernel[:, :, 1, 1] = 5
    smooth = images.float()
    smooth[:, :, 1:-1, 1:-1] = torch.nn.functional.conv2d(smooth, kernel / 13, groups=channels).round()
    return _blend(images, smooth, change)


def _posterize(images: Tensor, removed: Tensor) -> Tensor:
    bits = removed.round().to(torch.uint8)[:, None, None, None]
    return images >> bits << bits


def _solarize(images: Tensor, strength: Tensor) -> Tensor:
    threshold = 255 * (1 - strength[:, None, None, None])
    return torch.where(images >= threshold, 255 - images, images)


def _autocontrast(images: Tensor, _: Tensor) -> Tensor:
    low, high = images.amin((2, 3), keepdim=True).float(), images.amax((2, 3), keepdim=True).float()
    stretched = ((images - low) / ((high - low).clamp_min(1) / 255)).clamp(0, 255).to(torch.uint8)
    return torch.where(high > low, stretched, images)


def _equalize(images: Tensor, _: Tensor) -> Tensor:
    """Equalise each channel's histogram as Pillow does, so that all values of the result are about equally frequent."""
    values = images.flatten(2).long()
    counts = torch.zeros(*values.shape[:2], 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(2, values, torch.ones_like(values))
    total = counts.cumsum(2)
    brightest = counts.gather(2, values.amax(2, keepdim=True))
    step = (values.shape[2] - brightest) // 255  # pixels per gray level
    table = torch.nn.functional.pad((total[..., :-1] + step // 2) // step.clamp_min(1), (1, 0)).clamp(0, 255)
    equalized = table.gather(2, values).to(torch.uint8).view_as(images)
    return torch.where(step[..., None] > 0, equalized, images)


@dataclass(frozen=True)
class Operation:
    """An operation of TrivialAugment and RandAugment on uint8 [n, C, H, W] with one strength per image, float [n].

    `trivial` and `rand` are the largest strengths in TrivialAugment's wide space and in RandAugment's; `signed`
    strengths have a random sign. Strengths of translations are in pixels, but `rand` is a fraction of the side `along`
    which they move (the last dimension but one or the last).
    """

    apply: Callable[[Tensor, Tensor], Tensor]
    trivial: float = 0.0
    rand: float = 0.0
    signed: bool = False
    along: int | None = None

    def largest(self, shape: Sequence[int], rand: bool) -> float:
        """The largest strength. TrivialAugment's translation by 32 pixels would leave nothing of a smaller image."""
        if self.along is None:
            return self.rand if rand else self.trivial
        return self.rand * shape[self.along] if rand else min(self.trivial, shape[self.along])


OPERATIONS: dict[str, Operation] = {
    "Identity": Operation(lambda images, _: images),
    "ShearX": Operation(_shear_x, 0.99, 0.3, signed=True),
    "ShearY": Operation(_shear_y, 0.99, 0.3, signed=True),
    "TranslateX": Operation(_translate_x, 32, 150 / 331, signed=True, along=-1),
    "TranslateY": Operation(_translate_y, 32, 150 / 331, signed=True, along=-2),
    "Rotate": Operation(_rotate, 135, 30, signed=True),
    "Brightness": Operation(_brightness, 0.99, 0.9, signed=True),
    "Color": Operation(_colour, 0.99, 0.9, signed=True),
    "Contrast": Operation(_contrast, 0.99, 0.9, signed=True),
    "Sharpness": Operation(_sharpness, 0.99, 0.9, signed=True),
    "Posterize": Operation(_posterize, 6, 4),
    "Solarize": Operation(_solarize, 1, 1),
    "AutoContrast": Operation(_autocontrast),
    "Equalize": Operation(_equalize),
}
BINS = 30  # the number of steps from no change to the largest strength


def apply_policy(images: Tensor, config: AugmentConfig, draws: np.random.Generator) -> Tensor:
    """Apply the random operations of TrivialAugment (wide) or RandAugment to each image; pixels [B, C, H, W] -> uint8.

    TrivialAugment (Mueller and Hutter 2021) applies one operation with a strength drawn for each image; RandAugment
    (Cubuk et al. 2020) applies `rand_ops` of them in turn with the strength `rand_magnitude`. Operations and strengths
    are those of torchvision. They are drawn on the host, so that each operation runs on its own images only, and sent
    to the device at once, the images of an operation side by side.
    """
    if images.is_floating_point():
        images = images.round().clamp(0, 255).to(torch.uint8)
    count = len(images)
    for _ in range(config.rand_ops or 1):
        chosen = draws.integers(len(OPERATIONS), size=count)
        bins = np.full(count, config.rand_magnitude) if config.rand_ops else draws.integers(BINS + 1, size=count)
        signs = draws.choice([-1.0, 1.0], size=count)
        result, order = images.clone(), np.argsort(chosen, kind="stable")
        counts = np.bincount(chosen, minlength=len(OPERATIONS))
        strengths = np.empty(count, np.float32)
        for operation, members in zip(OPERATIONS.values(), np.split(order, counts.cumsum()[:-1]), strict=True):
            strength = operation.largest(images.shape, bool(config.rand_ops)) * bins[members] / BINS
            strengths[members] = strength * signs[members] if operation.signed else strength
        sizes = counts.tolist()
        pieces = sent(order, images.device).split(sizes), sent(strengths[order], images.device).split(sizes)
        for operation, at, strength_of in zip(OPERATIONS.values(), *pieces, strict=True):
            if len(at):
                result[at] = operation.apply(images[at], strength_of)
        images = result
    return images


def cutout(images: Tensor, side: int, generator: Generator) -> Tensor:
    """Set a square of each image to 0, the mean colour, in place (DeVries and Taylor 2017).

    Normalised float [B, C, H, W]. The squares have sides of `side` pixels and uniformly drawn centres, and are clipped
    at the borders.
    """
    inside = []
    for size in images.shape[-2:]:
        centres = torch.randint(0, size, (len(images), 1), generator=generator, device=images.device)
        first = centres - side // 2
        line = torch.arange(size, device=images.device)
        inside.append((line >= first) & (line < first + side))
    return images.masked_fill_(inside[0][:, None, :, None] & inside[1][:, None, None, :], 0.0)


def mix(
    images: Tensor, labels: Tensor, config: AugmentConfig, generator: Generator, draws: np.random.Generator
) -> Batch:
    """Apply mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019) with one weight per batch.

    If both are on, one is chosen at random with equal probability. The images are mixed with the same batch in another
    order. The label with the larger weight comes first. Values that decide the shape of the computation come from
    `draws`, on the host, so that no step waits for the device.
    """
    use_cutmix = bool(config.cutmix) and (not config.mixup or draws.random() < 0.5)
    alpha = config.cutmix if use_cutmix else config.mixup
    share = float(draws.beta(alpha, alpha))
    partner = torch.randperm(len(images), generator=generator, device=images.device)
    if use_cutmix:
        box = []
        for size in images.shape[-2:]:
            side = round(size * (1 - share) ** 0.5)
            start = int(draws.integers(0, size)) - side // 2
            box.append(slice(max(start, 0), min(start + side, size)))
        rows, columns = box
        mixed = images.clone()
        mixed[:, :, rows, columns] = images[partner][:, :, rows, columns]
        share = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / math.prod(images.shape[-2:])
    else:
        mixed = torch.lerp(images[partner], images, share)
    if share < 0.5:
        return Batch(mixed, labels[partner], labels, 1 - share)
    return Batch(mixed, labels, labels[partner], share)


class Augment:
    """Turns uint8 [B, H, W, C] and labels [B] into an augmented Batch, for training.

    `generator` is on the device, where it draws values per image. `key` ([seed, epoch, step]) identifies the batch
    and seeds the NumPy generator that draws values per batch, so that nothing waits for the device. `mirrored`, bool
    [B], is the part of `alternation` that concerns the batch.
    """

    def __init__(self, config: AugmentConfig, to_input: ToInput) -> None:
        self.config = config
        self.to_input = to_input

    def __call__(
        self,
        pixels: Tensor,
        labels: Tensor,
        generator: Generator,
        key: Sequence[int],
        mirrored: Tensor | None = None,
    ) -> Batch:
        config = self.config
        if config.hflip or config.shift:
            pixels = flip_and_shift(pixels, config, generator, mirrored)
        # A random crop resizes from the working size to the image size itself.
        images = pixels.permute(0, 3, 1, 2) if config.random_resized_crop else self.to_input.resize(pixels)
        if config.random_resized_crop or config.rotation:
            size = self.to_input.preprocessing.image_size
            images = crop_and_rotate(images.float(), size, config, generator)
        if config.brightness or config.contrast or config.saturation:
            images = jitter_colour(images.float(), config, generator)
        draws = np.random.default_rng(key)
        if config.trivial or config.rand_ops:
            images = apply_policy(images, config, draws)
        images = self.to_input.normalize(images)
        if config.cutout:
            images = cutout(images, config.cutout, generator)
        batch = Batch(images, labels)
        if config.mixup or config.cutmix:
            batch = mix(images, labels, config, generator, draws)
        # Not every operation above keeps the memory format in which the convolutions are fast.
        return replace(batch, images=batch.images.contiguous(memory_format=self.to_input.memory_format))
