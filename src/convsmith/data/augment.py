"""Augmentation as tensor operations on the whole batch, on the device, from an explicit generator.

Pixels are moved as uint8 or as floats in [0, 255]; cutout, mixup and cutmix come after normalisation, where
0 is the mean colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Generator, Tensor

from convsmith.contracts import Batch
from convsmith.data.config import AugmentConfig
from convsmith.data.preprocess import ToInput

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def flip_and_shift(pixels: Tensor, config: AugmentConfig, generator: Generator) -> Tensor:
    """Mirror with probability 1/2 and move by up to `shift` pixels, in one gather. uint8 [B, H, W, C]."""
    count, height, width, _ = pixels.shape
    device = pixels.device
    columns = torch.arange(width, device=device).expand(count, width)
    rows = torch.arange(height, device=device).expand(count, height)
    if config.hflip:
        mirrored = torch.rand(count, 1, generator=generator, device=device) < 0.5
        columns = torch.where(mirrored, width - 1 - columns, columns)
    outside = None
    if most := config.shift_pixels(width):
        moves = torch.randint(-most, most + 1, (2, count, 1), generator=generator, device=device)
        rows, columns = rows + moves[0], columns + moves[1]
        if config.shift_fill == "reflect":
            rows, columns = _reflect(rows, height), _reflect(columns, width)
        else:
            outside = _outside(rows, height)[:, :, None] | _outside(columns, width)[:, None, :]
            rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    images = torch.arange(count, device=device)[:, None, None]
    moved = pixels[images, rows[:, :, None], columns[:, None, :]]
    return moved if outside is None else moved.masked_fill_(outside[..., None], 0)


def _reflect(index: Tensor, size: int) -> Tensor:
    """Mirror positions at the edges without repeating the edge, as numpy's `reflect` does."""
    period = max(2 * (size - 1), 1)
    index = index.remainder(period)
    return torch.minimum(index, period - index)


def _outside(index: Tensor, size: int) -> Tensor:
    return (index < 0) | (index >= size)


def crop_and_rotate(images: Tensor, size: int, config: AugmentConfig, generator: Generator) -> Tensor:
    """Random resized crop and rotation in one bilinear resampling, mirrored at the borders.

    float [B, C, W, W] in [0, 255] -> [B, C, size, size]. The crop's area is uniform in
    [random_resized_crop, 1] and its log aspect uniform in [log 3/4, log 4/3] (Szegedy et al. 2015).
    """
    count, device = len(images), images.device
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
            torch.stack([cos * scale_x, -sin * scale_y, centre[0]], dim=1),
            torch.stack([sin * scale_x, cos * scale_y, centre[1]], dim=1),
        ],
        dim=1,
    )
    grid = torch.nn.functional.affine_grid(matrix, [count, images.shape[1], size, size], align_corners=False)
    return torch.nn.functional.grid_sample(
        images, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )


def jitter_colour(images: Tensor, config: AugmentConfig, generator: Generator) -> Tensor:
    """Brightness, then contrast (about the image's mean luma), then saturation; floats in [0, 255]."""
    channels = images.shape[1]
    luma = torch.tensor(LUMA if channels == 3 else (1.0,), device=images.device).view(1, channels, 1, 1)

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


def cutout(images: Tensor, side: int, generator: Generator) -> Tensor:
    """Set a square to 0, the mean colour (DeVries and Taylor 2017), in place. Normalised float [B, C, S, S].

    The squares have `side` pixels around uniform centres, and are cut off at the borders.
    """
    size = images.shape[-1]
    centres = torch.randint(0, size, (2, len(images), 1), generator=generator, device=images.device)
    first = centres - side // 2
    line = torch.arange(size, device=images.device)
    inside = (line >= first) & (line < first + side)
    return images.masked_fill_(inside[0][:, None, :, None] & inside[1][:, None, None, :], 0.0)


def mix(
    images: Tensor, labels: Tensor, config: AugmentConfig, generator: Generator, draws: np.random.Generator
) -> Batch:
    """Mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019), one weight a batch; with both, either at evens.

    The partner is the batch in another order. The heavier label comes first. What decides the shape of the
    computation comes from `draws`, on the host, so that no step waits for the device.
    """
    use_cutmix = bool(config.cutmix) and (not config.mixup or draws.random() < 0.5)
    alpha = config.cutmix if use_cutmix else config.mixup
    share = float(draws.beta(alpha, alpha))
    partner = torch.randperm(len(images), generator=generator, device=images.device)
    if use_cutmix:
        size = images.shape[-1]
        side = round(size * (1 - share) ** 0.5)
        top, left = (int(centre) - side // 2 for centre in draws.integers(0, size, 2))
        rows = slice(max(top, 0), min(top + side, size))
        columns = slice(max(left, 0), min(left + side, size))
        mixed = images.clone()
        mixed[:, :, rows, columns] = images[partner][:, :, rows, columns]
        share = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / size**2
    else:
        mixed = torch.lerp(images[partner], images, share)
    if share < 0.5:
        return Batch(mixed, labels[partner], labels, 1 - share)
    return Batch(mixed, labels, labels[partner], share)


class Augment:
    """Training's path from uint8 [B, W, W, C] and labels [B] to a Batch.

    `generator` is on the device, where it draws for each image. `key` names the batch ([seed, epoch, step]): what is
    drawn once a batch comes from NumPy's generator of it, so that nothing waits for the device.
    """

    def __init__(self, config: AugmentConfig, to_input: ToInput) -> None:
        self.config = config
        self.to_input = to_input

    def __call__(self, pixels: Tensor, labels: Tensor, generator: Generator, key: Sequence[int]) -> Batch:
        config = self.config
        if config.hflip or config.shift:
            pixels = flip_and_shift(pixels, config, generator)
        # A random crop makes its own size out of the working size.
        images = pixels.permute(0, 3, 1, 2) if config.random_resized_crop else self.to_input.resize(pixels)
        if config.random_resized_crop or config.rotation:
            size = self.to_input.preprocessing.image_size
            images = crop_and_rotate(images.float(), size, config, generator)
        if config.brightness or config.contrast or config.saturation:
            images = jitter_colour(images.float(), config, generator)
        images = self.to_input.normalize(images)
        if config.cutout:
            images = cutout(images, config.cutout, generator)
        batch = Batch(images, labels)
        if config.mixup or config.cutmix:
            batch = mix(images, labels, config, generator, np.random.default_rng(key))
        # Not every operation above keeps the memory format that the convolutions are fast in.
        return replace(batch, images=batch.images.contiguous(memory_format=self.to_input.memory_format))
