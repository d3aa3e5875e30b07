"""Which images make which batch, and from uint8 pixels to the net's input."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from convsmith.data.config import Preprocessing


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


class ToInput:
    """uint8 [B, W, W, C] (working size) -> normalised float32 [B, C, S, S] (image size) in a memory format.

    Where the working size is larger, the whole image is resized with antialiasing; nothing is cropped.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        device: torch.device,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.preprocessing = preprocessing
        self.memory_format = memory_format
        mean = torch.tensor(preprocessing.mean, dtype=torch.float64)
        std = torch.tensor(preprocessing.std, dtype=torch.float64)
        shape = (1, preprocessing.channels, 1, 1)
        self.scale = (1 / (255 * std)).float().view(shape).to(device)
        self.shift = (-mean / std).float().view(shape).to(device)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Pixels in [0, 255], float32 or uint8 [B, C, H, W] -> (pixels / 255 - mean) / std."""
        floats = pixels.to(torch.float32, memory_format=self.memory_format)
        return torch.addcmul(self.shift, floats, self.scale)

    def resize(self, pixels: Tensor) -> Tensor:
        """uint8 [B, W, W, C] -> [B, C, S, S], uint8 where no resizing is needed, else float in [0, 255]."""
        images = pixels.permute(0, 3, 1, 2)
        size = self.preprocessing.image_size
        if images.shape[-1] == size:
            return images
        mode = self.preprocessing.interpolation
        images = torch.nn.functional.interpolate(images.float(), (size, size), mode=mode, antialias=True)
        return images.clamp_(0, 255)

    def __call__(self, pixels: Tensor) -> Tensor:
        return self.normalize(self.resize(pixels))
