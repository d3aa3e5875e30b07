"""From an image of any form to the network's input, and back to pixels that can be shown. Knows no network.

`prepare` turns images into pixels of the working size, and `ToInput` turns these into floats of the network's size.
Prepared images have a type of their own, `InputPixels`, so that no image is prepared twice: a centre crop of a centre
crop would be a different image.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from convsmith.contracts import Size, hw
from convsmith.data.config import DecodeRules, Preprocessing
from convsmith.data.decode import Pixels, decode, from_array, from_image
from convsmith.errors import UserError


@dataclass(frozen=True, eq=False)
class InputPixels:
    """N prepared images: `array` uint8 [N, H, W, C] of the working size. They are never prepared again.

    `prepare` and the subsets of a data set create them; code that computes logits accepts nothing else.
    """

    array: Pixels

    def __post_init__(self) -> None:
        assert self.array.dtype == np.uint8
        assert self.array.ndim == 4, self.array.shape

    def __len__(self) -> int:
        return len(self.array)

    def tensor(self, device: torch.device) -> Tensor:
        """A copy of the pixels as a tensor uint8 [N, H, W, C] on a device."""
        return torch.tensor(self.array, device=device)


@dataclass(frozen=True, eq=False)
class DevicePixels:
    """N prepared images that a device holds already: `pixels` uint8 [N, H, W, C] of the working size."""

    pixels: Tensor

    def tensor(self, device: torch.device) -> Tensor:
        """The pixels, which lie on that device."""
        assert self.pixels.device.type == device.type
        return self.pixels


def prepare(image: Any, rules: DecodeRules) -> InputPixels:
    """Prepare one image (a path, encoded bytes, a PIL image, an array or a tensor) by the decoding rules: N = 1.

    Arrays are uint8 [H, W] or [H, W, C] with up to 16 channels; tensors are uint8 [H, W] or [C, H, W], or floats in
    [0, 1] of those shapes. Raises DecodeError if the image cannot be decoded, UserError if it is not an image at all.
    """
    if isinstance(image, str | Path):
        pixels = decode(Path(image), rules)
    elif isinstance(image, bytes):
        pixels = decode(image, rules)
    elif isinstance(image, Image.Image):
        pixels = from_image(image, rules)
    elif isinstance(image, InputPixels):
        raise UserError("these pixels have been prepared already: pass them to predict directly")
    else:
        pixels = from_array(_as_array(image), rules)
    return InputPixels(pixels[None])


def _as_array(image: Any) -> Pixels:
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        if image.is_floating_point():
            # Written so that NaN is refused as well.
            if image.numel() and not (float(image.min()) >= 0 and float(image.max()) <= 1):
                raise UserError("a float tensor must hold values in [0, 1]: pass pixels that are not normalised")
            image = (image * 255).round().to(torch.uint8)
        return np.asarray(image.permute(1, 2, 0) if image.ndim == 3 else image)
    if not isinstance(image, np.ndarray):
        raise UserError(f"cannot predict a {type(image).__name__}: give paths, PIL images, arrays or tensors")
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise UserError(f"an array must be uint8 [H, W] or [H, W, C], not {image.dtype} {list(image.shape)}")
    pixels: npt.NDArray[np.uint8] = image
    return pixels


class ToInput:
    """uint8 [B, H, W, C] (working size) -> normalised float32 [B, C, h, w] (image size) in a given memory format.

    If the working size is larger, the whole image is resized with antialiasing; nothing is cropped.
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

    def of_size(self, size: Size) -> ToInput:
        """The same for another size of the network's input."""
        if size == self.preprocessing.image_size:
            return self
        return ToInput(
            self.preprocessing.model_copy(update={"image_size": size}), self.scale.device, self.memory_format
        )

    def normalize(self, pixels: Tensor) -> Tensor:
        """Pixels in [0, 255], float32 or uint8 [B, C, H, W] -> (pixels / 255 - mean) / std."""
        channels_last = torch.channels_last
        if self.memory_format == channels_last and pixels.is_contiguous(memory_format=channels_last):
            # In rows of W x C values, since a loop over the few channels of each pixel takes four times as long.
            rows = pixels.permute(0, 2, 3, 1).flatten(2).to(torch.float32)
            shift, scale = (values.flatten().repeat(pixels.shape[3]) for values in (self.shift, self.scale))
            return torch.addcmul(shift, rows, scale).view(pixels.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
        floats = pixels.to(torch.float32, memory_format=self.memory_format)
        return torch.addcmul(self.shift, floats, self.scale)

    def resize(self, pixels: Tensor) -> Tensor:
        """uint8 [B, H, W, C] -> [B, C, h, w], uint8 if no resizing is needed, else float in [0, 255]."""
        images = pixels.permute(0, 3, 1, 2)
        size = hw(self.preprocessing.image_size)
        if images.shape[-2:] == size:
            return images
        mode = self.preprocessing.interpolation
        images = torch.nn.functional.interpolate(images.float(), size, mode=mode, antialias=True)
        return images.clamp_(0, 255)

    def back(self, images: Tensor) -> Pixels:
        """The inverse of `normalize`: float32 [B, C, h, w] -> pixels uint8 [B, h, w, C] on the CPU."""
        pixels = ((images - self.shift) / self.scale).round().clamp(0, 255).to(torch.uint8)
        return np.ascontiguousarray(pixels.permute(0, 2, 3, 1).cpu().numpy())

    def __call__(self, pixels: Tensor) -> Tensor:
        return self.normalize(self.resize(pixels))
