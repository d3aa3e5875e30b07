"""From decoded pixels to the net's input."""

from __future__ import annotations

import torch
from torch import Tensor

from convsmith.data.config import Preprocessing


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
